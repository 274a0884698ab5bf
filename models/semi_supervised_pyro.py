"""The paper's semi-supervised classifier (Kingma's M2), in Pyro: a class y, and a style z.

    y ~ Uniform,  z ~ Normal(0, 1),  x ~ Bernoulli(sigmoid(decoder(z, y)))
    q(y | x) from classifier(x),  q(z | x, y) from encoder(x, y)

An ordinary program with a discrete latent: relax makes y soft or straight-through in encoder and
decoder; config_enumerate, on model and guide, sums it out, with a z for each class.
"""

import math

import pyro
from pyro import poutine
from pyro.distributions import Bernoulli, Normal, TorchDistribution
from torch import Tensor, nn

from gs_ppl.models.layers_pyro import Conditioned, Downward, Upward, count_units, make_mlp
from gs_ppl.pyro import OneHotCategorical


class SemiSupervised(nn.Module):
    """Networks with their program and guide.

    Args:
        classes: of y.
        style: size of z.
        width: of the hidden layers.
        channels: of the first convolution, twice as many in the second; None: no convolutions.
        pixels: of an image, a square whose side is a multiple of 4 if there are convolutions.
        alpha: weight of log q(y | x) of the labelled images.
        shared: whether the encoder computes the features of x once for all classes.
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
    ) -> None:
        super().__init__()
        self.classes, self.style, self.alpha = classes, style, alpha
        if channels is None:
            units, draw = width, make_mlp(width, width, pixels)
            read = [nn.Sequential(make_mlp(pixels, width), nn.ReLU()) for _ in range(2)]
        else:
            side = math.isqrt(pixels)
            units, draw = count_units(side, channels), Upward(side, channels)
            read = [Downward(side, channels) for _ in range(2)]
        self.classifier = nn.Sequential(read[0], make_mlp(units, width, classes))
        head = make_mlp(width, 2 * style)
        self.encoder = Conditioned(read[1], units, classes, width, head, shared)
        self.decoder = Conditioned(nn.Identity(), style, classes, units, draw)

    def model(
        self, x: Tensor, labelled_x: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Images without labels, and images with them if there are any.

        Args:
            x, labelled_x: binary pixels, floating, shape (images, pixels).
            labels: of labelled_x, one-hot, shape (images, classes).
        """
        decoder = pyro.module("decoder", self.decoder)
        uniform = OneHotCategorical(logits=x.new_zeros(self.classes))
        normal = Normal(x.new_zeros(self.style), 1.0).to_event(1)

        def draw(suffix: str, x: Tensor, y: Tensor | None = None) -> None:
            y = pyro.sample("y" + suffix, uniform, obs=y)
            z = pyro.sample("z" + suffix, normal)
            pyro.sample("x" + suffix, Bernoulli(logits=decoder(z, y)).to_event(1), obs=x)

        with pyro.plate("unlabelled", len(x)):
            draw("", x)
        if labels is not None:
            classifier = pyro.module("classifier", self.classifier)
            with pyro.plate("labelled", len(labels)):
                draw("_labelled", labelled_x, labels)
                with poutine.scale(scale=self.alpha):
                    law = OneHotCategorical(logits=classifier(labelled_x))
                    pyro.sample("label", law, obs=labels)

    def guide(
        self, x: Tensor, labelled_x: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        classifier = pyro.module("classifier", self.classifier)
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("unlabelled", len(x)):
            y = pyro.sample("y", OneHotCategorical(logits=classifier(x)))
            pyro.sample("z", make_normal(encoder(x, y)))
        if labels is not None:
            with pyro.plate("labelled", len(labels)):
                pyro.sample("z_labelled", make_normal(encoder(labelled_x, labels)))


def make_normal(h: Tensor) -> TorchDistribution:
    """One event, from means and logarithms of the standard deviations."""
    loc, log_scale = h.chunk(2, -1)
    return Normal(loc, log_scale.exp()).to_event(1)
