"""to_inference_data: ArviZ groups compared with sums over all states and NumPy by hand."""

import functools

import numpy as np
import pytest
from programs import (
    BITS,
    DATA,
    LOCS,
    PRIOR,
    PROGRAMS,
    WEIGHTS,
    by_name,
    laws,
    log_joint_of_shift,
    normal,
    with_shift,
)
from scipy import stats

from gs_ppl import _extras
from gs_ppl._shared import inference_data
from gs_ppl._shared.inference_data import Layout, Site

FAILURE_RATE = 1e-4  # for each statistical test


@pytest.fixture(scope="module")
def arviz():
    import matplotlib as mpl

    mpl.use("agg")
    return _extras.require("arviz")


def plain(backend, program):
    return program.build(backend, laws(backend, "OneHotCategorical"))


def draws(data, group, site):
    """Values without the chain axis."""
    values = data[group][site].values
    assert values.shape[0] == 1
    return values[0]


def assignments(program, data, group="posterior"):
    """One row for each draw; columns are the arguments of the program's log_joint."""
    columns = [draws(data, group, site) for site in program.sites]
    return np.concatenate([c.reshape(len(c), -1) for c in columns], -1)


def assert_law(observed, expected):
    """Chi-square of counts; cells with low expected counts are joined."""
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected).pvalue > FAILURE_RATE


def locs_of(name, z):
    """Mean of each observation of a program, given its assignments."""
    if name == "mixture":
        return LOCS[z]
    if name == "factorial":
        return np.repeat((LOCS[z[:, 0]] + LOCS[z[:, 1]] + z[:, 2])[:, None], 6, 1)
    return np.repeat((WEIGHTS[:2] * z[:, 1:])[:, None], 2, 1)


OBSERVED = {"mixture": DATA[:3], "factorial": DATA, "bernoulli_net": DATA[:4].reshape(2, 2)}


@functools.cache
def exact_data(backend, name):
    return backend.to_inference_data(plain(backend, by_name(name)), num_samples=300)


@functools.cache
def guide_data(backend, name):
    model, (guide, _) = plain(backend, by_name(name)), auto_guide(backend, by_name(name))
    return backend.to_inference_data(model, guide, num_samples=300)


# --- exact posterior ------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
@pytest.mark.quick("factorial")
def test_exact_posterior(backend, program):
    """Joint law of all latents, and log densities of each draw; the weight is the evidence."""
    data = exact_data(backend, program.name)
    z = assignments(program, data)
    assert z.dtype == np.int64
    sizes = tuple(program.sizes.values())
    counts = np.bincount(np.ravel_multi_index(z.T, sizes), minlength=np.prod(sizes))
    posterior = np.exp(program.log_joints() - program.evidence()).ravel()
    assert_law(counts, 300 * posterior)
    lp = [program.log_joint(*row) for row in z[:50]]
    sample_stats = {name: draws(data, "sample_stats", name) for name in data["sample_stats"]}
    np.testing.assert_allclose(sample_stats["lp"][:50], lp, rtol=1e-9)
    np.testing.assert_allclose(sample_stats["log_weight"], program.evidence(), rtol=1e-9)
    log_q = sample_stats["lp"] - sample_stats["log_weight"]
    np.testing.assert_allclose(sample_stats["log_q"], log_q, rtol=1e-9)
    assert data.attrs["method"] == "infer_discrete"
    assert data["posterior"].attrs["inference_library"] == "gs_ppl"


# --- guides ---------------------------------------------------------------------------------------


def auto_guide(backend, program, family="GumbelSoftmax"):
    """A guide with known logits, and its class probabilities by site."""
    rng = np.random.default_rng(1)
    shapes = {"mixture": {"z": (3, 3)}, "factorial": {"a": (3,), "b": (2,), "c": ()}}
    shapes |= {"bernoulli_net": {"top": (), "h": (2,)}}
    logits = {site: rng.normal(size=shape) for site, shape in shapes[program.name].items()}
    guide = backend.gs.AutoGumbelSoftmax(
        plain(backend, program),
        family=getattr(backend.gs, family),
        init_logits={site: backend.array(a) for site, a in logits.items()},
    )
    bits = {"c", "top", "h"}
    probs = {
        site: np.stack([1 / (1 + np.exp(a)), 1 / (1 + np.exp(-a))], -1)
        if site in bits
        else np.exp(a) / np.exp(a).sum(-1, keepdims=True)
        for site, a in logits.items()
    }
    return guide, probs


@pytest.mark.parametrize("name", OBSERVED)
def test_guide(backend, name):
    """Draws have the guide's probabilities, and the right log densities for each point."""
    program = by_name(name)
    _, probs = auto_guide(backend, program)
    data = guide_data(backend, name)
    z = assignments(program, data)
    p = [row for site in program.sites for row in probs[site].reshape(-1, probs[site].shape[-1])]
    for column, row in zip(z.T, p, strict=True):
        assert_law(np.bincount(column, minlength=len(row)), 300 * row)
    log_q = sum(np.log(row)[column] for column, row in zip(z.T, p, strict=True))
    np.testing.assert_allclose(draws(data, "sample_stats", "log_q"), log_q, rtol=1e-6)
    lp = np.array([program.log_joint(*row) for row in z])
    np.testing.assert_allclose(draws(data, "sample_stats", "lp"), lp, rtol=1e-9)
    weight = draws(data, "sample_stats", "log_weight")
    np.testing.assert_allclose(weight, lp - log_q, rtol=1e-6)
    np.testing.assert_allclose(
        draws(data, "log_likelihood", "x"), normal(OBSERVED[name], locs_of(name, z)), rtol=1e-9
    )
    assert data.attrs["method"] == "guide"


@pytest.mark.parametrize("group", ["posterior_predictive", "prior_predictive"])
@pytest.mark.parametrize("name", OBSERVED)
def test_predictive(backend, name, group):
    """New data given the latents of the same draw; in the prior groups, the latents are prior
    draws."""
    program = by_name(name)
    data = guide_data(backend, name)
    latents = group.removesuffix("_predictive")
    z = assignments(program, data, latents)
    noise = draws(data, group, "x") - locs_of(name, z)
    assert stats.kstest(noise.ravel(), "norm").pvalue > FAILURE_RATE
    np.testing.assert_array_equal(data["observed_data"]["x"].values, OBSERVED[name])
    if latents == "prior":
        prior = {"mixture": PRIOR, "factorial": PRIOR, "bernoulli_net": [0.6, 0.4]}[name]
        assert_law(np.bincount(z[:, 0], minlength=len(prior)), 300 * np.array(prior))
        if name == "bernoulli_net":
            p = np.where(z[:, :1], BITS[1:], BITS[:2])
            score = (z[:, 1:] - p).sum() / np.sqrt((p * (1 - p)).sum())
            assert abs(score) < stats.norm.isf(FAILURE_RATE / 2)


def test_relaxed_and_annealed_programs(backend):
    """A relaxed model that declares a temperature, with another guide, gives the same draws."""
    program = by_name("mixture")
    model = backend.gs.relax(plain(backend, program))

    def annealed(temperature):
        assert float(temperature) == 1
        return model()

    guide, _ = auto_guide(backend, program, "STGumbelSoftmax")
    got = backend.to_inference_data(annealed, guide, num_samples=300)
    expected = guide_data(backend, "mixture")
    for group in ("posterior", "sample_stats", "log_likelihood", "prior_predictive"):
        for site in expected[group]:
            np.testing.assert_allclose(got[group][site], expected[group][site], rtol=1e-9)


def test_parameters(backend):
    """Parameters of model and guide, as fitted; programs with arguments."""
    ppl, array, OneHot = backend.ppl, backend.array, backend.gs.OneHotCategorical

    def model(x, scale=1.0):
        locs = ppl.param("locs", array(LOCS))
        z = ppl.sample("z", OneHot(logits=array(np.zeros(3))))
        ppl.sample("x", backend.native.Normal(backend.gs.select(locs, z), scale), obs=x)

    def guide(x, scale=1.0):
        ppl.sample("z", OneHot(logits=ppl.param("a", array(np.zeros(3)))))

    fitted = {"a": array([50.0, 0.0, 0.0]), "locs": array(LOCS + 7)}
    data = backend.to_inference_data(
        model, guide, array(0.5), params=fitted, num_samples=20, scale=2.0
    )
    assert (draws(data, "posterior", "z") == 0).all()
    expected = stats.norm(LOCS[0] + 7, 2).logpdf(0.5)
    np.testing.assert_allclose(draws(data, "log_likelihood", "x"), expected, rtol=1e-9)


@pytest.mark.only("pyro")
def test_states_are_left_alone(backend):
    before = backend.ppl.util.get_rng_state()
    backend.to_inference_data(plain(backend, by_name("mixture")), num_samples=2)
    after = backend.ppl.util.get_rng_state()
    assert (before["torch"] == after["torch"]).all()
    assert before["random"] == after["random"]


def test_seed(backend):
    """Different seeds give different draws; other tests show that equal seeds give equal draws."""
    model = plain(backend, by_name("mixture"))
    other = draws(backend.to_inference_data(model, num_samples=300, seed=1), "posterior", "z")
    assert (other != draws(exact_data(backend, "mixture"), "posterior", "z")).any()


# --- continuous latents ---------------------------------------------------------------------------


def shift_guide(backend, with_z):
    def guide():
        backend.ppl.sample("shift", backend.native.Normal(backend.array(0.3), 0.5))
        if with_z:
            with backend.ppl.plate("data", 6):
                backend.ppl.sample("z", laws(backend, "GumbelSoftmax")("one_hot", PRIOR))

    return guide


def test_guide_with_continuous_latent(backend):
    model = with_shift(backend, "OneHotCategorical")
    data = backend.to_inference_data(model, shift_guide(backend, True), num_samples=300)
    shift, z = (draws(data, "posterior", site) for site in ("shift", "z"))
    assert stats.kstest(shift, stats.norm(0.3, 0.5).cdf).pvalue > FAILURE_RATE
    likelihood = normal(DATA, LOCS[z] + shift[:, None])
    np.testing.assert_allclose(draws(data, "log_likelihood", "x"), likelihood, rtol=1e-9)
    weight = normal(shift, 0) - stats.norm(0.3, 0.5).logpdf(shift) + likelihood.sum(-1)
    np.testing.assert_allclose(draws(data, "sample_stats", "log_weight"), weight, rtol=1e-6)


@pytest.mark.parametrize("with_z", [False, True], ids=["shift alone", "shift and z"])
def test_discrete_latents_given_the_guide(backend, with_z):
    """z has its exact law given each draw of the shift; the weight of the draw has z summed out."""
    model = with_shift(backend, "OneHotCategorical")
    data = backend.to_inference_data(
        model, shift_guide(backend, with_z), infer_discrete=True, num_samples=300
    )
    shift, z = (draws(data, "posterior", site) for site in ("shift", "z"))
    assert stats.kstest(shift, stats.norm(0.3, 0.5).cdf).pvalue > FAILURE_RATE
    p = PRIOR * np.exp(normal(DATA[:, None], LOCS + shift[:, None, None]))
    p /= p.sum(-1, keepdims=True)
    for k in range(3):
        score = ((z == k) - p[..., k]).sum(0) / np.sqrt((p * (1 - p))[..., k].sum(0))
        assert (abs(score) < stats.norm.isf(FAILURE_RATE / 2 / score.size)).all()
    weight = np.array([log_joint_of_shift(s) for s in shift[:50]])
    weight -= stats.norm(0.3, 0.5).logpdf(shift[:50])
    np.testing.assert_allclose(draws(data, "sample_stats", "log_weight")[:50], weight, rtol=1e-9)
    assert data.attrs["method"] == "infer_discrete, guide"


# --- shapes, names, values ------------------------------------------------------------------------


def events(backend):
    """Sites with event dimensions and without plates, a deterministic site, a factor, a mask."""
    ppl, array, native = backend.ppl, backend.array, backend.native

    def model():
        w = ppl.sample("w", native.Normal(array(np.zeros(2)), 1.0).to_event(1))
        ppl.deterministic("total", w.sum(-1))
        with ppl.plate("rows", 4):
            z = ppl.sample("z", backend.gs.OneHotCategorical(probs=array([PRIOR] * 2)).to_event(1))
            ppl.deterministic("class_2", z[..., 2])
            law = native.Normal(z @ array(LOCS), 1.0).to_event(1)
            ppl.sample("x", law, obs=array(DATA[:2]))  # the same for each row
            y = array([[0.0, 1.0, 0.0]] * 4)
            ppl.sample("y", backend.gs.OneHotCategorical(probs=array(PRIOR)), obs=y)
            ppl.sample("bit", native.Bernoulli(array(0.3)), obs=array([0.0, 1.0, 1.0, 0.0]))
        ppl.factor("f", array(-0.5))

    return model


def test_shapes_and_types(backend):
    model = events(backend)
    data = backend.to_inference_data(model, backend.without_observed(model), num_samples=5)
    dims = {
        ("posterior", "w"): ("w_dim_0",),
        ("posterior", "total"): (),
        ("posterior", "z"): ("rows", "z_dim_0"),
        ("posterior", "class_2"): ("rows", "class_2_dim_0"),
        ("prior", "class_2"): ("rows", "class_2_dim_0"),
        ("log_likelihood", "x"): ("rows",),
        ("log_likelihood", "y"): ("rows",),
        ("posterior_predictive", "x"): ("rows", "x_dim_0"),
        ("prior_predictive", "y"): ("rows",),
        ("observed_data", "x"): ("rows", "x_dim_0"),
        ("observed_data", "y"): ("rows",),
        ("observed_data", "bit"): ("rows",),
        ("sample_stats", "lp"): (),
    }
    for (group, site), expected in dims.items():
        head = () if group == "observed_data" else ("chain", "draw")
        array = data[group][site]
        assert array.dims == (*head, *expected), (group, site)
        integer = site in ("z", "y", "bit") and group != "log_likelihood"
        assert array.dtype == (np.int64 if integer else np.float64), (group, site)
    assert set(data["posterior"].data_vars) == {"w", "total", "z", "class_2"}
    assert set(data["observed_data"].data_vars) == {"x", "y", "bit"}
    np.testing.assert_array_equal(data["observed_data"]["y"], [1, 1, 1, 1])
    np.testing.assert_array_equal(data["observed_data"]["bit"], [0, 1, 1, 0])
    np.testing.assert_array_equal(data["posterior"]["rows"], np.arange(4))
    z = draws(data, "posterior", "z")
    np.testing.assert_array_equal(draws(data, "posterior", "class_2"), z == 2)
    w = draws(data, "posterior", "w")
    np.testing.assert_allclose(draws(data, "posterior", "total"), w.sum(-1))
    prior = normal(w, 0).sum(-1) + np.log(PRIOR)[z].sum((-1, -2))
    np.testing.assert_allclose(draws(data, "sample_stats", "log_q"), prior, rtol=1e-6)
    likelihood = sum(draws(data, "log_likelihood", s).sum(-1) for s in ("x", "y", "bit"))
    np.testing.assert_allclose(
        draws(data, "sample_stats", "log_weight"), likelihood - 0.5, rtol=1e-6
    )


def test_nested_plates(backend):
    data = exact_data(backend, "bernoulli_net")
    assert data["posterior"]["top"].dims == ("chain", "draw")
    assert data["posterior"]["h"].dims == ("chain", "draw", "units")
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "data", "units")
    assert data["observed_data"]["x"].dims == ("data", "units")


def test_soft_data_stay_soft(backend):
    """Grey levels under a Bernoulli law, which both PPLs score without validation, stay
    unchanged."""
    ppl, native, grey = backend.ppl, backend.native, np.array([0.1, 0.7, 1.0])

    def model():
        z = ppl.sample("z", native.Bernoulli(backend.array(0.5)))
        with ppl.plate("pixels", 3):
            law = native.Bernoulli(backend.array(0.2) + 0.5 * z, validate_args=False)
            ppl.sample("x", law, obs=backend.array(grey))

    data = backend.to_inference_data(model, num_samples=4)
    np.testing.assert_array_equal(data["observed_data"]["x"], grey)
    p = 0.2 + 0.5 * draws(data, "posterior", "z")[:, None]
    expected = grey * np.log(p) + (1 - grey) * np.log(1 - p)
    np.testing.assert_allclose(draws(data, "log_likelihood", "x"), expected, rtol=1e-6)


def test_scales_do_not_count(backend):
    scaled = backend.scaled(plain(backend, by_name("mixture")), 0.1)
    got = backend.to_inference_data(scaled, num_samples=300)
    expected = exact_data(backend, "mixture")
    for name in ("lp", "log_q", "log_weight"):
        np.testing.assert_allclose(
            draws(got, "sample_stats", name), draws(expected, "sample_stats", name), rtol=1e-9
        )


def test_masks_count(backend):
    program = by_name("mixture")
    masked = backend.masked(plain(backend, program), np.array([True, False, True]))
    data = backend.to_inference_data(masked, num_samples=50)
    likelihood, z = draws(data, "log_likelihood", "x"), draws(data, "posterior", "z")
    np.testing.assert_allclose(likelihood[:, ::2], normal(DATA[:3:2], LOCS[z[:, ::2]]), rtol=1e-9)
    assert (likelihood[:, 1] == 0).all()
    evidence = np.logaddexp.reduce(np.log(PRIOR) + normal(DATA[:3:2, None], LOCS), -1).sum()
    np.testing.assert_allclose(draws(data, "sample_stats", "log_weight"), evidence, rtol=1e-9)


def test_coords_and_dims(backend):
    model = plain(backend, by_name("bernoulli_net"))
    options = {"num_samples": 3, "coords": {"units": ["left", "right"], "cases": [3, 4]}}
    data = backend.to_inference_data(model, dims={"x": ["cases", "units"]}, **options)
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "cases", "units")
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "cases", "units")
    assert data["posterior"]["h"]["units"].values.tolist() == ["left", "right"]
    assert data["observed_data"]["x"]["cases"].values.tolist() == [3, 4]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": {"rows": [0]}}, "coords: no dimension is called 'rows'; there are 'data'"),
        ({"coords": {"data": [0]}}, "coords: 1 labels for 'data', of size 3"),
        ({"dims": {"y": ["rows"]}}, "dims: no site is called 'y'; there are 'x', 'z'"),
        ({"dims": {"z": ["rows", "columns"]}}, r"dims: site 'z' has shape \(3,\), got the names"),
        ({"dims": {"z": ["x"]}}, "dims: 'x' is a site and a dimension"),
    ],
    ids=["coords", "labels", "dims", "too many dims", "dimension like a site"],
)
def test_names_that_are_wrong(backend, options, message):
    with pytest.raises(ValueError, match=message):
        backend.to_inference_data(plain(backend, by_name("mixture")), **options)


def test_dimension_of_two_sizes():
    sites = {name: Site("latent", np.zeros(n), (None,)) for name, n in (("a", 2), ("b", 3))}
    with pytest.raises(ValueError, match="dims: 'rows' would have sizes 2 and 3"):
        inference_data.Names.of(Layout(sites), None, {"a": ["rows"], "b": ["rows"]})


def test_latents_left_out(backend):
    model, partial = with_shift(backend, "OneHotCategorical"), shift_guide(backend, False)
    with pytest.raises(ValueError, match="latent site 'shift' cannot be enumerated: pass a guide"):
        backend.to_inference_data(model)
    with pytest.raises(ValueError, match="latent site 'z' of the model is not in the guide"):
        backend.to_inference_data(model, partial)
    with pytest.raises(ValueError, match="latent site 'shift' of the guide is not in the model"):
        backend.to_inference_data(plain(backend, by_name("mixture")), shift_guide(backend, True))


@pytest.mark.only("numpyro")
def test_parameters_that_are_not_given(backend):
    """NumPyro has no store: a guide without its parameters, or with others, is not trained."""
    model = plain(backend, by_name("mixture"))
    guide, draw = backend.gs.AutoGumbelSoftmax(model), backend.gs.to_inference_data
    message = "^to_inference_data: params= does not have z_auto_logits: these have their initial"
    for params in (None, {"z_logits": backend.array(np.zeros((3, 3)))}):
        with pytest.warns(UserWarning, match=message):
            draw(model, guide, params=params, num_samples=2)
    draw(model, guide, params={"z_auto_logits": backend.array(np.zeros((3, 3)))}, num_samples=2)


def test_subsampled_plate(backend):
    def model():
        with backend.ppl.plate("data", 6, subsample_size=2):
            backend.ppl.sample("z", laws(backend, "OneHotCategorical")("one_hot", PRIOR))

    with pytest.raises(ValueError, match="plate 'data' is subsampled, 2 of 6 rows"):
        backend.to_inference_data(model)


# --- ArviZ ----------------------------------------------------------------------------------------


@pytest.fixture
def pair(backend):
    """The factorial program, with exact enumeration and with a guide."""
    return exact_data(backend, "factorial"), guide_data(backend, "factorial")


def groups_of(data):
    names = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in names} - {""}


def test_netcdf(arviz, pair, tmp_path):
    for data in pair:
        path = tmp_path / f"{data.attrs['method']}.nc"
        data.to_netcdf(path)
        read = arviz.from_netcdf(path)
        assert (
            groups_of(read)
            == groups_of(data)
            == {
                "posterior",
                "log_likelihood",
                "posterior_predictive",
                "prior",
                "prior_predictive",
                "observed_data",
                "sample_stats",
            }
        )
        for group in groups_of(data):
            for site in data[group].data_vars:
                expected = data[group][site]
                assert read[group][site].dtype == expected.dtype
                assert read[group][site].identical(expected), (group, site)
        assert read["posterior"].attrs["method"] == data.attrs["method"]
        assert read.attrs["inference_library"] == "gs_ppl"


def under_one_shift(backend):
    """One shift and one class for all data, and a guide near the posterior."""
    ppl, array, Normal = backend.ppl, backend.array, backend.native.Normal
    law, select = laws(backend, "OneHotCategorical"), backend.gs.select

    def model():
        shift = ppl.sample("shift", Normal(array(0.0), 1.0))
        a = ppl.sample("a", law("one_hot", PRIOR))
        with ppl.plate("data", 6):
            loc = shift + select(array(0.2 * LOCS), a)
            ppl.sample("x", Normal(loc, 1.0), obs=array(DATA))

    def guide():
        ppl.sample("shift", Normal(array(DATA.mean()), 0.4))
        ppl.sample("a", law("one_hot", PRIOR[::-1].copy()))

    return model, guide


# ArviZ 0.23 with pandas 3
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:DeprecationWarning")
def test_loo_and_compare(backend, arviz):
    """No warning, and near the estimate of plain importance sampling."""
    program = under_one_shift(backend)
    data = {
        name: backend.to_inference_data(*program, num_samples=300, infer_discrete=exact)
        for name, exact in (("exact", True), ("guide", False))
    }
    table = arviz.compare(data)
    assert set(table.index) == set(data)
    for name, tree in data.items():
        likelihood = draws(tree, "log_likelihood", "x")
        plain = np.log(len(likelihood)) - np.logaddexp.reduce(-likelihood, 0)
        loo = arviz.loo(tree)
        elpd = loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo
        assert elpd == pytest.approx(plain.sum(), abs=0.05)
        assert np.isfinite(table.loc[name]["p" if "p" in table else "p_loo"])


def test_ties_are_not_for_loo(arviz, pair):
    """Latents with few values: ArviZ 0.2x warns about the tail that it fits, 1.x refuses."""
    with pytest.raises((UserWarning, ValueError), match="ELPD"):
        arviz.compare(dict(zip(("exact", "guide"), pair, strict=True)))


# ArviZ 0.23 with matplotlib 3.11
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning")
def test_plots(arviz, pair):
    import matplotlib.pyplot as plt

    both = dict(zip(("exact", "guide"), pair, strict=True))
    if arviz.__version__.startswith("0."):
        axes = arviz.plot_posterior(both["exact"], var_names=["a", "b", "c"])
        (forest,) = arviz.plot_forest([*both.values()], model_names=[*both])
    else:
        axes = arviz.plot_dist(both["exact"]).viz["plot"].data_vars.values()
        forest = arviz.plot_forest(both).viz["plot"].sel(column="forest").item()
    assert len(np.ravel([*axes])) == 3
    assert len(forest.lines) > 0
    plt.close("all")
