"""The Gumbel-Softmax family for NumPyro: soft or hard samples, scored as a density or as a mass."""

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Logistic, TransformedDistribution
from numpyro.distributions import constraints as numpyro_constraints
from numpyro.distributions.transforms import Transform

from gs_ppl._shared.laws import refuse_form
from gs_ppl.numpyro import constraints
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro._base import LogitsDistribution, OwnSample
from gs_ppl.numpyro.functional import Temperature
from gs_ppl.numpyro.numpyros_enum import refuse_draw, refuse_support

__all__ = [
    "ExpGumbelSoftmax",
    "GumbelSigmoid",
    "GumbelSoftmax",
    "OneHotCategorical",
    "SoftBernoulli",
    "SoftOneHotCategorical",
]

Shape = tuple[int, ...]


class Relaxed(LogitsDistribution):
    """A law with a temperature; draws a relaxed sample and the input of its score."""

    def __init__(
        self,
        temperature: Temperature,
        probs: Array | None = None,
        logits: Array | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args)

    def _draw(self, key: Array, sample_shape: Shape) -> tuple[Array, list[OwnSample]]:
        """Sample, and the input of its score."""
        refuse_draw(type(self).__name__)
        shape, dtype = self.shape(tuple(sample_shape)), self.logits.dtype
        a, tau = self.a, self.tau
        if not self.event_dims:
            noise = F.logistic_noise(key, shape, dtype=a.dtype)
            unsure = self.unsure
            x = F.gumbel_sigmoid_sample(tau, F.without_sure(a, unsure), noise)
            y = F.to_unit_interval(x, dtype)
            return F.put_sure(y, a, unsure), [OwnSample(x, noise)]
        noise = F.exponential_noise(key, shape, dtype=a.dtype)
        y, *drawn = F.gumbel_softmax_draw(tau, a, noise, self.finite)
        own = OwnSample(*drawn)
        y = y if dtype == a.dtype else F.to_simplex(own.log_value, dtype, self.finite)
        return y, [own]


class Soft(Relaxed):
    """A soft sample: its mean and variance are integrals over the simplex."""

    @property
    def mean(self) -> Array:
        refuse_form(self, "mean")

    @property
    def variance(self) -> Array:
        refuse_form(self, "variance")


# --- mass-scored ----------------------------------------------------------------------------------


def one_hot_support(distribution: LogitsDistribution, expand: bool) -> Array:
    """The K vertices, shape (K,) + batch + (K,); without `expand` all batch sizes are 1."""
    K, batch_shape = distribution.logits.shape[-1], distribution.batch_shape
    values = jnp.eye(K, dtype=distribution.logits.dtype)
    values = values.reshape(K, *(1,) * len(batch_shape), K)
    return jnp.broadcast_to(values, (K, *batch_shape, K)) if expand else values


def bit_support(distribution: LogitsDistribution, expand: bool) -> Array:
    """0 and 1, shape (2,) + batch; without `expand` all batch sizes are 1."""
    batch_shape = distribution.batch_shape
    values = jnp.arange(2, dtype=distribution.logits.dtype).reshape(2, *(1,) * len(batch_shape))
    return jnp.broadcast_to(values, (2, *batch_shape)) if expand else values


class CategoricalScored(LogitsDistribution):
    """Scored as the categorical law: log mass sum(value log pi), linear in the value."""

    scored_as = "mass"
    has_enumerate_support = True
    support = constraints.one_hot

    def log_prob(self, value: Array, intermediates: list[OwnSample] | None = None) -> Array:
        if self._validate_args:
            self._validate_sample(value)
        return F.categorical_log_prob(self.a, self._cast(value), self.finite)

    def enumerate_support(self, expand: bool = True) -> Array:
        if not expand:
            refuse_support(type(self).__name__)
        return one_hot_support(self, expand)

    @property
    def mean(self) -> Array:
        return self.probs

    @property
    def variance(self) -> Array:
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Array:
        return F.one_hot_argmax(self.logits)

    def entropy(self) -> Array:
        return F.categorical_entropy(self.a, self.finite)


class BernoulliScored(LogitsDistribution):
    """Scored as the Bernoulli law: value log p + (1 - value) log(1 - p), linear in the value."""

    arg_constraints = {**Relaxed.arg_constraints, "logits": numpyro_constraints.real}
    event_dims = 0
    scored_as = "mass"
    has_enumerate_support = True
    support = numpyro_constraints.boolean

    def log_prob(self, value: Array, intermediates: list[OwnSample] | None = None) -> Array:
        if self._validate_args:
            self._validate_sample(value)
        return F.bernoulli_log_prob(self.a, self._cast(value), self.unsure)

    def enumerate_support(self, expand: bool = True) -> Array:
        if not expand:
            refuse_support(type(self).__name__)
        return bit_support(self, expand)

    @property
    def mean(self) -> Array:
        return self.probs

    @property
    def variance(self) -> Array:
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Array:
        return (self.logits > 0).astype(self.logits.dtype)

    def entropy(self) -> Array:
        return F.bernoulli_entropy(self.a, self.unsure)


class OneHotCategorical(CategoricalScored):
    """One-hot categorical: one_hot(k) with probability pi_k; samples have no gradient.

    log p(value) = sum(value log pi) is linear in the value. So it has a gradient at a
    straight-through sample. NumPyro itself has no class for one-hot values.

    Args:
        probs, logits, validate_args: as GumbelSoftmax.

    Shapes: sample: sample + batch + (K,); log_prob: sample + batch, nats.

    Example:
        >>> import jax
        >>> d = OneHotCategorical(logits=jnp.zeros(4))
        >>> round(float(d.log_prob(d.sample(jax.random.key(0)))), 4)
        -1.3863
    """

    arg_constraints = {"logits": numpyro_constraints.real_vector}
    reparametrized_params = []
    has_temperature = False
    is_hard = True

    def __init__(
        self,
        probs: Array | None = None,
        logits: Array | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(None, probs, logits, validate_args)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        a, shape = self.a, self.shape(tuple(sample_shape))
        noise = F.exponential_noise(key, shape, dtype=a.dtype)
        return F.one_hot_argmax(a - jnp.log(noise)).astype(self.logits.dtype)


class SoftBernoulli(Soft, BernoulliScored):
    """Soft bit y = sigmoid((a + L) / tau); its log_prob is y log p + (1 - y) log(1 - p).

    Args, Shapes, Raises: as GumbelSigmoid.

    Example:
        >>> import jax
        >>> d = SoftBernoulli(0.5, logits=jnp.array(0.0))
        >>> round(float(d.log_prob(d.rsample(jax.random.key(0)))), 4)
        -0.6931
    """

    support = numpyro_constraints.unit_interval

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        return self._draw(key, sample_shape)[0]


class SoftOneHotCategorical(Soft, CategoricalScored):
    """Soft sample y = softmax((a + g) / tau); its log_prob is sum(y log pi).

    The paper's objective: if model and guide have it, TraceMeanField_ELBO uses the exact
    categorical KL. Its law converges to the categorical as tau -> 0. It is not a density, so that
    the loss is not a bound at tau > 0.

    Args, Shapes, Raises: as GumbelSoftmax.

    Source: Jang, Gu, Poole 2016, section 3.

    Example:
        >>> import jax
        >>> d = SoftOneHotCategorical(0.5, logits=jnp.zeros(4))
        >>> round(float(d.log_prob(d.rsample(jax.random.key(0)))), 4)
        -1.3863
    """

    binary = SoftBernoulli
    support = constraints.simplex

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        return self._draw(key, sample_shape)[0]


# --- density-scored -------------------------------------------------------------------------------


class DensityScored(Soft):
    """Scored as a density: a sample of this object by its noise, any other value by its log.

    The intermediates of a sample are a list of one OwnSample; a value without them is scored by
    its log.
    """

    scored_as = "density"
    has_enumerate_support = False  # with True, NUTS would leave out the site without a word

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    rsample = sample

    def _recall(self, value: Array, intermediates: list[OwnSample] | None) -> OwnSample | None:
        if not intermediates and self._validate_args:
            self._validate_sample(value)
        return intermediates[0] if intermediates else None

    def _log_simplex_density(self, draw: OwnSample | None, log_value: Array) -> Array:
        """Density of l with respect to the symmetric measure."""
        if draw is not None and draw.residue is not None:
            return F.exp_gumbel_softmax_own_log_prob(self.tau, log_value, draw.residue, self.finite)
        return F.exp_gumbel_softmax_log_prob(self.tau, self.a, log_value, self.finite)

    @property
    def mode(self) -> Array:
        refuse_form(self, "mode")

    def entropy(self) -> Array:
        refuse_form(self, "entropy")


class GumbelSigmoid(DensityScored, TransformedDistribution):
    """Relaxed Bernoulli: y = sigmoid(x) with logit x = (a + L) / tau, L standard logistic noise.

    x is Logistic(a / tau, 1 / tau); log p(y) = log p(x) - log(y (1 - y)) with respect to Lebesgue
    measure on (0, 1). Samples lie inside (0, 1). log_prob of a sample that this object has just
    drawn is computed from its logit x. Any other value must lie inside (0, 1) too; note that a
    rounded sigmoid can be exactly 0 or 1. For an integer 0 or 1, as `enumerate_support` gives it,
    log_prob is the log mass.

    A bit with probability 0 or 1 always has that value. Its log_prob is 0 there and -inf elsewhere,
    and it has no gradient. KL is inf if only one of two bits is certain.

    Args:
        temperature: tau > 0; a number, or an array that broadcasts against the batch shape.
        probs: probability of one, shape batch.
        logits: log-odds a, shape batch, nats.
        validate_args: check values (default: NumPyro's setting).

    Shapes, Raises: as GumbelSoftmax, without the last axis.

    Source: Maddison, Mnih, Teh 2016, appendix B (BinConcrete).

    Example:
        >>> GumbelSigmoid(1.0, logits=jnp.array(0.0)).log_prob(jnp.array(0.25))
        Array(0., dtype=float32)
    """

    arg_constraints = {**Relaxed.arg_constraints, "logits": numpyro_constraints.real}
    event_dims = 0
    mass_scored = SoftBernoulli
    support = constraints.open_unit_interval

    @property
    def base_dist(self) -> Logistic:
        a = F.without_sure(self.a, self.unsure)
        return Logistic(a / self.tau, 1 / self.tau, validate_args=False)

    @property
    def transforms(self) -> list[Transform]:
        return [constraints.SigmoidTransform(self.a, self.unsure)]

    def sample_with_intermediates(
        self, key: Array, sample_shape: Shape = ()
    ) -> tuple[Array, list[OwnSample]]:
        return self._draw(key, sample_shape)

    def log_prob(self, value: Array, intermediates: list[OwnSample] | None = None) -> Array:
        if not intermediates and not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            mass = self.mass_scored(0.5, logits=self.logits, validate_args=self._validate_args)
            return mass.log_prob(value)
        draw, a, unsure = self._recall(value, intermediates), self.a, self.unsure
        y = self._cast(value)
        x = F.from_unit_interval(F.without_sure(y, unsure, 0.5)) if draw is None else draw.log_value
        noise = None if draw is None else draw.residue
        density = F.gumbel_sigmoid_log_prob(self.tau, F.without_sure(a, unsure), x, noise)
        return F.score_sure(density, y, a, unsure)

    def _validate_sample(self, value: Array) -> None:
        super()._validate_sample(F.without_sure(value, self.unsure, 0.5))

    def enumerate_support(self, expand: bool = True) -> Array:
        return bit_support(self, expand).astype(int)

    def entropy(self) -> Array:
        refuse_form(self, "entropy of a bit")


class ExpGumbelSoftmax(DensityScored):
    """Log of a Gumbel-Softmax sample: l = log_softmax((a + g) / tau), g standard Gumbel noise.

    log p(l) = lgamma(K) + (K - 1) log tau + sum(a - tau l) - K logsumexp(a - tau l), a density
    with respect to dl_1 ... dl_{K-1} / y_K on the log-simplex. A log-vertex (0, -inf, ...) lies
    outside of the log-simplex; there log_prob is the log mass.

    Args, Shapes, Raises: as GumbelSoftmax; samples and values are logarithms.

    Source: Maddison, Mnih, Teh 2016, appendix C.3 (ExpConcrete).

    Example:
        >>> import jax
        >>> d = ExpGumbelSoftmax(0.5, logits=jnp.zeros(3))
        >>> d.rsample(jax.random.key(0), (4,)).shape
        (4, 3)
        >>> round(float(d.entropy()), 4)
        5.1931
    """

    support = constraints.log_simplex

    def sample_with_intermediates(
        self, key: Array, sample_shape: Shape = ()
    ) -> tuple[Array, list[OwnSample]]:
        _, drawn = self._draw(key, sample_shape)
        return drawn[0].log_value.astype(self.logits.dtype), drawn

    def log_prob(self, value: Array, intermediates: list[OwnSample] | None = None) -> Array:
        draw = self._recall(value, intermediates)
        l = self._cast(value) if draw is None else draw.log_value
        density = self._log_simplex_density(draw, l)
        if draw is not None:
            return density
        vertex = (l == 0).any(-1) & ((l == -jnp.inf).sum(-1) == l.shape[-1] - 1)
        return jnp.where(vertex, F.categorical_log_prob(self.a, jnp.exp(l), self.finite), density)

    def enumerate_support(self, expand: bool = True) -> Array:
        return jnp.log(one_hot_support(self, expand))

    @property
    def mode(self) -> Array:
        return F.tempered_log_softmax(self.tau, self.a)

    def entropy(self) -> Array:
        return F.exp_gumbel_softmax_entropy(self.tau, self.a, self.finite)


class GumbelSoftmax(DensityScored, TransformedDistribution):
    """Gumbel-Softmax (Concrete): y = softmax((a + g) / tau), g standard Gumbel noise.

    log p(y) = lgamma(K) + (K - 1) log tau + sum(a - (tau + 1) l) - K logsumexp(a - tau l)

    with l = log y, with respect to Lebesgue measure on the first K - 1 of the K coordinates. At low
    temperature samples are close to one-hot, at high temperature close to uniform. At each
    temperature argmax y has the probabilities pi = softmax(a).

    Samples lie inside the open simplex. log_prob(y, intermediates) of a sample is computed from its
    Gumbel noise, which is exact at any temperature; `sample_with_intermediates` returns the noise.
    A value without it is first clamped to the open simplex. At an exact vertex log_prob is the log
    mass log pi_k; `enumerate_support` gives the vertices.

    Args:
        temperature: tau > 0; a number, or an array that broadcasts against the batch shape.
        probs: unnormalised probabilities, shape batch + (K,).
        logits: unnormalised log-probabilities a, shape batch + (K,), nats; -inf masks a category.
        validate_args: check values (default: NumPyro's setting).

    Shapes: sample: sample + batch + (K,); log_prob: sample + batch, nats.

    Raises:
        ValueError: for a temperature that is not positive and finite or does not broadcast, for
            NaN or all -inf logits, and unless exactly one of probs and logits is given.
        TypeError: for parameters that are not floating-point.

    Source: Jang, Gu, Poole 2016, eq. 3; Maddison, Mnih, Teh 2016.

    Example:
        >>> import jax
        >>> d = GumbelSoftmax(jnp.array(0.5), probs=jnp.array([0.7, 0.2, 0.1]))
        >>> d.rsample(jax.random.key(0), (4,)).shape
        (4, 3)
        >>> round(float(d.log_prob(jnp.array([0.5, 0.25, 0.25]))), 4)
        -1.1543
    """

    binary = GumbelSigmoid
    mass_scored = SoftOneHotCategorical
    support = constraints.simplex

    @property
    def base_dist(self) -> ExpGumbelSoftmax:
        return ExpGumbelSoftmax(self.temperature, logits=self.logits, validate_args=False)

    @property
    def transforms(self) -> list[Transform]:
        return [constraints.ExpTransform(self.finite)]

    def sample_with_intermediates(
        self, key: Array, sample_shape: Shape = ()
    ) -> tuple[Array, list[OwnSample]]:
        return self._draw(key, sample_shape)

    def log_prob(self, value: Array, intermediates: list[OwnSample] | None = None) -> Array:
        draw = self._recall(value, intermediates)
        l = F.from_simplex(self._cast(value), self.finite) if draw is None else draw.log_value
        log_product = None if draw is None else draw.log_product
        if log_product is None:
            log_product = F.sum_finite(l, self.finite)
        density = self._log_simplex_density(draw, l) - log_product
        if draw is not None:
            return density
        value = self._cast(value)
        vertex = (value == 1).any(-1) & ((value != 0).sum(-1) == 1)
        return jnp.where(vertex, F.categorical_log_prob(self.a, value, self.finite), density)

    def enumerate_support(self, expand: bool = True) -> Array:
        return one_hot_support(self, expand)
