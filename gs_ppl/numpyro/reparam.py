"""Relaxed sites drawn from parameter-free noise: a well-conditioned space for HMC and NUTS."""

from typing import Any

import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.distributions import Gumbel, Logistic
from numpyro.infer.reparam import Reparam

from gs_ppl._shared.families import refuse_reparameterization
from gs_ppl._shared.wrappers import innermost, rewrap
from gs_ppl.numpyro import functional as F
from gs_ppl.numpyro.distributions import ExpGumbelSoftmax, Relaxed

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
    constant c has no effect on z, and is chosen such that sum exp(-g) = K.

    Raises:
        ValueError: naming the site, if it is observed or has another law.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import GumbelSoftmax, GumbelSoftmaxReparam
        >>> def model():
        ...     return numpyro.sample("z", GumbelSoftmax(0.3, logits=jnp.zeros(3)))
        >>> program = numpyro.handlers.reparam(model, config={"z": GumbelSoftmaxReparam()})
        >>> program = numpyro.handlers.seed(program, jax.random.key(0))
        >>> numpyro.handlers.trace(program).get_trace()["z_gumbel"]["value"].shape
        (3,)
    """

    def __repr__(self) -> str:
        return "GumbelSoftmaxReparam()"

    def __call__(self, name: str, fn: Any, obs: Array | None) -> tuple[None, Array]:
        law = innermost(fn)
        if not isinstance(law, Relaxed) or law.is_hard:
            refuse_reparameterization(name, f"got {type(law).__name__}")
        if obs is not None:
            refuse_reparameterization(name, "and this one is observed")
        noise = numpyro.sample(
            f"{name}_{'gumbel' if law.event_dims else 'logistic'}",
            rewrap(fn, noise_law),
        )
        return None, self.forward(law, noise)

    @staticmethod
    def forward(law: Relaxed, noise: Array) -> Array:
        """The sample that the noise gives."""
        if not law.event_dims:
            x = F.gumbel_sigmoid_sample(law.tau, F.without_sure(law.a, law.unsure), noise)
            return F.put_sure(F.to_unit_interval(x, law.logits.dtype), law.a, law.unsure)
        l = F.tempered_log_softmax(law.tau, law.a + noise)
        if isinstance(law, ExpGumbelSoftmax):
            return l.astype(law.logits.dtype)
        return F.to_simplex(l, law.logits.dtype, law.finite)

    @staticmethod
    def inverse(law: Relaxed, value: Array) -> Array:
        """Noise that gives the sample."""
        law = innermost(law)
        value = jnp.asarray(value, law.a.dtype)
        if not law.event_dims:
            x = F.from_unit_interval(F.without_sure(value, law.unsure, 0.5))
            return law.tau * x - F.without_sure(law.a, law.unsure)
        l = value if isinstance(law, ExpGumbelSoftmax) else F.from_simplex(value, law.finite)
        return F.gumbel_noise_of(law.tau, law.a, l, law.finite)


def noise_law(law: Relaxed) -> Any:
    zero = jnp.zeros(law.logits.shape, law.a.dtype)
    return Gumbel(zero).to_event(1) if law.event_dims else Logistic(zero)
