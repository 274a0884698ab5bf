"""The trained guide of a relaxed integer program, compared with the best mean-field guide.

Both are measured on the table of the integer program's log joints at all cells.
"""

import numpy as np
import pytest
from integer_programs import PROGRAMS, SCANS
from joint_tables import best_mean_field, elbo
from test_programs_of_integers import attributes, integers, log_joint, source, unclipped


def log_joints(backend, name):
    """Log joint of each cell, with one axis for each draw."""
    instance = PROGRAMS[name]
    tables = {key: backend.array(x) for key, x in instance.tables.items()}
    cells = integers(backend, instance, instance.cells())
    f = lambda values, tables: log_joint(backend, name, tables, values, relaxed=False)  # noqa: E731
    values, _ = backend.at_each(f, cells, tables, argnums=(1,))
    tops = [top for site in instance.sites.values() for top in site.tops()]
    return unclipped(values, instance).reshape(tops)


def draws(instance, probs):
    """The probabilities of each draw; those of a masked draw do not matter."""
    found = []
    for name, site in instance.sites.items():
        p = np.stack([1 - probs[name], probs[name]], -1) if site.bit else probs[name]
        left_out = np.broadcast_to(instance.masked.get(name, False), site.shape)[..., None]
        p = np.where(left_out, 1 / site.classes, p).reshape(-1, site.classes)
        found += [row[:top] for row, top in zip(p, site.tops(), strict=True)]
    return found


def trained(backend, name, steps=400):
    """Probabilities of each draw after annealed training."""
    instance = PROGRAMS[SCANS.get(name, name)]
    tables = {key: backend.array(x) for key, x in instance.tables.items()}
    t, program = attributes(backend, instance, tables), source(backend, name)
    given = {latent: tables[latent] for latent in instance.given}
    model = backend.condition(lambda: program(t), given)
    guide = backend.gs.AutoGumbelSoftmax(model)
    schedule = lambda step: 0.9 - 0.7 * step / steps  # noqa: E731
    loss = backend.infer.TraceMeanField_ELBO()
    relaxed = backend.gs.relax(model)
    _, params = backend.anneal(relaxed, guide, loss, schedule, steps, learning_rate=0.1)
    probs = backend.guide_probs(guide, params)
    if name in SCANS:  # stacked in time
        probs = {f"{site}{i}": p for site, rows in probs.items() for i, p in enumerate(rows)}
    return draws(instance, probs)


def shortfall(backend, name):
    """Distance of the ELBO from the best one, in units of the tolerance: 1 nat, or 1 %."""
    table = log_joints(backend, SCANS.get(name, name))
    best = best_mean_field(table)
    return (best - elbo(table, trained(backend, name))) / max(1.0, 0.01 * abs(best))


OTHERS = [name for name in PROGRAMS if not PROGRAMS[name].zeros]


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_elbo_is_near_the_best(backend, name):
    assert shortfall(backend, name) < 1


@pytest.mark.long
@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", ["hidden_markov_scan", "second_order_scan"])
def test_elbo_is_near_the_best_in_scan(backend, name):
    assert shortfall(backend, name) < 1


def mode_is_near_the_best_cell(backend, name):
    """Some cells have probability 0: if the guide is not certain, its ELBO is infinite."""
    table = log_joints(backend, name)
    mode = tuple(q.argmax() for q in trained(backend, name))
    assert table.max() - table[mode] < 1.0


@pytest.mark.long
def test_mode_of_competence(backend):
    mode_is_near_the_best_cell(backend, "competence")


@pytest.mark.long
def test_mode_of_capture_and_recapture(backend):
    mode_is_near_the_best_cell(backend, "capture_recapture")


def test_log_of_a_clipped_zero_is_no_jump(backend):
    """NumPyro clips it at -708 in float64."""
    trained(backend, "capture_recapture", steps=2)


def test_a_guide_that_cannot_be_sure_is_refused(backend):
    """Another latent makes a bit certain, so that the divergence would be infinite."""
    with pytest.raises(ValueError, match=r"site 'alive1'.*infinite"):
        trained(backend, "late_entry", steps=2)
