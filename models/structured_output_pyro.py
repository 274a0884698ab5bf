"""The paper's stochastic feed-forward network for structured output, in Pyro.

    h1 ~ law(layer_0(upper)),  h2 ~ law(layer_1(h1)),  lower ~ Bernoulli(sigmoid(layer_2(h2)))

It predicts the lower half of an image from the upper one. The guide is the prior of the h's, as in
the paper: what is trained is E log p(lower | h2), and its KL is zero.
"""

import itertools

import pyro
from pyro.distributions import Bernoulli
from torch import Tensor, nn

from gs_ppl.models.layers_pyro import count_logits, make_law, make_mlp


class StructuredOutput(nn.Module):
    """Networks with their program and guide.

    Args:
        variables: number of latent variables in each layer, such as 20, or 200 bits.
        classes: of each variable; None: bits.
        layers: of latent variables.
        pixels: of half an image.
    """

    def __init__(
        self, variables: int, classes: int | None, layers: int = 2, pixels: int = 392
    ) -> None:
        super().__init__()
        self.variables, self.classes = variables, classes
        widths = [pixels, *[count_logits(variables, classes)] * layers, pixels]
        self.layers = nn.ModuleList(make_mlp(m, n) for m, n in itertools.pairwise(widths))

    def hidden(self, upper: Tensor) -> Tensor:
        """The stochastic layers; returns the last one."""
        h = upper
        for i, layer in enumerate(self.layers[:-1]):
            logits = pyro.module(f"layer_{i}", layer)(h)
            h = pyro.sample(f"h_{i}", make_law(logits, self.variables, self.classes)).flatten(1)
        return h

    def model(self, upper: Tensor, lower: Tensor) -> None:
        """upper, lower: binary pixels, floating, shape (images, pixels)."""
        output = pyro.module(f"layer_{len(self.layers) - 1}", self.layers[-1])
        with pyro.plate("images", len(upper)):
            pixels = Bernoulli(logits=output(self.hidden(upper)))
            pyro.sample("lower", pixels.to_event(1), obs=lower)

    def guide(self, upper: Tensor, lower: Tensor) -> None:
        with pyro.plate("images", len(upper)):
            self.hidden(upper)
