"""The paper's semi-supervised classifier (Kingma's M2), in NumPyro: a class y, and a style z.

    y ~ Uniform,  z ~ Normal(0, 1),  x ~ Bernoulli(sigmoid(decoder(z, y)))
    q(y | x) from classifier(x),  q(z | x, y) from encoder(x, y)

An ordinary program with a discrete latent: relax makes y soft or straight-through in encoder and
decoder; config_enumerate, on model and guide, sums it out, with a z for each class.
"""

import math

import jax
import jax.numpy as jnp
import numpyro
from flax import nnx
from jax import Array
from numpyro import handlers
from numpyro.contrib.module import nnx_module
from numpyro.distributions import Bernoulli, Distribution, Normal

from gs_ppl.models.layers_numpyro import Conditioned, Downward, Upward, count_units, make_mlp
from gs_ppl.numpyro import OneHotCategorical


class SemiSupervised:
    """Networks with their program and guide.

    Args:
        classes: of y.
        style: size of z.
        width: of the hidden layers.
        channels: of the first convolution, twice as many in the second; None: no convolutions.
        pixels: of an image, a square whose side is a multiple of 4 if there are convolutions.
        alpha: weight of log q(y | x) of the labelled images.
        shared: whether the encoder computes the features of x once for all classes.
        rngs: of the initial weights.
    """

    def __init__(
        self,
        classes: int = 10,
        style: int = 50,
        width: int = 256,
        channels: int | None = None,
        pixels: int = 784,
        alpha: float = 1.0,
        shared: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.classes, self.style, self.alpha = classes, style, alpha
        if channels is None:
            units, draw = width, make_mlp(width, width, pixels, rngs=rngs)
            linear = [make_mlp(pixels, width, rngs=rngs) for _ in range(2)]
            read = [nnx.Sequential(layer, jax.nn.relu) for layer in linear]
        else:
            side = math.isqrt(pixels)
            units, draw = count_units(side, channels), Upward(side, channels, rngs=rngs)
            read = [Downward(side, channels, rngs=rngs) for _ in range(2)]
        head = make_mlp(width, 2 * style, rngs=rngs)
        self.classifier = nnx.Sequential(read[0], make_mlp(units, width, classes, rngs=rngs))
        self.encoder = Conditioned(read[1], units, classes, width, head, shared, rngs=rngs)
        self.decoder = Conditioned(nnx.identity, style, classes, units, draw, rngs=rngs)

    def model(self, x: Array, labelled_x: Array | None = None, labels: Array | None = None) -> None:
        """Images without labels, and images with them if there are any.

        Args:
            x, labelled_x: binary pixels, floating, shape (images, pixels).
            labels: of labelled_x, one-hot, shape (images, classes).
        """
        decoder = nnx_module("decoder", self.decoder)
        uniform = OneHotCategorical(logits=jnp.zeros(self.classes, x.dtype))
        normal = Normal(jnp.zeros(self.style, x.dtype), 1.0).to_event(1)

        def draw(suffix: str, x: Array, y: Array | None = None) -> None:
            y = numpyro.sample("y" + suffix, uniform, obs=y)
            z = numpyro.sample("z" + suffix, normal)
            numpyro.sample("x" + suffix, Bernoulli(logits=decoder(z, y)).to_event(1), obs=x)

        with numpyro.plate("unlabelled", len(x)):
            draw("", x)
        if labels is not None:
            classifier = nnx_module("classifier", self.classifier)
            with numpyro.plate("labelled", len(labels)):
                draw("_labelled", labelled_x, labels)
                with handlers.scale(scale=self.alpha):
                    law = OneHotCategorical(logits=classifier(labelled_x))
                    numpyro.sample("label", law, obs=labels)

    def guide(self, x: Array, labelled_x: Array | None = None, labels: Array | None = None) -> None:
        classifier = nnx_module("classifier", self.classifier)
        encoder = nnx_module("encoder", self.encoder)
        with numpyro.plate("unlabelled", len(x)):
            y = numpyro.sample("y", OneHotCategorical(logits=classifier(x)))
            numpyro.sample("z", make_normal(encoder(x, y)))
        if labels is not None:
            with numpyro.plate("labelled", len(labels)):
                numpyro.sample("z_labelled", make_normal(encoder(labelled_x, labels)))


def make_normal(h: Array) -> Distribution:
    """One event, from means and logarithms of the standard deviations."""
    loc, log_scale = jnp.split(h, 2, -1)
    return Normal(loc, jnp.exp(log_scale)).to_event(1)
