"""Parts of the NumPyro models: linear and hidden layers, and their discrete units."""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from numpyro.distributions import Bernoulli, Distribution

from gs_ppl.numpyro import OneHotCategorical


def make_mlp(*widths: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """Linear maps with rectifiers between them."""
    pairs = itertools.pairwise(widths)
    first, *rest = (nnx.Linear(m, n, kernel_init=glorot, rngs=rngs) for m, n in pairs)
    return nnx.Sequential(first, *(layer for linear in rest for layer in (jax.nn.relu, linear)))


glorot = nnx.initializers.glorot_uniform()


def count_logits(variables: int, classes: int | None) -> int:
    """The number of logits of the variables; classes None: bits."""
    return variables * (classes or 1)


def make_law(logits: Array, variables: int, classes: int | None) -> Distribution:
    """Independent variables of one event, from logits of shape (images, variables * classes)."""
    if classes is None:
        return Bernoulli(logits=logits).to_event(1)
    return OneHotCategorical(logits=logits.reshape(-1, variables, classes)).to_event(1)


class Conditioned(nnx.Module):
    """head(relu(A features(x) + B y)), where the batch axes of x and y broadcast.

    The features of x are computed once, whatever axes y has, such as that of enumeration; unless
    `shared`, anew for each y, as by a network of the concatenation of x and y.

    Args:
        features: of x.
        units: how many there are.
        classes: size of y.
        hidden: size of what goes into the head.
        head: the rest of the network.
        shared: whether the features of x are computed once.
        rngs: of the initial weights.
    """

    def __init__(
        self,
        features: Callable,
        units: int,
        classes: int,
        hidden: int,
        head: Callable,
        shared: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.features, self.head, self.shared = features, head, shared
        self.from_x = nnx.Linear(units, hidden, kernel_init=glorot, rngs=rngs)
        self.from_y = nnx.Linear(classes, hidden, kernel_init=glorot, rngs=rngs)

    def __call__(self, x: Array, y: Array) -> Array:
        if not self.shared:
            batch = jnp.broadcast_shapes(x.shape[:-1], y.shape[:-1])
            x = jnp.broadcast_to(x, (*batch, x.shape[-1]))
        return self.head(jax.nn.relu(self.from_x(self.features(x)) + self.from_y(y)))


class Convolution(nnx.Module):
    """A linear map of windows, one for each `stride` pixels; transposed, pixels become windows.

    As a product of matrices: XLA's own convolutions with strides are many times slower on a CPU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        transposed: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.size, self.stride, self.transposed = size, stride, transposed
        channels = (outputs, inputs) if transposed else (inputs, outputs)
        self.kernel = nnx.Param(glorot(rngs.params(), (size, size, *channels)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array) -> Array:
        """Shape (images, height, width, channels)."""
        weight = self.weight()
        if not self.transposed:
            return self.windows(x) @ weight + self.bias[...]
        images, height, width, _ = x.shape
        shape = images, height * self.stride, width * self.stride, len(self.bias[...])
        add_up = jax.linear_transpose(self.windows, jax.ShapeDtypeStruct(shape, x.dtype))
        return add_up(x @ weight.T)[0] + self.bias[...]

    def weight(self) -> Array:
        """Shape (of a window, channels), its pixels in the order of windows."""
        blocks, step = self.size // self.stride, self.stride
        kernel = self.kernel[...].reshape(blocks, step, blocks, step, *self.kernel.shape[2:])
        return kernel.swapaxes(1, 2).reshape(-1, self.kernel.shape[-1])

    def windows(self, x: Array) -> Array:
        """Blocks of `stride` pixels in both directions become channels: contiguous slices."""
        images, height, width, channels = x.shape
        margin, step = (self.size - 1) // 2, self.stride
        x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        rows, columns = x.shape[1] // step, x.shape[2] // step
        x = x.reshape(images, rows, step, columns, step, channels).swapaxes(2, 3)
        x = x.reshape(images, rows, columns, -1)
        corners = itertools.product(range(self.size // step), repeat=2)
        parts = [x[:, i : i + height // step, j : j + width // step] for i, j in corners]
        return jnp.concatenate(parts, -1)


class Downward(nnx.Module):
    """Two convolutions that halve a square image each, with rectifiers; vectors in and out."""

    def __init__(self, side: int, channels: int, *, rngs: nnx.Rngs) -> None:
        self.side, self.units = side, count_units(side, channels)
        self.first = Convolution(1, channels, 4, 2, rngs=rngs)
        self.second = Convolution(channels, 2 * channels, 4, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        images = x.reshape(-1, self.side, self.side, 1)
        h = jax.nn.relu(self.second(jax.nn.relu(self.first(images))))
        return jnp.moveaxis(h, -1, 1).reshape(*x.shape[:-1], self.units)  # the same as torch's


class Upward(nnx.Module):
    """Three transposed convolutions, the last two of which double the image; vectors in and out."""

    def __init__(self, side: int, channels: int, *, rngs: nnx.Rngs) -> None:
        self.shape = 2 * channels, side // 4, side // 4
        make = partial(Convolution, transposed=True, rngs=rngs)
        self.first = make(2 * channels, 2 * channels, 3)
        self.second = make(2 * channels, channels, 4, 2)
        self.third = make(channels, 1, 4, 2)

    def __call__(self, x: Array) -> Array:
        h = jax.nn.relu(self.first(jnp.moveaxis(x.reshape(-1, *self.shape), 1, -1)))
        return self.third(jax.nn.relu(self.second(h))).reshape(*x.shape[:-1], -1)


def count_units(side: int, channels: int) -> int:
    """The number of features that Downward returns for an image, and that Upward takes."""
    return 2 * channels * (side // 4) ** 2
