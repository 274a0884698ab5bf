"""Refusals of check other than pairings of laws, each with a similar program that is accepted."""

from functools import partial

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import norm

PRIOR = np.array([0.80, 0.15, 0.05])
TABLE = np.array([-2.0, 0.5, 2.0])
NO_GRADIENT = "site 'z': the model reads its relaxed value in a way that has no gradient"
MEAN_FIELD = "TraceMeanField_ELBO"


def check(backend, model, elbo=MEAN_FIELD, guide=None, family="GumbelSoftmax", **options):
    gs = backend.gs
    family = getattr(gs, family)
    guide = guide or gs.AutoGumbelSoftmax(model, 0.5, family=family, **options)
    loss = getattr(backend.infer, elbo)()
    gs.check(gs.relax(model, 0.5, family=family, **options), guide, loss)


@pytest.fixture(autouse=True)
def _fresh_parameters(backend):
    getattr(backend.ppl, "clear_param_store", lambda: None)()  # NumPyro has no store


# --- reading a relaxed value ----------------------------------------------------------------------


def reader(backend, loc, *, bit=False, rows=None, data=0.4):
    """x ~ Normal(loc(z), 1), with or without a plate of rows."""
    ppl, array = backend.ppl, backend.array

    def body(x):
        if bit:
            z = ppl.sample("z", backend.native.Bernoulli(probs=array(0.3)))
        else:
            z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))
        ppl.sample("x", backend.native.Normal(loc(backend, z), 1.0), obs=array(x))

    def model():
        if rows is None:
            body(data)
        else:
            with ppl.plate("rows", rows):
                body(np.linspace(-2, 2, rows))

    return model


def relu(x):
    return (x + abs(x)) / 2


VECTOR_READERS = {  # loc of z; whether its gradient follows z (not for a compared mean)
    "select": (lambda b, z: b.gs.select(b.array(TABLE), z), True),
    "cubic": (lambda b, z: (z**3 * b.array(TABLE)).sum(-1), True),
    "kink": (lambda b, z: relu(z @ b.array(TABLE) - 0.3), True),
    "steep": (lambda b, z: 1 / (1 + (40 * (z[..., 0] - 0.3)) ** 2), True),
    "root": (lambda b, z: ((z + 1e-4) ** 0.1 * b.array(TABLE)).sum(-1), True),
    "equal components": (lambda b, z: b.array(np.ones(3))[z.argmax(-1)], True),
    "unused": (lambda b, z: z.sum(-1) * 0.0 + 1.0, True),
    "argmax": (lambda b, z: b.array(TABLE)[z.argmax(-1)], True),
    "round": (lambda b, z: z.round() @ b.array(TABLE), True),
    "threshold": (lambda b, z: ((z > 0.7) * b.array(TABLE)).sum(-1), True),
    "positive": (lambda b, z: ((z > 0) * b.array(TABLE)).sum(-1), True),
    "half": (lambda b, z: 0.3 * z @ b.array(TABLE) + b.array(TABLE)[z.argmax(-1)], True),
    "mean compared": (lambda b, z: (z @ b.array(TABLE) > 0.3) * 4.0 - 2, False),
    "mean rounded": (lambda b, z: (z @ b.array(TABLE)).round(), False),
    "mean divided": (lambda b, z: z @ b.array(TABLE) // 0.5, False),  # in torch a RuntimeError
    "mean halved": (lambda b, z: z @ b.array(TABLE) * 0.3 + (z @ b.array(TABLE) > 0.3), False),
}


@pytest.mark.parametrize("family", ["GumbelSoftmax", "STGumbelSoftmax"])
@pytest.mark.parametrize("name", VECTOR_READERS)
@pytest.mark.quick("STGumbelSoftmax")
def test_vector_is_read(backend, name, family):
    loc, honest = VECTOR_READERS[name]
    model = reader(backend, loc)
    if honest:
        check(backend, model, family=family)
        return
    with pytest.raises(ValueError, match=NO_GRADIENT):
        check(backend, model, family=family)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("follows", [True, False])
def test_a_derivative_backward_alone(backend, follows):
    """JAX has no forward derivative of a custom_vjp; its backward one may or may not follow the
    value."""
    import jax

    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g if follows else 0 * g,))
    model = reader(backend, lambda b, z: square(z @ b.array(TABLE)))
    if follows:
        check(backend, model)
        return
    with pytest.raises(ValueError, match=NO_GRADIENT):
        check(backend, model)


@pytest.mark.only("numpyro")
def test_no_derivative_at_all(backend):
    """The error has the message of JAX, which names the function."""
    import jax

    def loc(b, z):
        positive = jax.numpy.exp(z @ b.array(TABLE))
        return jax.lax.igamma_grad_a(positive, positive)

    model = reader(backend, loc)
    rule = ".*Differentiation rule for 'igamma_grad_a'"
    with pytest.raises(ValueError, match=NO_GRADIENT + rule):
        check(backend, model)


@pytest.mark.parametrize("of_all", [False, True], ids=["rows of six", "one datum for all"])
@pytest.mark.parametrize(
    ("size", "drawn"),
    [(6, None), (6, 3), (5, None), (1, None)],
    ids=["all", "subsampled", "plate too small", "plate of one"],
)
def test_rows_of_data_and_of_their_plate(backend, size, drawn, of_all):
    """Six rows of data fit only a plate of six; one datum is the same for all rows."""
    ppl, native, array = backend.ppl, backend.native, backend.array
    data = array(np.zeros(1 if of_all else 6))

    def model():
        with ppl.plate("rows", size, subsample_size=drawn):
            z = ppl.sample("z", native.Categorical(probs=array(PRIOR)))
            ppl.sample("x", native.Normal(array(TABLE)[z], 1.0), obs=data)

    if of_all or (drawn or size) == 6:
        check(backend, model)
        return
    message = f"site 'x': its data have 6 rows along plate 'rows', which has {drawn or size}:"
    with pytest.raises(ValueError, match=message):
        check(backend, model)


@pytest.mark.only("numpyro")
def test_an_error_of_the_program_itself(backend):
    """The probe raises it as it is: the program has no value, which is not a missing gradient."""
    ppl, native, array = backend.ppl, backend.native, backend.array

    def model():
        z = ppl.sample("z", native.Categorical(probs=array(PRIOR)))
        ppl.sample("x", native.Normal(array(TABLE)[z] * array(np.ones(5)), 1.0), obs=np.zeros(6))

    with pytest.raises(TypeError, match="incompatible shapes"):
        check(backend, model)


@pytest.mark.parametrize("logits", [(14.0, 7.0), (-14.0, -7.0)], ids=["of 0", "of 1"])
def test_the_score_of_a_bit_below(backend, logits):
    """The score of one value of the bit jumps; the other value is almost certain."""
    ppl, native, array = backend.ppl, backend.native, backend.array

    def model():
        z = ppl.sample("z", native.Bernoulli(probs=array(0.5)))
        far = backend.where(array(TABLE)[1] * z > 0.3, *logits)
        ppl.sample("b", native.Bernoulli(logits=far))
        ppl.sample("x", native.Normal(2 * z, 1.0), obs=array(0.4))

    with pytest.raises(ValueError, match=NO_GRADIENT):
        check(backend, model)


def test_what_is_read_in_logs(backend):
    """The probe moves the log of the weight, which is what the program reads."""
    ppl, array = backend.ppl, backend.array

    def model():
        z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))
        loc = backend.where(z[..., 0] > -0.7, 1.0, -1.0)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(0.4))

    with pytest.raises(ValueError, match=NO_GRADIENT):
        check(backend, model, family="ExpGumbelSoftmax", objective="relaxed")


BIT_READERS = {
    "linear": (lambda b, z: 4 * z - 2, True),
    "equal": (lambda b, z: (z == 1) * 4.0 - 2, True),
    "cast": (lambda b, z: (z > 0.5) * 4.0 - 2, True),
    "mean compared": (lambda b, z: (z * b.array(4.0) > 2) * 4.0 - 2, False),
}


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("name", BIT_READERS)
@pytest.mark.quick("None")
def test_bit_is_read(backend, name, rows):
    """Jumps are found also if those of different rows cancel in their sum."""
    loc, honest = BIT_READERS[name]
    model = reader(backend, loc, bit=True, rows=rows)
    if honest:
        check(backend, model)
        return
    with pytest.raises(ValueError, match=NO_GRADIENT):
        check(backend, model)


CHOICES = {  # a law, and whether its value stops
    "bit": (lambda gs, native, p: native.Bernoulli(probs=p), lambda b: b),
    "class": (lambda gs, native, p: gs.OneHotCategorical(probs=p), lambda z: z[..., 1] > 0.5),
}


@pytest.mark.parametrize("within", [False, True], ids=["around", "within"])
@pytest.mark.parametrize("kind", CHOICES)
def test_recursion(backend, kind, within):
    """A geometric law by recursion: the drawn values decide which sites exist."""
    gs, ppl, (law, stops) = backend.gs, backend.ppl, CHOICES[kind]
    p = backend.array(0.3 if kind == "bit" else [0.7, 0.3])

    def geometric(i=0):
        b = ppl.sample(f"b{i}", law(gs, backend.native, p))
        return i if i == 3 or stops(b) else geometric(i + 1)

    def relaxed_within():
        with gs.relax():
            return geometric()

    def guide():
        for i in range(4):
            soft = gs.SoftBernoulli if kind == "bit" else gs.SoftOneHotCategorical
            ppl.sample(f"b{i}", soft(0.5, probs=p))

    model = relaxed_within if within else gs.relax(geometric)
    refusal = "has no gradient.*has other sites" if within else "Python condition"
    elbo = backend.infer.TraceMeanField_ELBO()
    for by_hand in (True, False):
        q = guide if by_hand else gs.AutoGumbelSoftmax(geometric)
        with pytest.raises(ValueError, match=f"site 'b0': .*{refusal}"):
            backend.anneal(model, q, elbo, lambda t: 0.5, 1)
    if not within:  # a bare SVI raises it too
        with pytest.raises(ValueError, match=f"site 'b0': .*{refusal}"):
            backend.trace(gs.relax(geometric, 0.5), 0)


def chain(backend, read):
    """A second site depends on the first; nothing is observed."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    rows = array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])

    def model():
        z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
        ppl.sample("w", gs.OneHotCategorical(probs=read(z, rows)))

    return model


@pytest.mark.parametrize("objective", ["categorical", "relaxed"])
def test_law_of_a_second_site_reads_the_first(backend, objective):
    check(backend, chain(backend, lambda z, rows: z @ rows), objective=objective)
    check(backend, chain(backend, lambda z, rows: rows[z.argmax(-1)]), objective=objective)
    mean = lambda z: z @ backend.array(TABLE) > 0.3  # noqa: E731
    model = chain(backend, lambda z, rows: backend.lib.where(mean(z), rows[0], rows[1]))
    with pytest.raises(ValueError, match=NO_GRADIENT):
        check(backend, model, objective=objective)


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("child", ["a bit", "a class that never comes"])
def test_second_site_at_an_edge(backend, child, honest):
    """Edge values: a bit that is 0 scores as 0; a class with logit -inf has no weight."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def model():
        z = ppl.sample("z", gs.SoftOneHotCategorical(0.5, probs=array(PRIOR)))
        mean = z @ array(TABLE)
        share = 0.5 + 0.1 * mean if honest else backend.lib.where(mean > 0.3, 0.2, 0.8)
        if child == "a bit":
            ppl.sample("w", gs.SoftBernoulli(0.5, probs=share))
        else:
            probs = backend.lib.stack([share, 1 - share, 0 * share], -1)
            ppl.sample("w", gs.SoftOneHotCategorical(0.5, probs=probs))

    def guide():
        ppl.sample("z", gs.SoftOneHotCategorical(0.5, logits=array(np.zeros(3))))
        if child == "a bit":
            ppl.sample("w", gs.SoftBernoulli(0.5, logits=array(-400.0)))
        else:
            ppl.sample("w", gs.SoftOneHotCategorical(0.5, logits=array([0.0, 0.0, -np.inf])))

    loss = backend.infer.TraceMeanField_ELBO()
    if honest:
        gs.check(model, guide, loss)
        return
    with pytest.raises(ValueError, match=NO_GRADIENT):
        gs.check(model, guide, loss)


@pytest.mark.parametrize("honest", [True, False])
def test_value_in_logs_is_read(backend, honest):
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def site():
        return ppl.sample("z", gs.ExpGumbelSoftmax(0.5, probs=array(PRIOR)))

    def model():
        mean = backend.lib.exp(site()) @ array(TABLE)
        loc = mean if honest else (mean > 0.3) * 4.0 - 2
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(0.4))

    if honest:
        gs.check(model, site, backend.infer.Trace_ELBO())
        return
    with pytest.raises(ValueError, match=NO_GRADIENT):
        gs.check(model, site, backend.infer.Trace_ELBO())


def test_no_program_at_a_vertex(backend):
    """A scale of 0 at a vertex, which the PPLs refuse; the probe reads the program elsewhere."""
    ppl, array = backend.ppl, backend.array

    def site():
        return ppl.sample("z", backend.gs.GumbelSoftmax(0.5, probs=array(PRIOR)))

    def model():
        scale = site() @ array([0.0, 1.0, 2.0])
        ppl.sample("x", backend.native.Normal(0.0, scale), obs=array(0.4))

    with ppl.validation_enabled():
        backend.gs.check(model, site, backend.infer.Trace_ELBO())


def test_rows_of_a_probe_are_those_of_the_run(backend):
    """Other values that a program draws stay the same in the probe."""
    ppl, array, data = backend.ppl, backend.array, np.linspace(-3, 3, 20)

    def model():
        with ppl.plate("rows", 20, subsample_size=3) as rows:
            z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array(PRIOR)))
            loc = backend.gs.select(array(TABLE), z)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(data)[rows])

    check(backend, model)


@pytest.mark.parametrize("honest", [True, False])
def test_guide_reads_its_own_site(backend, honest):
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    model = chain(backend, lambda z, rows: z @ rows)

    def guide():
        z = ppl.sample("z", gs.SoftOneHotCategorical(0.5, logits=array(np.zeros(3))))
        logits = array(TABLE) * (z[..., :1] if honest else z.round()[..., :1])
        ppl.sample("w", gs.SoftOneHotCategorical(0.5, logits=logits))

    if honest:
        check(backend, model, guide=guide)
        return
    with pytest.raises(ValueError, match="site 'z': the guide reads its relaxed value"):
        check(backend, model, guide=guide)


# --- soft masses with enumerated sites ------------------------------------------------------------


def side_by_side(backend, below):
    """An enumerated bit, a soft class and one observation; `below`: the bit sets the law of the
    class."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def model():
        with gs.config_enumerate():
            w = ppl.sample("w", gs.OneHotCategorical(probs=array([0.3, 0.7])))
        with gs.relax(temperature=0.5):
            shift = w[..., :1] if below else 0.0
            z = ppl.sample("z", gs.OneHotCategorical(logits=array(np.log(PRIOR)) + shift))
        loc = gs.select(array(TABLE), z) * 0.0 + gs.select(array([-1.0, 2.0]), w)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(0.4))

    def guide():
        a = ppl.param("a", array([0.2, 0.1, -0.3]))
        ppl.sample("z", gs.SoftOneHotCategorical(0.5, logits=a))

    return model, guide


def test_enumerated_and_soft_side_by_side(backend):
    """If x does not depend on z, the loss is the evidence of w plus the divergence of z,
    exactly."""
    loss = backend.gs.TraceEnum_ELBO(max_plate_nesting=0)
    model, guide = side_by_side(backend, below=False)
    backend.gs.check(model, guide, loss)
    value, gradient = backend.loss_and_gradient(loss, model, guide, 0)
    logq, logp = log_softmax([0.2, 0.1, -0.3]), np.log(PRIOR)
    divergence = np.exp(logq) @ (logq - logp)
    evidence = np.log([0.3, 0.7] @ norm.pdf(0.4, [-1.0, 2.0]))
    assert value == pytest.approx(divergence - evidence, rel=1e-6)
    np.testing.assert_allclose(gradient["a"], np.exp(logq) * (logq - logp - divergence), atol=1e-6)
    with pytest.raises(ValueError, match="site 'z': its law depends on a site that the model enu"):
        backend.gs.check(*side_by_side(backend, below=True), loss)


@pytest.mark.only("numpyro")
def test_sample_shape_in_a_guide(backend):
    """TraceMeanField_ELBO would count the divergence of one draw instead of three."""
    ppl, array = backend.ppl, backend.array
    prior = backend.gs.SoftOneHotCategorical(0.5, probs=array(PRIOR))
    soft = backend.gs.SoftOneHotCategorical(0.5, logits=array(np.zeros(3)))
    model, joined = (partial(ppl.sample, "z", fn, sample_shape=(3,)) for fn in (prior, soft))
    elbo = backend.infer.TraceMeanField_ELBO()
    one = float(backend.kl(soft, prior))
    assert backend.elbo_loss(elbo, model, joined) == pytest.approx(one)  # not 3 * one
    with pytest.raises(ValueError, match=r"site 'z': .* counts the divergence of one"):
        backend.gs.check(model, joined, elbo)
    with pytest.raises(ValueError, match=r"site 'z': .* counts the divergence of one"):
        backend.anneal(model, joined, elbo, lambda t: 0.5, 1)


# --- plates, axes, scale, order -------------------------------------------------------------------


def in_plate(backend, rows, *, name="rows", size=None, plate=True):
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def run():
        law = gs.STGumbelSoftmax(0.5, logits=array(np.zeros((rows, 3)) if plate else np.zeros(3)))
        if not plate:
            ppl.sample("z", law)
            return
        with ppl.plate(name, size or rows, **({"subsample_size": rows} if size else {})):
            ppl.sample("z", law)

    return run


PLATES = {
    "alike": ({}, {}, None),
    "another name": ({}, {"name": "other"}, None),
    "rows": ({}, {"rows": 1, "name": "one"}, "plate 'one' of the guide has 1 rows, plate .* 4"),
    "full size": ({"size": 8}, {"size": 16}, "has 4 of 16 rows, plate 'rows' .* 4 of 8 rows"),
    "a plate of one row": ({"rows": 1, "plate": False}, {"rows": 1}, None),
    "no plate in the guide": ({}, {"plate": False}, "is in plate 'rows' only in the model"),
    "no plate in the model": ({"plate": False}, {}, "is in plate 'rows' only in the guide"),
}


@pytest.mark.parametrize("case", PLATES)
def test_plates(backend, case):
    model, guide, message = PLATES[case]
    pair = in_plate(backend, **{"rows": 4, **model}), in_plate(backend, **{"rows": 4, **guide})
    loss = backend.infer.Trace_ELBO()
    if message is None:
        backend.gs.check(*pair, loss)
        return
    with pytest.raises(ValueError, match=f"site 'z': .*{message}"):
        backend.gs.check(*pair, loss)


def test_temperature_by_row(backend):
    """For a site in a plate it is allowed; for a global site it makes a batch."""
    array, loc = backend.array, lambda b, z: b.gs.select(b.array(TABLE), z)
    for rows in (4, None):
        model = reader(backend, loc, rows=rows)
        tau = array(np.full(4, 0.5))
        pair = backend.gs.relax(model, tau), backend.gs.AutoGumbelSoftmax(model, tau)
        loss = backend.infer.TraceMeanField_ELBO()
        if rows:
            backend.gs.check(*pair, loss)
            continue
        with pytest.raises(ValueError, match=r"site 'z': axis -1 of the batch shape .* no plate"):
            backend.gs.check(*pair, loss)


@pytest.mark.parametrize("law", ["Categorical", "OneHotCategorical"])
def test_rows_of_what_is_summed_out_lie_in_a_plate(backend, law):
    ppl, array, gs = backend.ppl, backend.array, backend.gs
    make = getattr(gs if law.startswith("One") else backend.native, law)

    def body():
        ppl.sample("z", make(probs=array([PRIOR, PRIOR])))

    def model():
        with ppl.plate("rows", 2):
            body()

    loss = backend.infer.TraceEnum_ELBO(max_plate_nesting=1)
    gs.check(gs.config_enumerate(model), lambda: None, loss)
    message = r"site 'z': axis -1 of the batch shape of .* in the model lies in no plate"
    with pytest.raises(ValueError, match=message):
        gs.check(gs.config_enumerate(body), lambda: None, loss)


def test_scale_on_one_side(backend):
    program, loss = in_plate(backend, 4), backend.infer.Trace_ELBO()
    scaled = backend.scaled(program, 3.0)
    backend.gs.check(scaled, backend.scaled(program, 3.0), loss)
    for pair in [(scaled, program), (program, scaled)]:
        with pytest.raises(ValueError, match=r"'z': .* is scaled by .* in the guide but by"):
            backend.gs.check(*pair, loss)


def test_order_of_dependent_sites(backend):
    """Its analytic divergence would be .836 instead of .235; independent sites may have any
    order."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array
    model = gs.relax(chain(backend, lambda z, rows: z @ rows), 0.5)

    def guide(dependent):
        def run():
            w = ppl.sample("w", gs.SoftOneHotCategorical(0.5, logits=array(np.zeros(3))))
            logits = w @ array(np.eye(3)) if dependent else array(np.zeros(3))
            ppl.sample("z", gs.SoftOneHotCategorical(0.5, logits=logits))

        return run

    loss = backend.infer.TraceMeanField_ELBO()
    gs.check(model, guide(False), loss)
    with pytest.raises(ValueError, match="site 'w': the model draws it given 'z', but the guide"):
        gs.check(model, guide(True), loss)


# --- latents of other laws ------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["Poisson", "Geometric", "Normal", "Delta"])
def test_a_latent_of_any_law(backend, law):
    parameters = {"Geometric": (0.3,), "Normal": (0.0, 1.0)}.get(law, (2.0,))
    fn = getattr(backend.native, law)(*map(backend.array, parameters))
    ppl, gs = backend.ppl, backend.gs

    def model():
        ppl.sample("z", gs.OneHotCategorical(probs=backend.array(PRIOR)))
        ppl.sample("n", fn)

    def guide():
        ppl.sample("z", gs.SoftOneHotCategorical(0.5, probs=backend.array(PRIOR)))
        ppl.sample("n", fn) if law == "Normal" and in_guide else None

    for in_guide in (True, False):
        if law == "Delta" or (law == "Normal" and in_guide):
            check(backend, model, guide=guide)
            continue
        with pytest.raises(ValueError, match=f"site 'n': {law}.* neither in the guide nor enum"):
            check(backend, model, guide=guide)


# --- bad parameters, new shapes -------------------------------------------------------------------


def test_bad_parameters_name_the_site(backend):
    ppl, gs = backend.ppl, backend.gs

    def model():
        ppl.sample("bad", backend.native.Bernoulli(logits=backend.array(0.0)))

    guide = gs.AutoGumbelSoftmax(model, 0.5, init_logits=np.nan)
    with ppl.validation_enabled(), pytest.raises(ValueError, match=r"site 'bad': .*logits"):
        backend.trace(guide, 0)
    with pytest.raises(ValueError, match=r"site 'bad': .*temperature"):
        backend.trace(gs.relax(model, backend.array(-1.0)), 0)
    backend.trace(gs.relax(model, 1.0), 0)


def test_a_smaller_batch_is_checked(backend):
    """The guide keeps the plate of its first call, whose logits belong to other rows."""
    ppl, gs, array = backend.ppl, backend.gs, backend.array

    def model(x):
        with ppl.plate("rows", len(x)):
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
            ppl.sample("x", backend.native.Normal(gs.select(array(TABLE), z), 1.0), obs=x)

    guide = gs.AutoGumbelSoftmax(model)
    batches = [array(np.zeros(n)) for n in (6, 6, 1)]
    elbo = backend.infer.TraceMeanField_ELBO()
    backend.train_on(gs.relax(model), guide, elbo, lambda t: 0.5, batches[:2])
    with pytest.raises(ValueError, match=r"plate 'rows'.* 6"):
        backend.train_on(gs.relax(model), guide, elbo, lambda t: 0.5, batches)


@pytest.mark.parametrize("law", ["Categorical", "OneHotCategorical"])
def test_a_guide_of_another_number_of_classes(backend, law):
    gs, array = backend.gs, backend.array
    make = backend.native.Categorical if law == "Categorical" else gs.OneHotCategorical

    def model(K):
        with backend.ppl.plate("rows", 2):
            backend.ppl.sample("z", make(logits=array(np.zeros(K))))

    guide = gs.AutoGumbelSoftmax(partial(model, 3), 0.5)
    message = "site 'z': .*the guide has 3 classes.* make the guide from this model"
    with pytest.raises(ValueError, match=message):
        gs.check(gs.relax(partial(model, 2), 0.5), guide, backend.infer.Trace_ELBO())


@pytest.mark.only("numpyro")
@pytest.mark.filterwarnings("ignore:Some algorithms will automatically enumerate:FutureWarning")
def test_an_automatic_guide_of_continuous_latents_alone(backend):
    """NumPyro's guide says what is wrong; the check, which then fails too, must not hide it."""
    ppl, array = backend.ppl, backend.array

    def model():
        z = ppl.sample("z", backend.native.Categorical(probs=array(PRIOR)))
        b = ppl.sample("b", backend.native.Normal(array(TABLE)[z], 1.0))
        ppl.sample("x", backend.native.Normal(b, 1.0), obs=array(0.3))

    guide, elbo = backend.infer.autoguide.AutoNormal(model), backend.infer.TraceMeanField_ELBO()
    with pytest.raises(ValueError, match="cannot handle discrete sample site 'z'"):
        backend.anneal(backend.gs.relax(model), guide, elbo, lambda t: 0.5, 2)


CURES = {
    "Categorical": r"site 'z': .*Relax both, as in relax\(model\) and relax\(guide\)",
    "OneHotCategorical": r"site 'z': .*relax model and guide",
}


@pytest.mark.parametrize("law", CURES)
def test_a_guide_by_hand_over_an_integer_site(backend, law):
    """It fits if it is relaxed like the model; otherwise it is refused, and the message says what
    to do."""
    gs, array, make = backend.gs, backend.array, backend.native.Categorical
    make = make if law == "Categorical" else gs.OneHotCategorical

    def model():
        z = backend.ppl.sample("z", backend.native.Categorical(probs=array(PRIOR)))
        backend.ppl.sample(
            "x", backend.native.Normal(array([-1.0, 0.0, 2.0])[z], 1.0), obs=array(0.3)
        )

    def guide():
        backend.ppl.sample("z", make(logits=array(np.zeros(3))))

    loss, relaxed = backend.infer.TraceMeanField_ELBO(), gs.relax(model, 0.5)
    gs.check(relaxed, gs.relax(guide, 0.5), loss)
    with pytest.raises(ValueError, match=CURES[law]):
        gs.check(relaxed, guide, loss)
