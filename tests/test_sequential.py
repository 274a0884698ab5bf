"""Pyro's sequential enumeration of lowered sites."""

import numpy as np
import pytest

pytestmark = pytest.mark.only("pyro")
PRIOR = np.array([0.5, 0.3, 0.2])


@pytest.mark.parametrize("law", ["native", "ours"])
def test_sequential_enumeration(backend, law):
    """The loss equals that of parallel enumeration and the KL by hand; one trace for each class."""
    from pyro.infer.enum import iter_discrete_traces

    make = (backend.native if law == "native" else backend.gs).OneHotCategorical

    def program(p, how):
        def run():
            z = make(probs=backend.array(p))
            return backend.ppl.sample("z", z, infer={"enumerate": how} if how else {})

        return backend.gs.config_enumerate(run)

    q = np.array([0.9, 0.05, 0.05])
    expected = (q * np.log(q / PRIOR)).sum()
    for how in ("parallel", "sequential"):
        loss = backend.enumerated_loss(program(PRIOR, None), program(q, how), 0)
        assert loss == pytest.approx(expected, rel=1e-6)
    traces = list(iter_discrete_traces("flat", program(PRIOR, "sequential")))
    assert sorted(int(t.nodes["z"]["value"]) for t in traces) == [0, 1, 2]
