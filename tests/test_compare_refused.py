"""compare: a table that is too large becomes a note; other errors are raised."""

import numpy as np
import pytest
from enumerable import (
    by_name,
    one_site,
    plain,
)
from programs import BITS, DATA, LOCS, PRIOR
from scipy import stats

from gs_ppl._shared import comparison


def test_a_guide_without_parameters(backend):
    model, _ = one_site(backend, np.zeros(3), np.zeros(3))

    def guide():
        backend.ppl.sample("z", backend.gs.OneHotCategorical(probs=backend.array(PRIOR)))

    report = backend.compare(model, guide, num_samples=3, temperature=0.5)
    assert [row.gradient for row in report.estimates] == [None] * 3
    assert str(report)
    assert report.plot().axes
    assert report.to_dataset().sizes["parameter"] == 0


def truncated_counts(backend):
    """A program with counts, its truncation, and a guide of that."""
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("rows", 2):
            n = ppl.sample("n", backend.native.Poisson(array(1.0)))
            ppl.sample("x", backend.native.Normal(1.0 * n, 1.0), obs=array([0.0, 2.0]))

    program = backend.gs.relax(model, truncate={"n": 9})
    return model, program, backend.gs.AutoGumbelSoftmax(program)


def test_counts_that_only_the_guide_truncates(backend):
    model, program, guide = truncated_counts(backend)
    message = (
        r"site 'n': Poisson .*no known largest value.* relax\(model, truncate={'n': LARGEST}\)"
    )
    with pytest.raises(ValueError, match=message):
        backend.compare(model, guide, families=())
    with pytest.raises(ValueError, match=message):
        backend.assign(model, guide, None)
    n, x = np.arange(10), np.array([0.0, 2.0])
    weights = stats.poisson(1.0).pmf(n) * stats.norm(n).pdf(x[:, None])
    expected = np.log(weights.sum(-1)).sum()
    found = backend.compare(program, guide, families=(), num_samples=2)
    assert found.evidence.mean == pytest.approx(expected, rel=1e-5)
    probs, _ = backend.assign(program, guide, None)
    np.testing.assert_allclose(probs["n"], weights / weights.sum(-1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize(
    ("option", "given"),
    [("families", "GumbelSoftmax"), ("objectives", "relaxed"), ("temperatures", 0.5)],
)
def test_options_that_are_lists(backend, option, given):
    model = plain(backend, "mixture")
    given = getattr(backend.gs, given) if option == "families" else given
    with pytest.raises(TypeError, match=rf"{option} must be a list, as in {option}=\[...\], got"):
        backend.compare(model, backend.gs.AutoGumbelSoftmax(model), **{option: given})


def test_infinite_terms(backend):
    """The datum lies outside of the support of one class: notes name what is infinite."""
    ppl, array = backend.ppl, backend.array

    def model():
        z = ppl.sample("z", backend.native.Categorical(probs=array([0.4, 0.6])))
        ppl.factor("x", array([0.0, -np.inf])[z])

    report = backend.compare(model, backend.gs.AutoGumbelSoftmax(model), families=(), num_samples=2)
    assert report.evidence.mean == pytest.approx(np.log(0.4))
    assert report.notes == (
        "the model excludes its data, or values that the guide draws: the exact ELBO is infinite",
    )
    assert "-inf" in str(report)


def test_a_limit_to_the_tables(backend):
    """With 72 entries, a x b x c x data, the factorial program is enumerated; with 71 it is not."""
    model = plain(backend, "factorial")
    guide = backend.gs.AutoGumbelSoftmax(model)
    options = {"families": [backend.gs.STGumbelSoftmax], "temperature": 0.5, "num_samples": 5}
    enough = backend.compare(model, guide, max_entries=72, **options)
    assert enough.evidence.mean == pytest.approx(by_name("factorial").evidence())
    assert enough.notes == ()
    report = backend.compare(model, guide, max_entries=71, **options)
    assert report.evidence is None
    assert report.elbo is None
    assert report.marginals == {}
    for note in report.notes:
        assert "a table over a, b, c would have 72 entries, more than max_entries = 71" in note
    assert len(report.notes) == 2
    (row,), (known,) = report.estimates, enough.estimates
    assert row.elbo == known.elbo
    assert (row.gradient.variance, row.gradient.snr) == (
        known.gradient.variance,
        known.gradient.snr,
    )
    assert np.isnan([row.gradient.bias, row.gradient.floor, row.gradient.cosine]).all()
    assert "not enumerated" in str(report)
    assert report.best == ()
    assert "nan" not in str(report)
    assert report.plot().axes
    assert np.isnan(report.to_dataset()["evidence"])


def test_an_error_in_every_run_is_raised(backend):
    """Only an error that enumeration alone raises becomes a note."""
    guide = backend.gs.AutoGumbelSoftmax(plain(backend, "factorial"))

    def broken():
        raise ValueError("the program's own")

    with pytest.raises(ValueError, match="the program's own"):
        backend.compare(
            broken,
            guide,
            families=[backend.gs.STGumbelSoftmax],
            temperature=0.5,
            num_samples=5,
        )


def test_the_guide_alone_may_be_enumerated(backend):
    """The guide's ELBO averages each score separately; the model's evidence joins the scores."""
    table = {"model": (10**9, ["z"]), "guide": (1, ["z"])}
    session = backend.session(*one_site(backend, np.zeros(3), np.zeros(3)))
    session.table = table.get
    families = [backend.gs.STGumbelSoftmax]
    report = comparison.run(
        session, comparison.Options(families, [], [0.5], 3, 1, [], 100, progress_bar=False)
    )
    assert report.evidence is None
    assert report.elbo is not None
    assert list(report.marginals) == ["z"]
    assert report.marginals["z"].exact is None
    assert np.isfinite(report.estimates[0].gradient.bias)
    assert "1.0e9 entries" in report.notes[-1]
    assert str(report)
    assert report.plot().axes
    assert report.to_dataset()


def test_a_subsampled_plate_inside_of_the_latents_is_noted(backend):
    """The guide's latents have one scale; the data of the model have another."""
    ppl, law, array = backend.ppl, backend.native.Categorical, backend.array

    def model():
        with ppl.plate("groups", 2, dim=-1):
            z = ppl.sample("z", law(probs=array(PRIOR)))
            with ppl.plate("rows", 6, subsample_size=3, dim=-2) as rows:
                law_of_data = backend.native.Normal(array(LOCS)[z], 1.0)
                ppl.sample("x", law_of_data, obs=array(np.zeros((6, 2)))[rows])

    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(model, guide, num_samples=3, temperature=0.5)
    assert report.evidence is None
    assert report.elbo is not None
    (note,) = report.notes
    assert note == (
        "log evidence and exact marginals: not enumerated: the PPL needs one scale for all sites."
        " A plate with subsample_size, or a handler `scale`, scales some of them. Give the plate"
        " all rows"
    )


def test_joined_sites_are_noted(backend):
    ppl, gs = backend.ppl, backend.gs

    def model():
        law = gs.OneHotCategorical(probs=backend.array(np.tile(PRIOR, (2, 1)))).to_event(1)
        z = ppl.sample("z", law)
        loc = (z * backend.array(LOCS)).sum(-1).sum(-1)
        ppl.sample("x", backend.native.Normal(loc, 1.0), obs=backend.array(0.4))

    report = backend.compare(model, gs.AutoGumbelSoftmax(model), num_samples=3, temperature=0.5)
    assert report.evidence is None
    assert len(report.notes) == 2
    assert all("site 'z': to_event joins" in note for note in report.notes)
    assert [row.family for row in report.estimates] == ["GumbelSoftmax"] * 2 + ["STGumbelSoftmax"]


def test_a_score_of_all_rows_is_not_summed_to_a_wrong_number(backend):
    """NumPyro would give a finite number here, as if all rows had a common value."""
    ppl, array = backend.ppl, backend.array

    def model():
        with ppl.plate("units", 3):
            h = ppl.sample("h", backend.native.Bernoulli(probs=array(BITS)))
        ppl.sample("x", backend.native.Normal((h * array(1.0)).sum(-1), 1.0), obs=array(1.0))

    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(
        model, guide, families=[backend.gs.STGumbelSoftmax], num_samples=3, temperature=0.5
    )
    assert report.evidence is None
    assert all("'x' depends on all rows of 'h'" in note for note in report.notes)
    assert len(report.estimates) == 1


def test_sites_coupled_across_plates_are_noted(backend):
    ppl, array, gs = backend.ppl, backend.array, backend.gs

    def model():
        rows, columns = ppl.plate("rows", 2, dim=-1), ppl.plate("columns", 3, dim=-2)
        with rows:
            z = ppl.sample("z", gs.OneHotCategorical(probs=array(PRIOR)))
        with columns:
            w = ppl.sample("w", gs.OneHotCategorical(probs=array(PRIOR)))
        with rows, columns:
            loc = gs.select(array(LOCS), z) * gs.select(array(LOCS), w)
            ppl.sample("x", backend.native.Normal(loc, 1.0), obs=array(DATA.reshape(3, 2)))

    guide = backend.gs.AutoGumbelSoftmax(model)
    report = backend.compare(
        model, guide, families=[gs.STGumbelSoftmax], num_samples=3, temperature=0.5
    )
    assert report.evidence is None
    assert "'w', 'z' depend on each other across plates" in report.notes[0]


def test_a_relaxation_that_is_refused(backend):
    def model():
        backend.ppl.sample("n", backend.native.Categorical(probs=backend.array(PRIOR)))

    families = {"families": [backend.gs.ExpGumbelSoftmax], "objectives": ["categorical"]}
    with pytest.raises(ValueError, match="site 'n': objective='categorical' scores masses"):
        backend.compare(model, model, num_samples=2, **families)


def test_too_few_samples(backend):
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        backend.compare(*one_site(backend, np.zeros(3), np.zeros(3)), num_samples=1)
    with pytest.raises(ValueError, match="adaptation_steps must be at least 1, got 0"):
        backend.compare(*one_site(backend, np.zeros(3), np.zeros(3)), adaptation_steps=0)
