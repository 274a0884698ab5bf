"""Parts of the Pyro models: linear and hidden layers, and their discrete units."""

import itertools

import torch
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Tensor, nn

from gs_ppl.pyro import OneHotCategorical


def make_mlp(*widths: int) -> nn.Sequential:
    """Linear maps with rectifiers between them."""
    pairs = itertools.pairwise(widths)
    first, *rest = (make_linear(m, n) for m, n in pairs)
    return nn.Sequential(first, *(layer for linear in rest for layer in (nn.ReLU(), linear)))


def make_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def count_logits(variables: int, classes: int | None) -> int:
    """The number of logits of the variables; classes None: bits."""
    return variables * (classes or 1)


def make_law(logits: Tensor, variables: int, classes: int | None) -> TorchDistribution:
    """Independent variables of one event, from logits of shape (images, variables * classes)."""
    if classes is None:
        return Bernoulli(logits=logits).to_event(1)
    return OneHotCategorical(logits=logits.reshape(-1, variables, classes)).to_event(1)


class Conditioned(nn.Module):
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
    """

    def __init__(
        self,
        features: nn.Module,
        units: int,
        classes: int,
        hidden: int,
        head: nn.Module,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.head, self.shared = features, head, shared
        self.from_x, self.from_y = make_linear(units, hidden), make_linear(classes, hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.shared:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]), -1)
        return self.head((self.from_x(self.features(x)) + self.from_y(y)).relu())


class Downward(nn.Module):
    """Two convolutions that halve a square image each, with rectifiers; vectors in and out."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side, self.units = side, count_units(side, channels)
        self.first = nn.Conv2d(1, channels, 4, stride=2, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, 1, self.side, self.side)
        return self.second(self.first(images).relu()).relu().reshape(*x.shape[:-1], self.units)


class Upward(nn.Module):
    """Three transposed convolutions, the last two of which double the image; vectors in and out."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.shape = 2 * channels, side // 4, side // 4
        self.first = nn.ConvTranspose2d(2 * channels, 2 * channels, 3, padding=1)
        self.second = nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1)
        self.third = nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.reshape(-1, *self.shape)).relu()
        return self.third(self.second(h).relu()).reshape(*x.shape[:-1], -1)


def count_units(side: int, channels: int) -> int:
    """The number of features that Downward returns for an image, and that Upward takes."""
    return 2 * channels * (side // 4) ** 2
