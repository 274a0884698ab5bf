"""First steps with the installed wheel and NumPyro as the only PPL; run.sh starts it."""

import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import SVI, Trace_ELBO

import gs_ppl.models
import gs_ppl.numpyro as gs
from gs_ppl import reference

assert Path(gs_ppl.__file__).is_relative_to(sys.prefix), gs_ppl.__file__
assert find_spec("pyro") is None
assert find_spec("torch") is None

DATA = jnp.array([-2.1, -1.9, 2.0, 2.2])
MEANS = jnp.array([-2.0, 2.0])


def model():
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", gs.GumbelSoftmax(0.5, logits=jnp.zeros(2)))
        numpyro.sample("x", numpyro.distributions.Normal(z @ MEANS, 1.0), obs=DATA)


def guide():
    logits = numpyro.param("logits", jnp.zeros((len(DATA), 2)))
    with numpyro.plate("data", len(DATA)):
        numpyro.sample("z", gs.GumbelSoftmax(0.5, logits=logits))


svi = SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
result = svi.run(jax.random.key(0), 20, progress_bar=False)
losses = result.losses.tolist()
assert np.isfinite(losses).all(), losses
assert result.params["logits"].argmax(-1).tolist() == [0, 0, 1, 1]

logits, y = [0.5, -1.0, 0.0], [0.2, 0.3, 0.5]
log_prob = gs.GumbelSoftmax(0.5, logits=jnp.array(logits)).log_prob(jnp.array(y))
expected = reference.gumbel_softmax_log_prob(0.5, logits, np.log(y))
assert abs(log_prob.item() - expected) < 1e-5, (log_prob, expected)

# compare and its table need no other extra; pictures and data sets name the extra that they need.


def program():
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", gs.OneHotCategorical(logits=jnp.zeros(2)))
        numpyro.sample("x", numpyro.distributions.Normal(gs.select(MEANS, z), 1.0), obs=DATA)


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

print(f"gs_ppl {gs_ppl.__version__} with NumPyro alone: loss {losses[0]:.2f} to {losses[-1]:.2f}")
