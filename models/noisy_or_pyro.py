"""A noisy-or network of causes and findings, one bit per case and cause: model in Pyro.

    z_nj ~ Bernoulli(prior),  p(finding_nf is off | z_n) = exp(-leak - z_n @ rates_f)

Every cause that is present may turn a finding on, independently of the others: a cause j alone
leaves it off with probability exp(-rates_jf), and with no cause at all it is off with probability
exp(-leak). Handlers decide how z is treated.
"""

import pyro
import torch
from pyro.distributions import Bernoulli
from torch import Tensor


def model(findings: Tensor, rates: Tensor, leak: float, prior: float) -> None:
    """The network; it has no parameters to fit.

    Args:
        findings: 0 or 1, floating-point, shape (cases, findings).
        rates: at least 0, shape (causes, findings).
        leak: rate without any cause, positive.
        prior: probability of each cause.
    """
    with pyro.plate("cases", len(findings)):
        present = rates.new_tensor(prior).expand(len(rates))
        z = pyro.sample("z", Bernoulli(present).to_event(1))
        total = leak + z @ rates
        # logit of 1 - exp(-total): precise for small totals and finite for large ones
        logits = total + torch.log(-torch.expm1(-total))
        pyro.sample("findings", Bernoulli(logits=logits).to_event(1), obs=findings)
