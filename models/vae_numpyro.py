"""The paper's variational auto-encoder, in NumPyro: z of one-hot vectors or of bits, x of pixels.

    z_ni ~ Uniform,  x_n ~ Bernoulli(sigmoid(decoder(z_n))),  q(z_n | x_n) from encoder(x_n)

An ordinary program with discrete latents: relax, discretize and config_enumerate treat them.
"""

import jax.numpy as jnp
import numpyro
from flax import nnx
from jax import Array
from numpyro.contrib.module import nnx_module
from numpyro.distributions import Bernoulli

from gs_ppl.models.layers_numpyro import count_logits, make_law, make_mlp


class VAE:
    """Networks with their program and guide.

    Args:
        variables: number of latent variables, such as 20, or 200 bits.
        classes: of each variable; None: bits.
        hidden: widths of the deterministic layers, from x to z and back; (): linear maps.
        pixels: of an image.
        grey: whether they are grey levels g from 0 to 1, and log p(x | z) is taken as minus their
            cross-entropy: its mean over x ~ Bernoulli(g).
        rngs: of the initial weights.
    """

    def __init__(
        self,
        variables: int,
        classes: int | None,
        hidden: tuple[int, ...] = (),
        pixels: int = 784,
        grey: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.variables, self.classes, self.grey = variables, classes, grey
        units = count_logits(variables, classes)
        self.encoder = make_mlp(pixels, *hidden, units, rngs=rngs)
        self.decoder = make_mlp(units, *reversed(hidden), pixels, rngs=rngs)

    def law(self, logits: Array) -> numpyro.distributions.Distribution:
        return make_law(logits, self.variables, self.classes)

    def model(self, x: Array) -> None:
        """x: pixels, floating, shape (images, pixels)."""
        decoder = nnx_module("decoder", self.decoder)
        with numpyro.plate("images", len(x)):
            logits = jnp.zeros((len(x), count_logits(self.variables, self.classes)), x.dtype)
            z = numpyro.sample("z", self.law(logits))
            validate = False if self.grey else None  # a grey level is outside of its support
            pixels = Bernoulli(logits=decoder(z.reshape(len(x), -1)), validate_args=validate)
            numpyro.sample("x", pixels.to_event(1), obs=x)

    def guide(self, x: Array) -> None:
        encoder = nnx_module("encoder", self.encoder)
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", self.law(encoder(x)))
