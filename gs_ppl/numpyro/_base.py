"""What all classes share: parameters, their checks, and wrappers that keep intermediates."""

import copy
import math
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution, Independent, MaskedDistribution, constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.util import not_jax_tracer

from gs_ppl._shared.annealing import refuse_without_temperature
from gs_ppl._shared.laws import (
    check_categories,
    check_limits,
    check_positive,
    pick,
    refuse_broadcast,
    refuse_empty,
)
from gs_ppl._shared.wrappers import innermost
from gs_ppl.numpyro.functional import Temperature, is_array
from gs_ppl.numpyro.numpyros_enum import refuse_support

# --- parameters -----------------------------------------------------------------------------------


def read(x: Array) -> np.ndarray | None:
    """The values in at least float32; None where they cannot be read: inside jit, vmap, grad."""
    if not not_jax_tracer(x):
        return None
    values = np.asarray(x)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _limits(x: Array) -> tuple[float, float] | None:
    """Smallest and largest value; both are NaN if one value is NaN."""
    values = read(x)
    return None if values is None or not values.size else (float(values.min()), float(values.max()))


def _is_floating(x: object) -> TypeGuard[Array]:
    return is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _dtype_or_type(x: object) -> str:
    return str(x.dtype) if is_array(x) else type(x).__name__


def parse_logits(name: str, probs: Array | None, logits: Array | None, event_dims: int) -> Array:
    """Logits, from probs or logits, whichever was given; types and shapes are always checked."""
    what, given = pick(name, probs, logits)
    if not _is_floating(given):
        got = _dtype_or_type(given)
        raise TypeError(f"{name}: {what} must be a floating-point array, got {got}")
    if event_dims:
        check_categories(name, what, tuple(given.shape))
    given = jnp.asarray(given)
    if logits is not None:
        return given
    if not event_dims:
        sure = (given == 0) | (given == 1)  # its gradient is 0
        p = jnp.where(sure, 0.5, given)
        return jnp.where(sure, jnp.where(given == 1, jnp.inf, -jnp.inf), jnp.log(p) - jnp.log1p(-p))
    zero = given == 0  # masked categories; log(1) in their place keeps the gradient finite
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, given)))


def check_logits(name: str, what: str, given: Array, event_dims: int) -> None:
    """Refuses invalid logits or probs; `what` names the argument that was given."""
    values = read(given)
    if values is None or not values.size:
        return
    low, high = float(values.min()), float(values.max())
    check_limits(name, what, low, high, event_dims)
    masked = 0.0 if what == "probs" else -math.inf
    if event_dims and low == masked and (values.max(-1) == masked).any():
        refuse_empty(name, what)


def check_temperature(
    name: str, temperature: Temperature, batch_shape: tuple[int, ...], validate: bool
) -> tuple[int, ...]:
    """The batch shape, broadcast with that of the temperature; numbers are always checked."""
    if _is_floating(temperature):
        try:
            shape = np.broadcast_shapes(temperature.shape, batch_shape)
        except ValueError:
            refuse_broadcast(name, tuple(temperature.shape), tuple(batch_shape))
        limits = _limits(temperature) if validate else None
    elif isinstance(temperature, Real) and not isinstance(temperature, bool):
        shape, limits = batch_shape, (temperature, temperature)
    else:
        what = _dtype_or_type(temperature)
        raise TypeError(f"{name}: temperature must be a number or a floating array, got {what}")
    if limits is not None:
        check_positive(name, *limits)
    return shape


class LogitsTree(Distribution):
    """The pytree: its leaves are the logits, and the temperature if it is an array.

    A number is static: it stays the same number in jit and vmap. The batch shape follows the
    logits; vmap adds axes to them and removes axes.
    """

    pytree_data_fields = ("logits", "temperature")
    pytree_aux_fields = ("temperature",)
    event_dims: ClassVar[int] = 1
    temperature: Any  # a Temperature, or None
    logits: Array
    _temperature_is_leaf = False  # a placeholder, such as an axis, may replace the array
    _batch_shape: tuple[int, ...]
    _validate_args: bool

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        return LogitsTree.pytree_data_fields  # and not the values computed from them

    def tree_flatten(self) -> tuple[tuple, tuple]:
        data, aux = map(list, super().tree_flatten())
        if is_array(self.temperature) or self._temperature_is_leaf:
            aux[self.gather_pytree_aux_fields().index("temperature")] = None
        else:
            data[self.gather_pytree_data_fields().index("temperature")] = None
        return tuple(data), tuple(aux)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple, params: tuple) -> Self:
        new = super().tree_unflatten(aux_data, params)
        if new.temperature is None:
            new.temperature = params[cls.gather_pytree_data_fields().index("temperature")]
            new._temperature_is_leaf = True
        if is_array(new.logits):
            new._rebatch(new.logits.shape[: new.logits.ndim - cls.event_dims])
        return new

    def _rebatch(self, batch_shape: tuple[int, ...]) -> None:
        """Takes the batch shape of the logits; new axes of the temperature stay the first."""
        added, tau = len(batch_shape) - len(self._batch_shape), self.temperature
        if added > 0 and is_array(tau) and tau.ndim >= added:
            ones = (1,) * (len(batch_shape) - tau.ndim)
            self.temperature = tau.reshape(tau.shape[:added] + ones + tau.shape[added:])
        self._batch_shape = batch_shape


@vmap_over.register
def _vmap_over(d: LogitsTree, temperature: int | None = None, logits: int | None = None) -> Any:
    """The axes of vmap; the temperature has one only if it is an array."""
    axes: Any = copy.copy(d)
    axes.logits = logits
    if is_array(d.temperature):
        axes.temperature, axes._temperature_is_leaf = temperature, True
    elif temperature is not None:
        raise ValueError(f"{type(d).__name__}: temperature {d.temperature} has no axis to map over")
    return axes


class Parameters(LogitsTree):
    """Temperature (if the class has one) and logits, whose last `event_dims` axes are the event.

    `finite` marks the categories that exist; None: all.
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}
    has_temperature: ClassVar[bool] = True
    scored_as: ClassVar[str]  # "density" or "mass"

    def __init__(
        self,
        temperature: Temperature | None,
        probs: Array | None,
        logits: Array | None,
        validate_args: bool | None,
    ) -> None:
        name = type(self).__name__
        validate = self._validate_args if validate_args is None else validate_args
        self.logits = parse_logits(name, probs, logits, self.event_dims)
        if validate:
            what, given = ("probs", probs) if logits is None else ("logits", logits)
            assert given is not None  # parse_logits refuses any other case
            check_logits(name, what, given, self.event_dims)
        self.temperature = temperature
        batch_shape = self.logits.shape[: self.logits.ndim - self.event_dims]
        if self.has_temperature:
            batch_shape = check_temperature(name, self.temperature, batch_shape, validate)
        self._expand(batch_shape)
        self._validate_args = validate  # the checks above say more than those of the base class

    def _expand(self, batch_shape: tuple[int, ...]) -> None:
        event_shape = self.logits.shape[self.logits.ndim - self.event_dims :]
        self.logits = jnp.broadcast_to(self.logits, batch_shape + event_shape)
        # not TransformedDistribution.__init__, though some of the classes have that base as well
        Distribution.__init__(self, batch_shape, event_shape, validate_args=False)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
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
        batch_shape = np.broadcast_shapes(shapes.get("temperature") or (), tuple(shape[:split]))
        return batch_shape, tuple(shape[split:])

    def expand(self, batch_shape: tuple[int, ...]) -> Self:
        new = copy.copy(self)
        new._expand(tuple(batch_shape))
        new._validate_args = self._validate_args
        return new

    @property
    def finite(self) -> Array | None:
        if not self.event_dims:
            return None
        limits = _limits(self.logits)
        return None if limits is not None and limits[0] > -math.inf else self.logits > -jnp.inf

    @property
    def unsure(self) -> Array | None:
        """Which bits have a probability that is neither 0 nor 1; None: all."""
        if self.event_dims:
            return None
        limits = _limits(self.logits)
        known = limits is not None and -math.inf < limits[0] and limits[1] < math.inf
        return None if known else jnp.isfinite(self.logits)


# --- wrappers -------------------------------------------------------------------------------------


class KeepsIntermediates:
    """Makes wrappers that keep intermediates; NumPyro's own MaskedDistribution does not keep them.

    The intermediates are a list of one OwnSample: how a sample was drawn.
    """

    batch_shape: tuple[int, ...]

    def mask(self, mask: bool | Array) -> Distribution:
        return self if mask is True else OwnMasked(self, mask)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Distribution:
        n = (
            len(self.batch_shape)
            if reinterpreted_batch_ndims is None
            else reinterpreted_batch_ndims
        )
        return self if n == 0 else OwnIndependent(self, n)


class OwnIndependent(KeepsIntermediates, Independent):
    """NumPyro's Independent, which refuses NumPyro's enumeration with an error that explains it."""

    def enumerate_support(self, expand: bool = True) -> Array:
        if not expand:
            refuse_support(type(innermost(self)).__name__)
        return super().enumerate_support(expand)


class OwnMasked(KeepsIntermediates, MaskedDistribution):
    """NumPyro's MaskedDistribution; it scores a sample from its intermediates."""

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        return self.base_dist.sample_with_intermediates(key, sample_shape)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        if not intermediates or self._mask is False:
            return super().log_prob(value)
        log_prob = self.base_dist.log_prob(value, intermediates)
        return log_prob if self._mask is True else jnp.where(self._mask, log_prob, 0.0)

    def expand(self, batch_shape: tuple[int, ...]) -> Distribution:
        batch_shape = tuple(batch_shape)
        mask = self._mask
        mask = mask if isinstance(mask, bool) else jnp.broadcast_to(mask, batch_shape)
        return OwnMasked(self.base_dist.expand(batch_shape), mask)


# --- laws -----------------------------------------------------------------------------------------


class LogitsDistribution(KeepsIntermediates, Parameters):
    """What all classes have: their properties, and their parameters as the formulas use them.

    `a` are the logits in at least float32. `tau` is the temperature; an array is cast to the dtype
    of `a`.
    """

    reparametrized_params = ["temperature", "logits"]
    is_hard: ClassVar[bool] = False  # samples are vertices
    binary: ClassVar[type | None] = None  # counterpart of a one-hot class
    mass_scored: ClassVar[type | None] = None  # counterpart of a density

    @property
    def probs(self) -> Array:
        """pi = softmax(a), or sigmoid(a) for a bit."""
        probs = jax.nn.softmax(self.a) if self.event_dims else jax.nn.sigmoid(self.a)
        return probs.astype(self.logits.dtype)

    @property
    def a(self) -> Array:
        return self._cast(self.logits)

    @property
    def tau(self) -> Temperature:
        return (
            self._cast(self.temperature) if is_array(self.temperature) else float(self.temperature)
        )

    def _cast(self, x: Array) -> Array:
        return jnp.asarray(x, jnp.promote_types(self.logits.dtype, jnp.float32))

    def _validate_sample(self, value: Array) -> None:
        """Refuses a value of the wrong shape or, where it can be read, outside of the support."""
        name, shape = type(self).__name__, jnp.shape(value)
        if shape[len(shape) - self.event_dims :] != self.event_shape:
            raise ValueError(
                f"{name}: the value must have the event shape {self.event_shape}, got shape {shape}"
            )
        values = read(value)
        if values is not None and not np.all(self.support(np.asarray(value))):
            raise ValueError(
                f"{name}: the value must lie in the support {self.support}, got"
                f" values from {values.min()} to {values.max()}"
            )

    def __repr__(self) -> str:
        tau = self.temperature
        tau = tuple(tau.shape) if is_array(tau) and tau.ndim else tau
        shown = f"temperature: {tau}, " if self.has_temperature else ""
        return f"{type(self).__name__}({shown}logits: {jnp.shape(self.logits)})"


class WithoutTemperature(LogitsDistribution):
    """The law at a site to be relaxed that has no temperature yet: discretize and
    config_enumerate put another law in its place; it is neither drawn nor scored.
    """

    has_temperature = False
    scored_as = "mass"
    pytree_aux_fields = ("site",)

    def __init__(
        self,
        temperature: None,
        probs: Array | None = None,
        logits: Array | None = None,
        *,
        site: str,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args)
        self.site = site

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        refuse_without_temperature(self.site)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        refuse_without_temperature(self.site)


class BitWithoutTemperature(WithoutTemperature):
    """WithoutTemperature for a bit."""

    arg_constraints = {"logits": constraints.real}
    event_dims = 0


# --- own samples ----------------------------------------------------------------------------------


class OwnSample(NamedTuple):
    """How a relaxed sample was drawn; for a sample of another distribution, only its log."""

    log_value: Array  # l, or the logit of a relaxed bit
    residue: Array | None = None  # the noise's part of the score; for a bit, its noise
    log_product: Array | None = None  # sum l, of a vector
