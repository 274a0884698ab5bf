"""Each bad input is refused at once, with what was expected and what was given."""

import math

import numpy as np
import pytest
from laws import KINDS, LAWS, name, select

from gs_ppl import reference

NAN, INF = math.nan, math.inf
VECTOR, BIT = select(event_dims=1), select(event_dims=0)
TEMPERED = select(tempered=True)


def good(backend, law, batch=(4,)):
    return backend.array(law.logits(np.random.default_rng(0), batch))


# --- temperature ----------------------------------------------------------------------------------


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("tau", [0.0, -1.0, NAN, INF, 0, -3])
@pytest.mark.parametrize("law", TEMPERED, ids=name)
def test_bad_number_as_temperature(backend, law, tau, validate):
    """A check of Python numbers is cheap, so that it is always made."""
    with pytest.raises(
        ValueError, match=f"{law.name}: temperature must be positive and finite, got"
    ):
        law(backend, tau, good(backend, law), validate_args=validate)


@pytest.mark.parametrize("tau", [[0.5, 0.0, 1, 1], [0.5, NAN, 1, 1], [-1.0] * 4, INF], ids=str)
@pytest.mark.parametrize("law", TEMPERED, ids=name)
def test_bad_array_as_temperature(backend, law, tau):
    tau = backend.array(tau)
    with pytest.raises(
        ValueError, match=f"{law.name}: temperature must be positive and finite, got"
    ):
        law(backend, tau, good(backend, law), validate_args=True)


@pytest.mark.parametrize("law", TEMPERED, ids=name)
def test_temperature_that_does_not_broadcast(backend, law):
    with pytest.raises(
        ValueError, match=r"must broadcast against the batch shape \(4,\), got shape \(3,\)"
    ):
        law(backend, backend.array(np.ones(3)), good(backend, law), validate_args=False)


@pytest.mark.parametrize("tau", ["0.5", True, None, [0.5]], ids=repr)
@pytest.mark.parametrize("law", TEMPERED, ids=name)
def test_temperature_of_a_wrong_type(backend, law, tau):
    with pytest.raises(TypeError, match="temperature must be a number or a floating"):
        law(backend, tau, good(backend, law))


def test_integer_temperature_array_is_refused(backend):
    law = TEMPERED[0]
    with pytest.raises(TypeError, match=r"a number or a floating .*int64"):
        law(backend, backend.array(2, "int64"), good(backend, law))


# --- logits and probs -----------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_both_or_neither(backend, law):
    a = good(backend, law)
    with pytest.raises(ValueError, match="exactly one of probs and logits is wanted, got both"):
        law(backend, 0.5, probs=a, logits=a)
    with pytest.raises(ValueError, match="exactly one of probs and logits is wanted, got neither"):
        law(backend, 0.5)


@pytest.mark.parametrize("law", VECTOR, ids=name)
@pytest.mark.parametrize(
    ("what", "values", "message"),
    [
        ("logits", [0.0, NAN], "logits must be neither NaN nor .inf, got"),
        ("logits", [0.0, INF], "logits must be neither NaN nor .inf, got"),
        ("logits", [[0.0, 1.0], [-INF, -INF]], "needs an unmasked category, got all logits -inf"),
        (
            "probs",
            [0.5, -0.5],
            "probs must be non-negative and finite, got values from -0.5 to 0.5",
        ),
        ("probs", [0.5, NAN], "probs must be non-negative and finite, got"),
        ("probs", [0.5, INF], "probs must be non-negative and finite, got"),
        ("probs", [[0.5, 0.5], [0.0, 0.0]], "needs an unmasked category, got all-zero probs"),
    ],
)
def test_bad_vectors(backend, law, what, values, message):
    with pytest.raises(ValueError, match=f"{law.name}: .*{message}"):
        law(backend, 0.5, **{what: backend.array(values)}, validate_args=True)


@pytest.mark.parametrize("law", BIT, ids=name)
@pytest.mark.parametrize(
    ("what", "values", "message"),
    [
        ("logits", [0.0, NAN], "logits must be numbers, not NaN, got"),
        ("probs", [0.5, -0.1], "probs must be between 0 and 1, got"),
        ("probs", [0.5, 1.1], "probs must be between 0 and 1, got"),
        ("probs", [0.5, NAN], "probs must be between 0 and 1, got"),
    ],
)
def test_bad_bits(backend, law, what, values, message):
    with pytest.raises(ValueError, match=f"{law.name}: .*{message}"):
        law(backend, 0.5, **{what: backend.array(values)}, validate_args=True)


@pytest.mark.parametrize("what", ["probs", "logits"])
@pytest.mark.parametrize("law", VECTOR, ids=name)
def test_no_last_axis(backend, law, what):
    with pytest.raises(ValueError, match=rf"{what} must have a last axis of categories.*\(\)"):
        law(backend, 0.5, **{what: backend.array(0.5)}, validate_args=False)
    with pytest.raises(ValueError, match=rf"{what} must have a last axis of categories.*\(3, 0\)"):
        law(backend, 0.5, **{what: backend.array(np.zeros((3, 0)))}, validate_args=False)


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_wrong_types(backend, law):
    for bad, came in [
        (backend.array([1, 0], "int64"), "int64"),
        ([0.1, 0.9], "list"),
        (0.5, "float"),
    ]:
        with pytest.raises(TypeError, match=f"logits must be a floating-point .*got .*{came}"):
            law(backend, 0.5, logits=bad)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "value"),
    [
        ("ExpGumbelSoftmax", [-1.0, -1.0, -1.0]),
        ("GumbelSoftmax", [0.5, 0.5, 0.5]),
        ("GumbelSoftmax", [1.5, -0.5, 0.0]),
        ("GumbelSoftmax", [NAN, 0.5, 0.5]),
        ("SoftOneHotCategorical", [0.2, 0.2, 0.2]),
        ("STGumbelSoftmax", [0.5, 0.5, 0.0]),
        ("STGumbelSoftmax", [1.0, 1.0, 0.0]),
        ("OneHotCategorical", [0.0, 0.0, 0.0]),
    ],
)
def test_value_outside_the_support(backend, law, value):
    law = next(x for x in LAWS if x.name == law)
    d = law(backend, 0.5, backend.array(np.zeros(3)), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(backend.array(value))


@pytest.mark.parametrize(
    ("law", "value"),
    [
        ("GumbelSigmoid", 1.0),
        ("GumbelSigmoid", 0.0),
        ("SoftBernoulli", 1.5),
        ("STGumbelSigmoid", 0.5),
    ],
)
def test_bit_outside_the_support(backend, law, value):
    d = getattr(backend.gs, law)(0.5, logits=backend.array(0.0), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        d.log_prob(backend.array(value))


# --- what is legal --------------------------------------------------------------------------------


@pytest.mark.parametrize("law", VECTOR, ids=name)
@pytest.mark.quick(*KINDS)
def test_probs_are_logits(backend, law):
    p = np.array([[0.2, 0.5, 0.3], [2.0, 1.0, 0.0]])  # unnormalised, and with a masked category
    with np.errstate(divide="ignore"):
        pair = [
            law(backend, 0.5, probs=backend.array(p)),
            law(backend, 0.5, backend.array(np.log(p))),
        ]
    one, other = (backend.numpy(backend.sample_and_score(d, 0, (3,))[1]) for d in pair)
    np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_allclose(
        backend.numpy(pair[0].probs), p / p.sum(-1, keepdims=True), rtol=1e-12
    )

    def score(p):
        return backend.sample_and_score(law(backend, 0.5, probs=p), 0, (3,))[1].sum()

    (gradient,) = backend.grad(score, backend.array(p))
    assert np.isfinite(gradient).all()
    assert gradient[1, 2] == 0


@pytest.mark.parametrize("law", BIT, ids=name)
def test_bit_probs_are_logits(backend, law):
    d = law(backend, 0.5, probs=backend.array([0.2, 0.9]))
    np.testing.assert_allclose(backend.numpy(d.logits), np.log([0.25, 9.0]), rtol=1e-12)


# --- masked categories ----------------------------------------------------------------------------

MASKED = np.array([[0.3, -INF, -1.0, 0.2], [-INF, -INF, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tau", [0.01, 0.7, 10.0])
@pytest.mark.parametrize("law", VECTOR, ids=name)
@pytest.mark.quick("float32")
def test_masked_categories(backend, law, tau, dtype):
    """K is the number of finite logits of the element; masked coordinates do not count."""
    d = law(backend, tau, backend.array(MASKED, dtype), validate_args=True)
    value, score = backend.sample_and_score(d, 0, (50,))
    value, score = backend.numpy(value), backend.numpy(score)
    empty = -INF if law.name == "ExpGumbelSoftmax" else 0.0
    masked = np.broadcast_to(np.isneginf(MASKED), value.shape)
    assert (value[masked] == empty).all()
    assert np.isfinite(value[~masked]).all()
    assert np.isfinite(score).all()
    for row in range(3):
        keep = np.isfinite(MASKED[row])
        sub = law(backend, tau, backend.array(MASKED[row, keep], dtype), validate_args=True)
        expected = backend.numpy(sub.log_prob(backend.array(value[:, row][:, keep], dtype)))
        again = backend.numpy(d.log_prob(backend.array(value, dtype)))[:, row]
        np.testing.assert_allclose(again, expected, rtol=2e-5, atol=2e-5)
        if dtype == "float64" and tau == 0.7:
            np.testing.assert_allclose(score[:, row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("law", VECTOR, ids=name)
@pytest.mark.quick("False")
def test_masked_gradients(backend, law, given):
    """Gradients in logits and temperature are finite, and 0 at masked logits."""
    tau = backend.array(0.5)
    copy = backend.array(
        backend.numpy(backend.sample(law(backend, tau, backend.array(MASKED)), 0, (5,)))
    )

    def score(a, t):
        d = law(backend, t, a)
        if given:
            return d.log_prob(copy).sum()
        value, own = backend.sample_and_score(d, 0, (5,))
        return own.sum() + (backend.F.sum_finite(value, a > -INF) ** 2).sum()

    gradients = backend.grad(lambda a, t: score(a, t) + 0 * t, backend.array(MASKED), tau)
    assert all(np.isfinite(g).all() for g in gradients)
    assert (gradients[0][np.isneginf(MASKED)] == 0).all()


@pytest.mark.parametrize("law", VECTOR, ids=name)
def test_weight_on_a_masked_category(backend, law):
    d = law(backend, 0.5, backend.array([0.0, -INF, 0.0]))
    value = np.array([0.0, 1.0, 0.0]) if law.hard else np.array([0.4, 0.2, 0.4])
    if law.name == "ExpGumbelSoftmax":
        value = np.log(value)
    assert backend.numpy(d.log_prob(backend.array(value))) == -INF


def test_no_weight_on_an_existing_category(backend):
    """If the category exists, l = -inf is outside of the log-simplex: density 0, not NaN."""
    d = backend.gs.ExpGumbelSoftmax(0.5, logits=backend.array(np.zeros(3)))
    half = backend.array(np.log([0.5, 0.5, 1.0])) + backend.array([0.0, 0.0, -INF])
    assert backend.numpy(d.log_prob(half)) == -INF


# --- vertices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", [[0.3, -0.7, 1.0], [0.3, -INF, 1.0]], ids=["full", "masked"])
@pytest.mark.parametrize("law", ["ExpGumbelSoftmax", "GumbelSoftmax"])
def test_vertices_have_mass(backend, law, logits):
    """Vertices are outside of the open simplex; their score is exactly log pi, at any
    temperature."""
    for tau in (0.01, 1.0, 100.0):
        d = getattr(backend.gs, law)(tau, logits=backend.array(logits))
        got = backend.numpy(d.log_prob(d.enumerate_support()))
        expected = reference.categorical_log_prob(logits, np.eye(3))
        np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_boundary_values_are_scored_at_the_nearest_point_inside(backend):
    """A value that has underflowed and lost its l: the score is finite, as documented."""
    d = backend.gs.GumbelSoftmax(0.5, logits=backend.array(np.zeros(3), "float32"))
    tiny = np.finfo(np.float32).tiny
    edge, inside = ([0.5, 0.5, low] for low in (0.0, tiny))
    got, expected = (backend.numpy(d.log_prob(backend.array(v, "float32"))) for v in (edge, inside))
    assert np.isfinite(got)
    assert got == expected


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_repr_names_the_parameters(backend, law):
    d = law(backend, 0.5, good(backend, law))
    assert repr(d).startswith(f"{law.name}(")
    assert "logits: (4" in repr(d)
    assert ("temperature: 0.5" in repr(d)) == law.tempered
