"""Relaxed sites drawn from parameter-free noise: a well-conditioned space for HMC and NUTS."""

from typing import Any

import pyro
from pyro.distributions import Delta, Gumbel, Logistic
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from gs_ppl._shared.families import refuse_reparameterization
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.pyro import functional as F
from gs_ppl.pyro.distributions import ExpGumbelSoftmax, Relaxed

__all__ = ["GumbelSoftmaxReparam"]


class GumbelSoftmaxReparam(Reparam):
    """Draws a relaxed site as a function of noise that has no parameters.

    z = softmax((a + g) / tau), with K independent standard Gumbel variables g at the site
    "{name}_gumbel" (for a bit z = sigmoid((a + L) / tau), one standard logistic variable L at the
    site "{name}_logistic"); z itself becomes deterministic. At low temperature z concentrates
    near the vertices of the simplex, while g stays as wide as its prior. For latent sites with a
    soft law.
    (TransformReparam takes the log of z, or the logit of a bit, instead.)

    `inverse(law, z)` is the noise that gives z, for an initial value: g = tau log z - a + c. The
    constant c has no effect on z, and is chosen such that sum exp(-g) = K. (Pyro's reparameterizer
    of this name has tau z, which is wrong, instead of tau log z.)

    Raises:
        ValueError: for a site that is observed, or has another law.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import GumbelSoftmax, GumbelSoftmaxReparam
        >>> def model():
        ...     return pyro.sample("z", GumbelSoftmax(0.3, logits=torch.zeros(3)))
        >>> reparameterized = pyro.poutine.reparam(model, {"z": GumbelSoftmaxReparam()})
        >>> pyro.poutine.trace(reparameterized).get_trace().nodes["z_gumbel"]["value"].shape
        torch.Size([3])
    """

    def __repr__(self) -> str:
        return "GumbelSoftmaxReparam()"

    def apply(self, msg: dict[str, Any]) -> dict[str, Any]:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        law = innermost(fn)
        if not isinstance(law, Relaxed) or law.is_hard:
            refuse_reparameterization(name, f"got {type(law).__name__}")
        if msg["is_observed"]:
            refuse_reparameterization(name, "and this one is observed")
        noise = pyro.sample(
            f"{name}_{'gumbel' if law.event_dims else 'logistic'}",
            rewrap(fn, noise_law),
            obs=None if value is None else self.inverse(law, value),
            infer={"is_observed": False},  # obs is only the initial value
        )
        value = self.forward(law, noise) if value is None else value
        return {
            "fn": Delta(value, event_dim=fn.event_dim).mask(False),
            "value": value,
            "is_observed": True,
        }

    @staticmethod
    def forward(law: Relaxed, noise: Tensor) -> Tensor:
        """The sample that the noise gives."""
        if not law.event_dims:
            x = F.gumbel_sigmoid_sample(law.tau, F.without_sure(law.a, law.unsure), noise)
            return F.put_sure(F.to_unit_interval(x, law.logits.dtype), law.a, law.unsure)
        l = F.tempered_log_softmax(law.tau, law.a + noise)
        if isinstance(law, ExpGumbelSoftmax):
            return l.to(law.logits.dtype)
        return F.to_simplex(l, law.logits.dtype, law.finite)

    @staticmethod
    def inverse(law: Relaxed, value: Tensor) -> Tensor:
        """Noise that gives the sample."""
        law = innermost(law)
        value = value.to(law.a.dtype)
        if not law.event_dims:
            x = F.from_unit_interval(F.without_sure(value, law.unsure, 0.5))
            return law.tau * x - F.without_sure(law.a, law.unsure)
        l = value if isinstance(law, ExpGumbelSoftmax) else F.from_simplex(value, law.finite)
        return F.gumbel_noise_of(law.tau, law.a, l, law.finite)


def noise_law(law: Relaxed) -> Gumbel | Logistic:
    zero, one = law.a.new_zeros(law.logits.shape), law.a.new_ones(())
    return Gumbel(zero, one).to_event(1) if law.event_dims else Logistic(zero, one)
