"""The Gumbel-Softmax family for Pyro: soft or hard samples, scored as a density or as a mass."""

import torch
from pyro.distributions import Logistic
from torch import Size, Tensor
from torch.distributions import Transform, TransformedDistribution
from torch.distributions import constraints as torch_constraints

from gs_ppl._shared.laws import refuse_form
from gs_ppl.pyro import constraints
from gs_ppl.pyro import functional as F
from gs_ppl.pyro._base import LogitsDistribution, OwnSample
from gs_ppl.pyro.functional import Temperature

__all__ = [
    "ExpGumbelSoftmax",
    "GumbelSigmoid",
    "GumbelSoftmax",
    "OneHotCategorical",
    "SoftBernoulli",
    "SoftOneHotCategorical",
]


class Relaxed(LogitsDistribution):
    """A law with a temperature; draws a relaxed sample, its log and the input of its score."""

    def __init__(
        self,
        temperature: Temperature,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, probs, logits, validate_args)

    def _draw(self, sample_shape: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, l and the residue of the noise; for a bit, sample, logit and noise."""
        shape, dtype = self._extended_shape(sample_shape), self.logits.dtype
        a, tau = self.a, self.tau
        if not self.event_dims:
            noise = F.logistic_noise(shape, dtype=a.dtype, device=a.device)
            x = F.gumbel_sigmoid_sample(tau, F.without_sure(a, self.unsure), noise)
            return F.put_sure(F.to_unit_interval(x, dtype), a, self.unsure), x, noise
        noise = F.noise_to_draw_from(shape, dtype=a.dtype, device=a.device)
        y, l, residue = F.gumbel_softmax_draw_(tau, a, noise, self.finite)
        return y if dtype == a.dtype else F.to_simplex(l, dtype, self.finite), l, residue


class Soft(Relaxed):
    """A soft sample: its mean and variance are integrals over the simplex."""

    @property
    def mean(self) -> Tensor:
        refuse_form(self, "mean")

    @property
    def variance(self) -> Tensor:
        refuse_form(self, "variance")


# --- mass-scored ----------------------------------------------------------------------------------


def one_hot_support(distribution: LogitsDistribution, expand: bool) -> Tensor:
    """The K vertices, shape (K,) + batch + (K,); without `expand` all batch sizes are 1."""
    K, batch_shape = distribution.logits.shape[-1], distribution.batch_shape
    values = torch.eye(K, dtype=distribution.logits.dtype, device=distribution.logits.device)
    values = values.reshape(K, *(1,) * len(batch_shape), K)
    return values.expand(K, *batch_shape, K) if expand else values


def bit_support(distribution: LogitsDistribution, expand: bool) -> Tensor:
    """0 and 1, shape (2,) + batch; without `expand` all batch sizes are 1."""
    batch_shape = distribution.batch_shape
    values = distribution.logits.new_tensor([0.0, 1.0]).reshape(2, *(1,) * len(batch_shape))
    return values.expand(2, *batch_shape) if expand else values


class CategoricalScored(LogitsDistribution):
    """Scored as the categorical law: log mass sum(value log pi), linear in the value."""

    scored_as = "mass"
    has_enumerate_support = True
    support: torch_constraints.Constraint = torch_constraints.one_hot

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return F.categorical_log_prob(self.a, value.to(self.a.dtype), self.finite)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return one_hot_support(self, expand)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        return F.one_hot_argmax(self.logits)

    def entropy(self) -> Tensor:
        return F.categorical_entropy(self.a, self.finite)


class BernoulliScored(LogitsDistribution):
    """Scored as the Bernoulli law: value log p + (1 - value) log(1 - p), linear in the value."""

    arg_constraints = {**Relaxed.arg_constraints, "logits": torch_constraints.real}
    event_dims = 0
    scored_as = "mass"
    has_enumerate_support = True
    support: torch_constraints.Constraint = torch_constraints.boolean

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return F.bernoulli_log_prob(self.a, value.to(self.a.dtype), self.unsure)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return bit_support(self, expand)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def entropy(self) -> Tensor:
        return F.bernoulli_entropy(self.a, self.unsure)


class OneHotCategorical(CategoricalScored):
    """One-hot categorical: one_hot(k) with probability pi_k; samples have no gradient.

    log p(value) = sum(value log pi) is linear in the value. So it has a gradient at a
    straight-through sample. Pyro's own class uses argmax, which has no gradient.

    Args:
        probs, logits, validate_args: as GumbelSoftmax.

    Shapes: sample: sample + batch + (K,); log_prob: sample + batch, nats.

    Example:
        >>> d = OneHotCategorical(logits=torch.zeros(4))
        >>> d.log_prob(d.sample())
        tensor(-1.3863)
    """

    arg_constraints = {"logits": torch_constraints.real_vector}
    has_rsample = False
    has_temperature = False
    is_hard = True

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(None, probs, logits, validate_args)

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        a, shape = self.a.detach(), self._extended_shape(sample_shape)
        noise = F.noise_to_draw_from(shape, dtype=a.dtype, device=a.device)
        return F.one_hot_argmax(a - noise.log()).to(self.logits.dtype)


class SoftBernoulli(Soft, BernoulliScored):
    """Soft bit y = sigmoid((a + L) / tau); its log_prob is y log p + (1 - y) log(1 - p).

    Args, Shapes, Raises: as GumbelSigmoid.

    Example:
        >>> d = SoftBernoulli(0.5, logits=torch.tensor(0.0))
        >>> d.log_prob(d.rsample())
        tensor(-0.6931)
    """

    support = torch_constraints.unit_interval

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        return self._draw(sample_shape)[0]


class SoftOneHotCategorical(Soft, CategoricalScored):
    """Soft sample y = softmax((a + g) / tau); its log_prob is sum(y log pi).

    The paper's objective: if model and guide have it, TraceMeanField_ELBO uses the exact
    categorical KL. Its law converges to the categorical as tau -> 0. It is not a density, so that
    the loss is not a bound at tau > 0.

    Args, Shapes, Raises: as GumbelSoftmax.

    Source: Jang, Gu, Poole 2016, section 3.

    Example:
        >>> d = SoftOneHotCategorical(0.5, logits=torch.zeros(4))
        >>> d.log_prob(d.rsample())
        tensor(-1.3863)
    """

    binary = SoftBernoulli
    support = constraints.simplex

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        return self._draw(sample_shape)[0]


# --- density-scored -------------------------------------------------------------------------------


class DensityScored(Soft):
    """Scored as a density: a sample of this object by its noise, any other value by its log."""

    scored_as = "density"
    has_enumerate_support = False  # with True, NUTS would leave out the site without a word

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _recall(self, value: Tensor) -> OwnSample | None:
        draw = OwnSample.of(value)
        if draw is None and self._validate_args:
            self._validate_sample(value)
        return draw

    def _log_simplex_density(self, draw: OwnSample | None, log_value: Tensor) -> Tensor:
        """Density of l with respect to the symmetric measure."""
        if draw is not None and draw.scored_by_noise(self):
            return F.exp_gumbel_softmax_own_log_prob(self.tau, log_value, draw.residue, self.finite)
        return F.exp_gumbel_softmax_log_prob(self.tau, self.a, log_value, self.finite)

    @property
    def mode(self) -> Tensor:
        refuse_form(self, "mode")

    def entropy(self) -> Tensor:
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
        temperature: tau > 0; a number, or a tensor that broadcasts against the batch shape.
        probs: probability of one, shape batch.
        logits: log-odds a, shape batch, nats.
        validate_args: check values (default: Pyro's setting).

    Shapes, Raises: as GumbelSoftmax, without the last axis.

    Source: Maddison, Mnih, Teh 2016, appendix B (BinConcrete).

    Example:
        >>> GumbelSigmoid(1.0, logits=torch.tensor(0.0)).log_prob(torch.tensor(0.25))
        tensor(0.)
    """

    arg_constraints = {**Relaxed.arg_constraints, "logits": torch_constraints.real}
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

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        y, x, noise = self._draw(sample_shape)
        return OwnSample.attach(y, self, x, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            mass = self.mass_scored(0.5, logits=self.logits, validate_args=self._validate_args)
            return mass.log_prob(value)
        draw, a, unsure = self._recall(value), self.a, self.unsure
        y = value.to(a.dtype)
        x = F.from_unit_interval(F.without_sure(y, unsure, 0.5)) if draw is None else draw.log_value
        noise = draw.residue if draw is not None and draw.scored_by_noise(self) else None
        density = F.gumbel_sigmoid_log_prob(self.tau, F.without_sure(a, unsure), x, noise)
        return F.score_sure(density, y, a, unsure)

    def _validate_sample(self, value: Tensor) -> None:
        super()._validate_sample(F.without_sure(value, self.unsure, 0.5))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return bit_support(self, expand).long()

    def entropy(self) -> Tensor:
        refuse_form(self, "entropy of a bit")


class ExpGumbelSoftmax(DensityScored):
    """Log of a Gumbel-Softmax sample: l = log_softmax((a + g) / tau), g standard Gumbel noise.

    log p(l) = lgamma(K) + (K - 1) log tau + sum(a - tau l) - K logsumexp(a - tau l), a density
    with respect to dl_1 ... dl_{K-1} / y_K on the log-simplex. A log-vertex (0, -inf, ...) lies
    outside of the log-simplex; there log_prob is the log mass.

    Args, Shapes, Raises: as GumbelSoftmax; samples and values are logarithms.

    Source: Maddison, Mnih, Teh 2016, appendix C.3 (ExpConcrete).

    Example:
        >>> d = ExpGumbelSoftmax(0.5, logits=torch.zeros(3))
        >>> d.rsample((4,)).shape
        torch.Size([4, 3])
        >>> d.entropy()
        tensor(5.1931)
    """

    support = constraints.log_simplex

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        _, l, residue = self._draw(sample_shape)
        return OwnSample.attach(l.contiguous().to(self.logits.dtype), self, l, residue)

    def log_prob(self, value: Tensor) -> Tensor:
        draw = self._recall(value)
        if draw is not None:
            # the logits cancel, but stay in the graph: their gradient is 0, not absent
            return self._log_simplex_density(draw, draw.log_value) + 0.0 * draw.log_value.amax(-1)
        l = value.to(self.a.dtype)
        vertex = (l == 0).any(-1) & (l.isneginf().sum(-1) == l.shape[-1] - 1)
        inside = l.masked_fill(vertex.unsqueeze(-1), 0.0)  # keeps NaN out of the gradient
        mass = F.categorical_log_prob(self.a, l.exp(), self.finite)
        return self._log_simplex_density(None, inside).where(~vertex, mass)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return one_hot_support(self, expand).log()

    @property
    def mode(self) -> Tensor:
        return F.tempered_log_softmax(self.tau, self.a)

    def entropy(self) -> Tensor:
        return F.exp_gumbel_softmax_entropy(self.tau, self.a, self.finite)


class GumbelSoftmax(DensityScored, TransformedDistribution):
    """Gumbel-Softmax (Concrete): y = softmax((a + g) / tau), g standard Gumbel noise.

    log p(y) = lgamma(K) + (K - 1) log tau + sum(a - (tau + 1) l) - K logsumexp(a - tau l)

    with l = log y, with respect to Lebesgue measure on the first K - 1 of the K coordinates. At low
    temperature samples are close to one-hot, at high temperature close to uniform. At each
    temperature argmax y has the probabilities pi = softmax(a).

    Samples lie inside the open simplex. log_prob of a sample that this object has just drawn is
    computed from its Gumbel noise, which is exact at any temperature. Any other value, also a
    clone, slice or copy of a sample, is first clamped to the open simplex. At an exact vertex
    log_prob is the log mass log pi_k; `enumerate_support` gives the vertices.

    Args:
        temperature: tau > 0; a number, or a tensor that broadcasts against the batch shape.
        probs: unnormalised probabilities, shape batch + (K,).
        logits: unnormalised log-probabilities a, shape batch + (K,), nats; -inf masks a category.
        validate_args: check values (default: Pyro's setting).

    Shapes: sample: sample + batch + (K,); log_prob: sample + batch, nats.

    Raises:
        ValueError: for a temperature that is not positive and finite or does not broadcast, for
            NaN or all -inf logits, and unless exactly one of probs and logits is given.
        TypeError: for parameters that are not floating-point.

    Source: Jang, Gu, Poole 2016, eq. 3; Maddison, Mnih, Teh 2016.

    Example:
        >>> d = GumbelSoftmax(torch.tensor(0.5), probs=torch.tensor([0.7, 0.2, 0.1]))
        >>> d.rsample((4,)).shape
        torch.Size([4, 3])
        >>> d.log_prob(torch.tensor([0.5, 0.25, 0.25]))
        tensor(-1.1543)
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

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        y, l, residue = self._draw(sample_shape)
        return OwnSample.attach(y, self, l, residue)

    def log_prob(self, value: Tensor) -> Tensor:
        draw = self._recall(value)
        l = F.from_simplex(value.to(self.a.dtype), self.finite) if draw is None else draw.log_value
        density = self._log_simplex_density(draw, l) - F.sum_finite(l, self.finite)
        if draw is not None:
            return density
        vertex = (value == 1).any(-1) & ((value != 0).sum(-1) == 1)
        return density.where(
            ~vertex, F.categorical_log_prob(self.a, value.to(self.a.dtype), self.finite)
        )

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return one_hot_support(self, expand)
