"""First steps with the installed wheel and Pyro as the only PPL; run.sh starts it."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

import gs_ppl.models
import gs_ppl.pyro as gs
from gs_ppl import reference

assert Path(gs_ppl.__file__).is_relative_to(sys.prefix), gs_ppl.__file__
assert find_spec("numpyro") is None
assert find_spec("jax") is None

DATA = torch.tensor([-2.1, -1.9, 2.0, 2.2])
MEANS = torch.tensor([-2.0, 2.0])


def model():
    with pyro.plate("data", len(DATA)):
        z = pyro.sample("z", gs.GumbelSoftmax(0.5, logits=torch.zeros(2)))
        pyro.sample("x", pyro.distributions.Normal(z @ MEANS, 1.0), obs=DATA)


def guide():
    logits = pyro.param("logits", torch.zeros(len(DATA), 2))
    with pyro.plate("data", len(DATA)):
        pyro.sample("z", gs.GumbelSoftmax(0.5, logits=logits))


pyro.set_rng_seed(0)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
losses = [svi.step() for _ in range(20)]
assert np.isfinite(losses).all(), losses
assert pyro.param("logits").argmax(-1).tolist() == [0, 0, 1, 1]

logits, y = [0.5, -1.0, 0.0], [0.2, 0.3, 0.5]
log_prob = gs.GumbelSoftmax(0.5, logits=torch.tensor(logits)).log_prob(torch.tensor(y))
expected = reference.gumbel_softmax_log_prob(0.5, logits, np.log(y))
assert abs(log_prob.item() - expected) < 1e-5, (log_prob, expected)

# compare and its table need no other extra; pictures and data sets name the extra that they need.


def program():
    with pyro.plate("data", len(DATA)):
        z = pyro.sample("z", gs.OneHotCategorical(logits=torch.zeros(2)))
        pyro.sample("x", pyro.distributions.Normal(gs.select(MEANS, z), 1.0), obs=DATA)


comparison = gs.compare(
    program, gs.AutoGumbelSoftmax(program), temperatures=[0.5], num_samples=20, progress_bar=False
)
table = str(comparison)
print(table)
assert "log evidence" in table, table
assert comparison.evidence.mean > comparison.elbo.mean
for absent, show in (("matplotlib", comparison.plot), ("xarray", comparison.to_dataset)):
    assert find_spec(absent) is None, absent
    message = ""
    try:
        show()
    except ImportError as error:
        message = str(error)
    assert "gs-ppl[compare]" in message, (absent, message)

print(f"gs_ppl {gs_ppl.__version__} with Pyro alone: loss {losses[0]:.2f} to {losses[-1]:.2f}")
