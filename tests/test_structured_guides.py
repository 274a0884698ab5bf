"""Guides with parents in use: masks, minibatches, other latents, each estimator.

The guide is almost certain of one class for each class of the parent, so that its loss is a log
joint.
"""

import itertools
from functools import partial

import numpy as np
import pytest
from enumerable import plain
from estimates import ESTIMATORS, LAYERED, layered
from programs import LOCS, PRIOR, TRANSITION, normal
from scipy.special import logsumexp
from scipy.stats import norm

X = np.array([[0.5, -1.0, 1.5, 0.2], [0.1, 0.9, -0.7, 2.0]])
SEEN = np.array([[True] * 4, [True, False, True, False]])
PARENTS = {"top": (), "z0": ("top",), "z1": ("z0",)}


def chain(backend, *, size=None, rows=None, shift=False):
    """A class shared by all rows; two classes in each row depend on it, the second masked in some
    rows."""
    ppl, array, native = backend.ppl, backend.array, backend.native

    def model(rows=rows):
        moved = ppl.sample("shift", native.Normal(array(0.0), 1.0)) if shift else 0.0
        z = ppl.sample("top", native.Categorical(probs=array(PRIOR)))
        all_or_some = partial(ppl.plate, "data", 4, subsample_size=size)
        with all_or_some() if rows is None else backend.plate_of_rows("data", 4, rows) as i:
            for t in range(2):
                seen = array(SEEN[t], "bool")[i]
                law = native.Categorical(probs=array(TRANSITION)[z])
                z = ppl.sample(f"z{t}", backend.mask(law, seen))
                x = native.Normal(array(LOCS)[z] + moved, 1.0)
                ppl.sample(f"x{t}", backend.mask(x, seen), obs=array(X[t])[i])

    return model


def follows(parent):
    """For each row, its class given the class of its parent."""
    return (np.arange(4) + 2 * parent) % 3


LOGITS = {"top": 60 * np.eye(3)[1]} | dict.fromkeys(
    ("z0", "z1"), 60 * np.eye(3)[follows(np.arange(3)[:, None]).T]
)
CLASSES = {"top": 1, "z0": follows(1), "z1": follows(follows(1))}


def sure(backend, model, **options):
    init = {site: backend.array(a) for site, a in LOGITS.items()}
    return backend.gs.AutoGumbelSoftmax(model, init_logits=init, parents="model", **options)


def terms(shift=0.0):
    """Log joint at CLASSES: the term of the shared class, and the term of each row."""
    z = [CLASSES["top"], CLASSES["z0"], CLASSES["z1"]]
    rows = sum(
        SEEN[t] * (np.log(TRANSITION[z[t], z[t + 1]]) + normal(X[t], LOCS[z[t + 1]] + shift))
        for t in range(2)
    )
    return np.log(PRIOR[1]), rows


def pair(backend, model, guide=sure):
    options = {"temperature": 0.5, "family": backend.gs.STGumbelSoftmax}
    return backend.gs.relax(model, **options), guide(backend, model, **options)


@pytest.mark.parametrize("size", [None, 2], ids=["all", "two"])
@pytest.mark.quick("two")
def test_masked_rows(backend, size):
    """Each row of a minibatch has its tables and masks; two of four rows count twice."""
    relaxed, guide = pair(backend, chain(backend, size=size))
    elbo, (top, rows) = backend.infer.TraceMeanField_ELBO(), terms()
    backend.gs.check(relaxed, guide, elbo)
    pairs = backend.gradients(elbo, relaxed, guide, range(8))
    some = itertools.combinations(range(4), size or 4)
    possible = [-(top + 4 / len(at) * rows[[*at]].sum()) for at in some]
    for loss, gradient in pairs:
        assert np.abs(np.subtract(loss, possible)).min() < 1e-6
        np.testing.assert_array_equal(gradient[backend.auto_logits("z1")][~SEEN[1]], 0.0)
    assert len({round(loss, 6) for loss, _ in pairs}) > (2 if size else 0)
    assert guide._parents == PARENTS
    mode = backend.guide_mode(guide, backend.params_of(guide))
    for site, wanted in CLASSES.items():
        np.testing.assert_array_equal(mode[site], wanted)


@pytest.mark.long
def test_rows_that_the_program_gives(backend):
    elbo, (top, rows) = backend.infer.TraceMeanField_ELBO(), terms()
    relaxed, guide = pair(backend, chain(backend, rows=backend.array([3, 0], "int64")))
    loss, _ = backend.loss_and_gradient(elbo, relaxed, guide, 0)
    assert loss == pytest.approx(-(top + 2 * (rows[3] + rows[0])), rel=1e-6)


@pytest.mark.parametrize("way", ["list", "line"])
@pytest.mark.quick("line")
def test_beside_continuous(backend, way):
    """The log joint at the start of AutoDelta; the list reads and replaces in the same way as its
    parts."""
    gs, autoguide = backend.gs, backend.infer.autoguide
    model = chain(backend, shift=True)
    delta = partial(autoguide.AutoDelta, init_loc_fn=backend.init_to(shift=backend.array(0.7)))

    def guide(backend, model, **options):
        init = {site: backend.array(a) for site, a in LOGITS.items()}
        if way == "line":
            return gs.auto_relaxed(model, delta, init_logits=init, parents="model", **options)
        whole, discrete = gs.AutoGuideList(model), [*PARENTS]
        whole.append(delta(backend.bare_block(model, hide=discrete)))
        part = backend.bare_block(model, hide=["shift"])
        whole.append(sure(backend, part, **options))
        return whole

    relaxed, guide = pair(backend, model, guide)
    elbo, (top, rows) = backend.infer.TraceMeanField_ELBO(), terms(0.7)
    backend.gs.check(relaxed, guide, elbo)
    (loss, _), *_ = backend.gradients(elbo, relaxed, guide, [0])
    assert loss == pytest.approx(-(top + rows.sum() + norm.logpdf(0.7)), rel=1e-6)
    median = backend.guide_median(guide, backend.params_of(guide))
    draws = backend.predict(model, gs.discretize(guide), backend.params_of(guide), 3)
    assert median["shift"] == pytest.approx(0.7)
    for site, wanted in CLASSES.items():
        np.testing.assert_array_equal(median[site], wanted)
        drawn = backend.trace(gs.discretize(guide), 0)[site]
        np.testing.assert_array_equal(backend.numpy(drawn), wanted)
    assert draws["x0"].shape == (3, 4)


@pytest.mark.long
def test_other_sites_are_summed_out(backend):
    """`sites` without the shared class: the other sites have only each other as parents."""
    gs, elbo = backend.gs, backend.gs.TraceEnum_ELBO(max_plate_nesting=1)
    sites = ["z0", "z1"]
    model = backend.native_config_enumerate(chain(backend))
    options = {"temperature": 0.5, "family": gs.STGumbelSoftmax, "sites": sites}
    at = follows(np.arange(3)[:, None]).T
    logits = {"z0": 60 * np.eye(3)[CLASSES["z0"]], "z1": 60 * np.eye(3)[at]}
    init = {site: backend.array(a) for site, a in logits.items()}
    guide = gs.AutoGumbelSoftmax(model, init_logits=init, parents="model", **options)
    loss = backend.elbo_loss(elbo, gs.relax(model, **options), guide)
    rows = terms()[1] - np.log(TRANSITION[1, CLASSES["z0"]])
    above = np.log(PRIOR) + np.log(TRANSITION[:, CLASSES["z0"]]).sum(-1)
    assert loss == pytest.approx(-(rows.sum() + logsumexp(above)), rel=1e-6)
    assert guide._parents == {"z0": (), "z1": ("z0",)}


@pytest.mark.parametrize("name", ["RLOO", "NVIL", "MuProp", "REBAR", "DisARM", "DARN"])
@pytest.mark.quick("REBAR")
def test_estimators(backend, name):
    """With the same seed, the gradient of the same guide by hand; test_estimators tests its
    mean."""
    gs, model = backend.gs, plain(backend, "bernoulli_net")
    hand = layered(backend, model, LAYERED.parameters)
    init = {site: backend.array(LAYERED.parameters[f"to_{site}"]) for site in ("top", "h")}
    auto = gs.AutoGumbelSoftmax(model, parents="model", init_logits=init)
    backend.params_of(auto)  # its first run draws more
    runs = []
    for guide in (hand, gs.discretize(auto)):
        elbo = ESTIMATORS[name](backend)  # its first run may draw more, too
        wrapped = elbo.wrap(guide) if name == "NVIL" else guide
        runs.append(backend.loss_and_gradient(elbo, model, wrapped, 1))
    known, found = runs
    assert found[0] == pytest.approx(known[0], rel=1e-12)
    for site in init:
        ours, theirs = found[1][backend.auto_logits(site)], known[1][f"to_{site}"]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
        assert np.abs(theirs).max() > 0
