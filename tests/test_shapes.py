"""Shapes: batch x sample x event, temperatures, expand, to_event, mask, plates."""

import itertools

import numpy as np
import pytest
from laws import KINDS, LAWS, name, of_kinds, select

BATCHES = [(), (1,), (4,), (5, 4)]
SAMPLES = [(), (1,), (2, 3)]
QUICK = [  # categories, batch and sample; the whole product is long
    (1, (), (1,)),
    (3, (), ()),
    (3, (1,), (2, 3)),
    (1, (4,), ()),
    (3, (5, 4), (2, 3)),
]
ALL = [
    pytest.param(*shapes, marks=() if shapes in QUICK else pytest.mark.long)
    for shapes in itertools.product([1, 3], BATCHES, SAMPLES)
]


@pytest.mark.parametrize(("K", "batch", "sample"), ALL, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_shapes(backend, law, K, batch, sample):
    event = (K,) * law.event_dims
    d = law(backend, 0.5, backend.array(law.logits(np.random.default_rng(0), batch, K)))
    assert d.batch_shape == batch
    assert d.event_shape == event
    assert d.event_dim == law.event_dims
    value, score = backend.sample_and_score(d, 0, sample)
    assert value.shape == (*sample, *batch, *event)
    assert score.shape == (*sample, *batch)
    plain = backend.array(backend.numpy(value))
    assert d.log_prob(plain).shape == (*sample, *batch)
    np.testing.assert_allclose(
        backend.numpy(d.log_prob(plain)), backend.numpy(score), rtol=1e-6, atol=1e-6
    )
    assert d.probs.shape == (*batch, *event)


@of_kinds(
    "shapes",  # of the temperature, of the logits' batch and of the result
    [
        ((), (), ()),
        ((), (4,), (4,)),
        ((4,), (4,), (4,)),
        ((5, 1), (5, 4), (5, 4)),
        ((5, 1), (4,), (5, 4)),
        ((7, 1, 1), (5, 4), (7, 5, 4)),
        ((3,), (), (3,)),
        ((3,), (1,), (3,)),
    ],
    quick=(((7, 1, 1), (5, 4), (7, 5, 4)), ((3,), (), (3,))),
    laws=select(tempered=True),
)
@pytest.mark.quick(*KINDS)
def test_temperature_shapes(backend, law, shapes):
    """The temperature broadcasts with the batch shape, and acts at its place: at 8 places."""
    temperature, batch, result = shapes
    rng = np.random.default_rng(0)
    a, tau = law.logits(rng, batch), rng.uniform(0.4, 2.0, size=temperature)
    d = law(backend, backend.array(tau), backend.array(a))
    assert d.batch_shape == result
    assert d.temperature.shape == temperature
    value, score = backend.sample_and_score(d, 0, (2,))
    assert score.shape == (2, *result)
    value = backend.numpy(value)
    event = value.shape[1 + len(result) :]
    full_a = np.broadcast_to(a, result + event)
    full_tau = np.broadcast_to(tau, result)
    scores = backend.numpy(d.log_prob(backend.array(value)))
    everywhere = rng.permutation([*np.ndindex(*result)]).astype(int)[:8]
    for index in map(tuple, everywhere):
        one = law(backend, float(full_tau[index]), backend.array(full_a[index]))
        expected = backend.numpy(one.log_prob(backend.array(value[(slice(None), *index)])))
        np.testing.assert_allclose(scores[(slice(None), *index)], expected, rtol=1e-9, atol=1e-9)


@of_kinds("wide", [(4,), (2, 4), (2, 1, 4)], quick=((2, 1, 4),))
@pytest.mark.quick("(2, 1, 4)")
@pytest.mark.quick(*KINDS)
def test_expand(backend, law, wide):
    a = law.logits(np.random.default_rng(0), (4,))
    tau = backend.array(np.linspace(0.5, 2, 4))
    d = law(backend, tau, backend.array(a)).expand(wide)
    assert type(d) is getattr(backend.gs, law.name)
    assert d.batch_shape == wide
    value, score = backend.sample_and_score(d, 0, (3,))
    assert value.shape[: -1 if law.event_dims else None] == (3, *wide) == score.shape
    drawn = backend.numpy(value).reshape(-1)
    assert law.hard or len(np.unique(drawn)) > 0.9 * drawn.size  # draws are independent, not copies
    if law.scored_as == "mass":
        assert d.enumerate_support().shape[1 : 1 + len(wide)] == wide
        assert d.entropy().shape == d.probs.shape[: len(wide)] == wide


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_expand_of_a_unit_axis(backend, law):
    d = law(backend, 0.5, backend.array(law.logits(np.random.default_rng(0), (5, 1))))
    assert backend.sample(d.expand((2, 5, 4)), 0).shape[:3] == (2, 5, 4)
    with pytest.raises((ValueError, RuntimeError)):
        d.expand((6, 4))


@pytest.mark.parametrize("law", LAWS, ids=name)
@pytest.mark.quick(*KINDS)
def test_to_event(backend, law):
    """Event axes add up, and a sample of the law has its exact score at any temperature."""
    a = backend.array(law.logits(np.random.default_rng(0), (5, 4)), "float32")
    d = law(backend, 0.01, a)
    _, score = backend.sample_and_score(d, 0, (2,))
    joint = d.to_event(1)
    assert joint.batch_shape == (5,)
    assert joint.event_dim == 1 + law.event_dims
    _, joint_score = backend.sample_and_score(joint, 0, (2,))
    np.testing.assert_allclose(backend.numpy(joint_score), backend.numpy(score).sum(-1), rtol=1e-5)


@of_kinds(
    "nested",
    ["mask", "mask of to_event", "to_event of mask", "expand, mask"],
    quick=("mask of to_event",),
)
@pytest.mark.quick(*KINDS)
def test_mask(backend, law, nested):
    a = backend.array(law.logits(np.random.default_rng(0), (3, 2)), "float32")
    keep = np.array([[True], [False], [True]])
    d = law(backend, 0.01, a)
    _, score = backend.sample_and_score(d, 0)
    expected = backend.numpy(score) * keep
    if nested == "mask of to_event":
        d, expected = backend.mask(d.to_event(1), keep[:, 0]), expected.sum(-1)
    elif nested == "to_event of mask":
        d, expected = backend.mask(d, keep).to_event(1), expected.sum(-1)
    elif nested == "expand, mask":
        d = backend.mask(d.expand((3, 2)), keep)
    else:
        d = backend.mask(d, keep)
    _, got = backend.sample_and_score(d, 0)
    np.testing.assert_allclose(backend.numpy(got), expected, rtol=1e-5)


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_infer_shapes(backend, law):
    """From shapes alone, by keyword or position, as for an instance."""
    cls, vector = getattr(backend.gs, law.name), (3,) * law.event_dims
    for tau, batch, expected in (((5, 1), (5, 4), (5, 4)), ((), (), ()), ((2, 1), (4,), (2, 4))):
        temperature = (tau,) if law.tempered else ()
        expected = expected if law.tempered else batch
        for what in ("probs", "logits"):
            assert cls.infer_shapes(*temperature, **{what: batch + vector}) == (expected, vector)
        assert cls.infer_shapes(*temperature, batch + vector) == (expected, vector)
        made = law(backend, backend.array(np.ones(tau)), backend.array(np.zeros(batch + vector)))
        assert (tuple(made.batch_shape), tuple(made.event_shape)) == (expected, vector)
    with pytest.raises(ValueError, match=f"{law.name}: the shape of exactly one of probs and"):
        cls.infer_shapes()
