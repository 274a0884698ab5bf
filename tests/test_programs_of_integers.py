"""Programs over integers as users write them for each PPL, relaxed by one line around them.

At each vertex of a small instance, the log joint and its gradient in the tables are those of the
integer program. Between vertices both are those of the one-hot way, written by hand.
"""

import functools
import importlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
from integer_programs import PROGRAMS, REFUSED, SCANS, stacked

POINTS = 2  # number of points between the vertices


def attributes(backend, instance, tables):
    """What a program reads: tables, traced or not, and data unchanged."""
    data = {
        name: backend.totals(x)
        if name in instance.counts
        else backend.array(x, None if x.dtype.kind == "f" else str(x.dtype))
        for name, x in instance.data.items()
    }
    return SimpleNamespace(**{**tables, **data})


def source(backend, name):
    return getattr(importlib.import_module(f"programs_{backend.name}"), name)


def log_joint(backend, name, tables, values, relaxed):
    """Log joint of the program at these values of its discrete sites."""
    instance = PROGRAMS[SCANS.get(name, name)]
    t = attributes(backend, instance, tables)
    model = source(backend, name)
    program = backend.gs.relax(lambda: model(t), 0.5) if relaxed else lambda: model(t)
    if name in SCANS:
        values = stacked(values, backend.stack)
    given = {latent: tables[latent] for latent in instance.given}
    fixed = backend.given(program, {**values, **given})
    return backend.seeded_log_joint(fixed, 0)


def integers(backend, instance, cells):
    return {
        name: backend.totals(z) if site.bit or site.highest else backend.array(z, "int64")
        for (name, site), z in zip(instance.sites.items(), cells.values(), strict=True)
    }


@functools.cache
def evaluated(backend, name):
    """Value, and gradient in the weights and in the tables: at all vertices, then at soft
    points."""
    instance = PROGRAMS[SCANS.get(name, name)]
    tables = {key: backend.array(x) for key, x in instance.tables.items()}
    vertices, soft = instance.vertices(), instance.soft(POINTS)
    batch = {key: backend.array(np.concatenate([vertices[key], soft[key]])) for key in vertices}
    f = lambda values, tables: log_joint(backend, name, tables, values, relaxed=True)  # noqa: E731
    return instance, tables, batch, backend.at_each(f, batch, tables, argnums=(0, 1))


def unclipped(log, instance):
    """Minus infinity for events of probability 0; each PPL clips it at a different place."""
    return np.where(log < -25, -np.inf, log) if instance.zeros else log


def tangent(x, gradient):
    """The part along the simplex for tables of probabilities, which NumPyro's laws do not
    normalise."""
    is_simplex = x.ndim and np.allclose(x.sum(-1), 1)
    return gradient - gradient.mean(-1, keepdims=True) if is_simplex else gradient


def vertices_are_the_integer_program(backend, name):
    instance, tables, _, (value, (_, slopes)) = evaluated(backend, name)
    cells = integers(backend, instance, instance.cells())
    f = lambda values, tables: log_joint(backend, name, tables, values, relaxed=False)  # noqa: E731
    wanted, (expected,) = backend.at_each(f, cells, tables, argnums=(1,))
    n = len(wanted)
    value, wanted = unclipped(value[:n], instance), unclipped(wanted, instance)
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-11)
    possible = np.isfinite(wanted)
    assert possible.any()
    for key, x in instance.tables.items():
        one, other = (tangent(x, g[key][:n][possible]) for g in (slopes, expected))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11, err_msg=key)


def along(site, gradient):
    """The part along the simplex: the sum of the weights is 1 in one program, and free in the
    other."""
    if site.bit:
        return gradient
    exists = np.arange(site.classes) < np.reshape(site.tops(), (*site.shape, 1))
    mean = gradient.mean(-1, keepdims=True, where=exists)
    return np.where(exists, gradient - mean, 0.0)


def between_vertices_is_the_one_hot_way(backend, name):
    instance, tables, batch, (value, (gradients, slopes)) = evaluated(backend, name)
    way = lambda y, tables: instance.way(  # noqa: E731
        backend.lib, backend.native, y, attributes(backend, instance, tables)
    )
    soft = {key: y[-POINTS:] for key, y in batch.items()}
    wanted, (expected, by_tables) = backend.at_each(way, soft, tables, argnums=(0, 1))
    np.testing.assert_allclose(value[-POINTS:], wanted, rtol=0, atol=1e-12)
    for key, site in instance.sites.items():
        one, other = along(site, gradients[key][-POINTS:]), along(site, expected[key])
        if key in instance.sure:
            one, other = (np.where(instance.sure[key], 0, x) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12, err_msg=key)
    for key in tables:
        np.testing.assert_allclose(
            slopes[key][-POINTS:], by_tables[key], rtol=0, atol=1e-12, err_msg=key
        )


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.quick("mixture", "hidden_markov", "annotation", "capture_recapture", "change_point")
def test_vertices(backend, name):
    vertices_are_the_integer_program(backend, name)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.quick("mixture", "hidden_markov", "annotation", "capture_recapture", "change_point")
def test_between_vertices(backend, name):
    between_vertices_is_the_one_hot_way(backend, name)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", SCANS)
def test_vertices_in_scan(backend, name):
    vertices_are_the_integer_program(backend, name)


@pytest.mark.only("numpyro")
@pytest.mark.parametrize("name", SCANS)
def test_between_vertices_in_scan(backend, name):
    between_vertices_is_the_one_hot_way(backend, name)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(backend, name):
    """The error has one line that names site, operation and solution."""
    t = {"weights": [0.2, 0.3, 0.5], "locs": [-1.0, 0.0, 2.0], "x": 0.5, "phi": 0.3, "one": 1.0}
    t = SimpleNamespace(**{key: backend.array(x) for key, x in t.items()})
    program = backend.gs.relax(lambda: source(backend, name)(t), 0.5)
    # JAX refuses a slice before it asks the soft index; its IndexError shows the soft index
    with pytest.raises((ValueError, IndexError), match=REFUSED[name]) as error:
        backend.trace(program, 0)
    message = str(error.value)
    assert re.search(r"sites? '(z|x|label|k)'", message)
    assert isinstance(error.value, IndexError) or "; " in message.splitlines()[0]
