"""The paper's variational auto-encoder, in Pyro: z of one-hot vectors or of bits, x of pixels.

    z_ni ~ Uniform,  x_n ~ Bernoulli(sigmoid(decoder(z_n))),  q(z_n | x_n) from encoder(x_n)

An ordinary program with discrete latents: relax, discretize and config_enumerate treat them.
"""

import pyro
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Tensor, nn

from gs_ppl.models.layers_pyro import count_logits, make_law, make_mlp


class VAE(nn.Module):
    """Networks with their program and guide.

    Args:
        variables: number of latent variables, such as 20, or 200 bits.
        classes: of each variable; None: bits.
        hidden: widths of the deterministic layers, from x to z and back; (): linear maps.
        pixels: of an image.
        grey: whether they are grey levels g from 0 to 1, and log p(x | z) is taken as minus their
            cross-entropy: its mean over x ~ Bernoulli(g).
    """

    def __init__(
        self,
        variables: int,
        classes: int | None,
        hidden: tuple[int, ...] = (),
        pixels: int = 784,
        grey: bool = False,
    ) -> None:
        super().__init__()
        self.variables, self.classes, self.grey = variables, classes, grey
        units = count_logits(variables, classes)
        self.encoder = make_mlp(pixels, *hidden, units)
        self.decoder = make_mlp(units, *reversed(hidden), pixels)

    def law(self, logits: Tensor) -> TorchDistribution:
        return make_law(logits, self.variables, self.classes)

    def model(self, x: Tensor) -> None:
        """x: pixels, floating, shape (images, pixels)."""
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            logits = x.new_zeros(len(x), count_logits(self.variables, self.classes))
            z = pyro.sample("z", self.law(logits))
            validate = False if self.grey else None  # a grey level is outside of its support
            pixels = Bernoulli(logits=decoder(z.flatten(1)), validate_args=validate)
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.law(encoder(x)))
