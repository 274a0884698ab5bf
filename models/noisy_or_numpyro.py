"""A noisy-or network of causes and findings, one bit per case and cause: model in NumPyro.

    z_nj ~ Bernoulli(prior),  p(finding_nf is off | z_n) = exp(-leak - z_n @ rates_f)

Every cause that is present may turn a finding on, independently of the others: a cause j alone
leaves it off with probability exp(-rates_jf), and with no cause at all it is off with probability
exp(-leak). Handlers decide how z is treated.
"""

import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.distributions import Bernoulli


def model(findings: Array, rates: Array, leak: float, prior: float) -> None:
    """The network; it has no parameters to fit.

    Args:
        findings: 0 or 1, floating-point, shape (cases, findings).
        rates: at least 0, shape (causes, findings).
        leak: rate without any cause, positive.
        prior: probability of each cause.
    """
    with numpyro.plate("cases", len(findings)):
        present = jnp.full(len(rates), prior)
        z = numpyro.sample("z", Bernoulli(present).to_event(1))
        total = leak + z @ rates
        # logit of 1 - exp(-total): precise for small totals and finite for large ones
        logits = total + jnp.log(-jnp.expm1(-total))
        numpyro.sample("findings", Bernoulli(logits=logits).to_event(1), obs=findings)
