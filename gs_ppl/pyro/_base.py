"""What all classes share: parameters, their checks, and the record of how a sample was drawn."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from pyro.util import ignore_jit_warnings
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from gs_ppl._shared.annealing import refuse_without_temperature
from gs_ppl._shared.laws import (
    check_categories,
    check_limits,
    check_positive,
    pick,
    refuse_broadcast,
    refuse_empty,
)
from gs_ppl.pyro.functional import Temperature

# --- parameters -----------------------------------------------------------------------------------


def read(*scalars: Tensor) -> list[float] | None:
    """Values as Python numbers; None where they cannot be read: vmap, compiling.

    Tracing freezes decisions that are based on them: for example, which categories are masked.
    """
    if torch.compiler.is_compiling():
        return None
    try:
        with ignore_jit_warnings():
            return [scalar.item() for scalar in scalars]
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None


def parse_logits(name: str, probs: Tensor | None, logits: Tensor | None, event_dims: int) -> Tensor:
    """Logits, from probs or logits, whichever was given; types and shapes are always checked."""
    what, given = pick(name, probs, logits)
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name}: {what} must be a floating-point torch.Tensor, got {got}")
    if event_dims:
        check_categories(name, what, tuple(given.shape))
    if logits is not None:
        return logits
    if not event_dims:
        p = given.masked_fill((given == 0) | (given == 1), 0.5)  # its gradient is 0
        logits = p.log() - (-p).log1p()
        return logits.masked_fill(given == 0, -math.inf).masked_fill(given == 1, math.inf)
    zero = given == 0  # masked categories; log(1) in their place keeps the gradient finite
    return given.masked_fill(zero, 1.0).log().masked_fill(zero, -math.inf)


def check_logits(
    name: str, what: str, limits: list[float], logits: Tensor, event_dims: int
) -> None:
    """Refuses invalid logits or probs; `what` names the argument with these limits."""
    low, high = limits
    check_limits(name, what, low, high, event_dims)
    if event_dims and low in (0.0, -math.inf):
        empty = read(logits.detach().amax(-1).isneginf().any())
        if empty and empty[0]:
            refuse_empty(name, what)


def check_temperature(
    name: str, temperature: Temperature, batch_shape: Size, validate: bool
) -> Size:
    """The batch shape, broadcast with that of the temperature; numbers are always checked."""
    if isinstance(temperature, Tensor) and temperature.is_floating_point():
        try:
            shape = batch_shape  # torch.broadcast_shapes is slow
            if temperature.dim():
                shape = torch.broadcast_shapes(temperature.shape, batch_shape)
        except RuntimeError:
            refuse_broadcast(name, tuple(temperature.shape), tuple(batch_shape))
        limits = None
        if validate and temperature.numel():
            tau = temperature.detach()
            limits = read(*(tau.aminmax() if tau.dim() else (tau, tau)))
    elif isinstance(temperature, Real) and not isinstance(temperature, bool):
        shape, limits = batch_shape, [temperature, temperature]
    else:
        what = temperature.dtype if isinstance(temperature, Tensor) else type(temperature).__name__
        raise TypeError(f"{name}: temperature must be a number or a floating tensor, got {what}")
    if limits is not None:
        check_positive(name, *limits)
    return shape


class Parameters(TorchDistribution):
    """Temperature (if the class has one) and logits, whose last `event_dims` axes are the event."""

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}
    fields: ClassVar[tuple[str, ...]] = ("logits", "temperature", "finite", "unsure")
    has_temperature: ClassVar[bool] = True
    event_dims: ClassVar[int] = 1
    temperature: Any  # a Temperature, or None
    logits: Tensor
    scored_as: ClassVar[str]  # "density" or "mass"
    _validate_args: bool

    def __init__(
        self,
        temperature: Temperature | None,
        probs: Tensor | None,
        logits: Tensor | None,
        validate_args: bool | None,
    ) -> None:
        name = type(self).__name__
        validate = self._validate_args if validate_args is None else validate_args
        self.logits = parse_logits(name, probs, logits, self.event_dims)
        what, given = ("probs", probs) if logits is None else ("logits", logits)
        assert given is not None  # parse_logits refuses any other case
        limits = read(*given.detach().aminmax()) if validate and given.numel() else None
        if limits is not None:
            check_logits(name, what, limits, self.logits, self.event_dims)
        self.temperature = temperature
        batch_shape = self.logits.shape[: self.logits.dim() - self.event_dims]
        if self.has_temperature:
            batch_shape = check_temperature(name, self.temperature, batch_shape, validate)
        self._expand(batch_shape)
        self._validate_args = validate  # the checks above say more than those of the base class

    # computed at first use: a law that is only replaced, or sampled by torch, does not need it
    @lazy_property
    def finite(self) -> Tensor | None:
        """Marks the categories that exist; None: all."""
        a = self.logits.detach()
        if not self.event_dims or not a.numel():
            return None
        lowest = read(a.amin())
        return None if lowest and lowest[0] > -math.inf else a > -math.inf

    @lazy_property
    def unsure(self) -> Tensor | None:
        """Marks the bits whose probability is neither 0 nor 1; None: all."""
        a = self.logits.detach()
        if self.event_dims or not a.numel():
            return None
        limits = read(*a.aminmax())
        known = limits and -math.inf < limits[0] and limits[1] < math.inf
        return None if known else a.isfinite()

    def _expand(self, batch_shape: Size) -> None:
        event_shape = self.logits.shape[self.logits.dim() - self.event_dims :]
        if self.logits.shape != batch_shape + event_shape:
            self.logits = self.logits.expand(batch_shape + event_shape)
        # not TransformedDistribution.__init__, though some of the classes have that base as well
        TorchDistribution.__init__(self, batch_shape, event_shape, validate_args=False)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[Size, Size]:
        """Batch and event shape, from the shapes of the parameters."""
        names = ("temperature", "probs", "logits")[not cls.has_temperature :]
        shapes = {**dict(zip(names, args, strict=False)), **kwargs}
        given = [shapes[n] for n in ("probs", "logits") if shapes.get(n) is not None]
        if len(given) != 1:
            got = "both" if given else "neither"
            raise ValueError(
                f"{cls.__name__}: the shape of exactly one of probs and logits is wanted, got {got}"
            )
        shape = given[0]
        split = len(shape) - cls.event_dims
        batch_shape = torch.broadcast_shapes(shapes.get("temperature") or (), tuple(shape[:split]))
        return batch_shape, Size(shape[split:])

    def expand(self, batch_shape: Size, _instance: Self | None = None) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        for name in self.fields:
            if name in self.__dict__:  # what was not computed yet is not computed here
                setattr(new, name, self.__dict__[name])
        new._expand(Size(batch_shape))
        new._validate_args = self._validate_args
        return new


class LogitsDistribution(Parameters):
    """What all classes have: their properties, and their parameters as the formulas use them.

    `a` are the logits in at least float32. `tau` is the temperature; a tensor is cast to the dtype
    and device of `a`.
    """

    has_rsample = True
    is_hard: ClassVar[bool] = False  # samples are vertices
    binary: ClassVar[type | None] = None  # counterpart of a one-hot class
    mass_scored: ClassVar[type | None] = None  # counterpart of a density

    @property
    def probs(self) -> Tensor:
        """pi = softmax(a), or sigmoid(a) for a bit."""
        return self.logits.softmax(-1) if self.event_dims else self.logits.sigmoid()

    @property
    def a(self) -> Tensor:
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))

    @property
    def tau(self) -> Temperature:
        tau = self.temperature
        return tau.to(self.a) if isinstance(tau, Tensor) else tau

    def _validate_sample(self, value: Tensor) -> None:
        """torch's check of the support, where values can be read."""
        if not torch.compiler.is_compiling():
            super()._validate_sample(value)

    def __repr__(self) -> str:
        tau = self.temperature
        tau = tuple(tau.shape) if isinstance(tau, Tensor) and tau.dim() else tau
        shown = f"temperature: {tau}, " if self.has_temperature else ""
        return f"{type(self).__name__}({shown}logits: {tuple(self.logits.shape)})"


class WithoutTemperature(LogitsDistribution):
    """The law at a site to be relaxed that has no temperature yet: discretize and
    config_enumerate put another law in its place; it is neither drawn nor scored.
    """

    fields = (*Parameters.fields, "site")
    has_temperature = False
    scored_as = "mass"

    def __init__(
        self,
        temperature: None,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        site: str,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args)
        self.site = site

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        refuse_without_temperature(self.site)

    def log_prob(self, value: Tensor) -> Tensor:
        refuse_without_temperature(self.site)


class BitWithoutTemperature(WithoutTemperature):
    """WithoutTemperature for a bit."""

    arg_constraints = {"logits": constraints.real}
    event_dims = 0


# --- own samples ----------------------------------------------------------------------------------


def version_of(value: Tensor) -> int | None:
    """How often the tensor was changed in place; None where torch keeps no count."""
    return None if torch.compiler.is_compiling() or value.is_inference() else value._version


@dataclass(frozen=True, eq=False)
class OwnSample:
    """How a relaxed sample was drawn: an attribute of the tensor, which plates and replay keep.

    Clones, slices, detached and saved copies do not have it and are scored only by their value.
    """

    owner: LogitsDistribution
    log_value: Tensor  # l, or the logit of a relaxed bit
    residue: Tensor  # the noise's part of the score; for a bit, its noise
    version: int | None

    @staticmethod
    def attach(
        value: Tensor, owner: LogitsDistribution, log_value: Tensor, residue: Tensor
    ) -> Tensor:
        draw = OwnSample(owner, log_value, residue, version_of(value))
        value._gs_ppl_draw = draw  # type: ignore[attr-defined] # Tensor does not declare it
        return value

    @staticmethod
    def of(value: Tensor) -> "OwnSample | None":
        draw = getattr(value, "_gs_ppl_draw", None)
        if not isinstance(draw, OwnSample):
            return None
        if draw.version != version_of(value):
            return None  # changed in place since it was drawn
        if value.requires_grad and value.is_leaf:
            return None  # the caller wants the gradient at the value itself
        return draw

    def scored_by_noise(self, distribution: LogitsDistribution) -> bool:
        """Whether an own sample is still attached to its parameters: then the logits cancel."""
        if self.owner is not distribution:
            return False
        parameters = (distribution.logits, distribution.temperature)
        differentiable = any(isinstance(p, Tensor) and p.requires_grad for p in parameters)
        return self.log_value.requires_grad or not differentiable

    def __reduce__(self) -> tuple:
        return OrderedDict, ()  # it is not saved, so that a sample loads with weights_only=True
