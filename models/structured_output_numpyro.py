"""The paper's stochastic feed-forward network for structured output, in NumPyro.

    h1 ~ law(layer_0(upper)),  h2 ~ law(layer_1(h1)),  lower ~ Bernoulli(sigmoid(layer_2(h2)))

It predicts the lower half of an image from the upper one. The guide is the prior of the h's, as in
the paper: what is trained is E log p(lower | h2), and its KL is zero.
"""

import itertools

import numpyro
from flax import nnx
from jax import Array
from numpyro.contrib.module import nnx_module
from numpyro.distributions import Bernoulli

from gs_ppl.models.layers_numpyro import count_logits, make_law, make_mlp


class StructuredOutput:
    """Networks with their program and guide.

    Args:
        variables: number of latent variables in each layer, such as 20, or 200 bits.
        classes: of each variable; None: bits.
        layers: of latent variables.
        pixels: of half an image.
        rngs: of the initial weights.
    """

    def __init__(
        self,
        variables: int,
        classes: int | None,
        layers: int = 2,
        pixels: int = 392,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.variables, self.classes = variables, classes
        widths = [pixels, *[count_logits(variables, classes)] * layers, pixels]
        self.layers = [make_mlp(m, n, rngs=rngs) for m, n in itertools.pairwise(widths)]

    def hidden(self, upper: Array) -> Array:
        """The stochastic layers; returns the last one."""
        h = upper
        for i, layer in enumerate(self.layers[:-1]):
            logits = nnx_module(f"layer_{i}", layer)(h)
            h = numpyro.sample(f"h_{i}", make_law(logits, self.variables, self.classes))
            h = h.reshape(len(upper), -1)
        return h

    def model(self, upper: Array, lower: Array) -> None:
        """upper, lower: binary pixels, floating, shape (images, pixels)."""
        output = nnx_module(f"layer_{len(self.layers) - 1}", self.layers[-1])
        with numpyro.plate("images", len(upper)):
            pixels = Bernoulli(logits=output(self.hidden(upper)))
            numpyro.sample("lower", pixels.to_event(1), obs=lower)

    def guide(self, upper: Array, lower: Array) -> None:
        with numpyro.plate("images", len(upper)):
            self.hidden(upper)
