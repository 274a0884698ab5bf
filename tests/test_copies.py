"""Copies of a law: by copy, deepcopy and pickle."""

import copy
import pickle

import numpy as np
import pytest
from laws import KINDS, LAWS, name


def logits(law, batch=(4,), K=3):
    return law.logits(np.random.default_rng(0), batch, K)


@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, copy.copy, lambda d: pickle.loads(pickle.dumps(d))]
)
@pytest.mark.quick(*KINDS)
def test_copies(backend, law, clone):
    d = law(backend, 0.5, backend.array(logits(law)))
    other = clone(d)
    assert type(other) is type(d)
    assert other.batch_shape == d.batch_shape
    one, two = (backend.sample_and_score(x, 0) for x in (d, other))
    for x, y in zip(one, two, strict=True):
        np.testing.assert_array_equal(backend.numpy(x), backend.numpy(y))
