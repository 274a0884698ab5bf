"""The search for the settings of Table 1's cells, and its records."""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "models" / "results"


@pytest.fixture
def tuning(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("_tuning")


@pytest.fixture
def cells(tuning):
    return importlib.import_module("_cells")


@pytest.fixture
def reproduce(tuning):
    return importlib.import_module("reproduce")


def search(tuning, rates, nats):
    """The trials in order, if trials have these nats."""
    trials = []
    while (settings := tuning.next_trial(trials, rates)) is not None:
        trials.append(dict(zip(("learning_rate", "rate"), settings, strict=True)))
        trials[-1]["nats"] = nats(*settings)
    return trials


def around(best, other=0.0):
    """Nats that increase with the distance from the best learning rate, and under other rates."""
    return lambda step, rate: 100 + abs(np.log(step / best)) + other * (rate == 1e-5)


GRID = [1e-3, 3e-3, 1e-2, 3e-2]
BOTH = (1e-4, 1e-5)
SEARCHES = {
    # rates, nats: the trials, the rate of each, and the choice
    "inside": (BOTH, around(1e-2, -1), [*GRID, 1e-2], (1e-2, 1e-5)),
    "first_rate": (BOTH, around(3e-3, 1), [*GRID, 3e-3], (3e-3, 1e-4)),
    "one_rate": ((0.0,), around(3e-3), GRID, (3e-3, 0.0)),
    "below": ((0.0,), around(2e-4), [*GRID, 3e-4, 1e-4], (3e-4, 0.0)),
    "above": ((0.0,), around(3e-2), [*GRID, 1e-1], (3e-2, 0.0)),
    "end_of_ladder": ((0.0,), around(1.0), [*GRID, 1e-1, 3e-1], (3e-1, 0.0)),
    "diverges": (
        (0.0,),
        lambda step, rate: None if step > 5e-3 else around(3e-3)(step, rate),
        GRID,
        (3e-3, 0.0),
    ),
}


@pytest.mark.parametrize(("rates", "nats", "tried", "chosen"), SEARCHES.values(), ids=SEARCHES)
def test_search(tuning, rates, nats, tried, chosen):
    trials = search(tuning, rates, nats)
    assert [trial["learning_rate"] for trial in trials] == tried
    assert {trial["rate"] for trial in trials} == set(rates)
    assert tuple(tuning.choose(trials).values()) == chosen


def test_a_trial_takes_the_course_of_the_long_run(tuning, cells):
    """At each share of the steps the temperature is that of the long run."""
    for cell in cells.list_searches():
        short = tuning.in_short(cell.settings)
        times = cell.settings.steps / short.steps
        assert short.steps == 10_000
        for step in range(0, short.steps, 777):
            long = cell.settings.schedule(round(step * times))
            assert short.schedule(step) == pytest.approx(long, rel=1e-6)


def test_searches_have_the_same_protocol(cells):
    """Cells of a row differ only in the estimator, its learning rate and its temperature."""
    of_estimator = {"family": "ReinMax", "baseline": 0, "learning_rate": 1.0, "rate": 0.0}
    rows = {}
    for cell in cells.list_searches():
        rows.setdefault(cell.row, set()).add(replace(cell.settings, **of_estimator))
    assert set(rows) == set(cells.PAPER)
    assert all(len(settings) == 1 for settings in rows.values())


def test_search_goes_on_after_its_last_trial(reproduce, tmp_path, monkeypatch):
    """Interrupted after three trials, the search has three records and goes on with the fourth."""
    only = "tune_vae_bits_gumbel-s"
    arguments = argparse.Namespace(
        **{"table": "tune", "only": only, "backends": ["numpyro"], "output": tmp_path},
        **{"recorded": False, "quick": True},
    )
    tried = []

    def run_trial(cell, trial, data, folder, quick):
        if len(tried) == 3 and not (tmp_path / "went_on").exists():
            raise KeyboardInterrupt
        tried.append(trial["learning_rate"])
        return {"nats": around(1e-2)(*trial.values()), "ms": 1.0}

    monkeypatch.setattr(reproduce, "run_trial", run_trial)
    monkeypatch.setattr(reproduce, "load", lambda arguments: {})
    with pytest.raises(KeyboardInterrupt):
        reproduce.run_searches(arguments, tmp_path)
    arguments.recorded = True
    (partial,) = reproduce.run_searches(arguments, tmp_path)
    assert (len(partial["trials"]), partial["choice"]) == (3, None)
    assert not reproduce.list_tuned(tmp_path)
    (tmp_path / "went_on").touch()
    arguments.recorded = False
    (whole,) = reproduce.run_searches(arguments, tmp_path)
    assert tried == [*GRID, 1e-2]
    assert whole["choice"] == {"learning_rate": 1e-2, "rate": 1e-4}
    tuned = reproduce.list_tuned(tmp_path)
    assert {cell.settings.seed for cell in tuned} == {0, 1, 2}
    assert {cell.settings.learning_rate for cell in tuned} == {1e-2}
    assert {cell.settings.steps for cell in tuned} == {200_000}
    assert {cell.row for cell in tuned} == {"VAE, bits, tuned"}


def test_recorded_searches(tuning, cells):
    """Each record has the present settings, and the trials that the search would make now."""
    searches = {cell.name("tune"): cell for cell in cells.list_searches()}
    for path in (RESULTS / "tuning").glob("*.json"):
        record, cell = json.loads(path.read_text()), searches[path.stem]
        defaults = vars(type(cell.settings)())
        assert defaults | record["settings"] == json.loads(json.dumps(vars(cell.settings)))
        rates, trials = cells.rates_of(cell.settings), record["trials"]
        for i, trial in enumerate(trials):
            settings = tuning.next_trial(trials[:i], rates)
            assert settings == (trial["learning_rate"], trial["rate"])
            assert trial["nats"] is None or trial["images"] == 10_000
        done = tuning.next_trial(trials, rates) is None
        assert record["choice"] == (tuning.choose(trials) if done else None)


def test_record_has_a_list_of_numbers_on_a_line(reproduce, tmp_path):
    record = {
        "curve": [[1, -2.5e-07], [30, 4.0]],
        "words": ["a", "b"],
        "none": [],
        "row": [3, 4, 5],
    }
    reproduce.write_record(tmp_path / "record.json", record)
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text) == record
    assert {"  [1, -2.5e-07],", ' "row": [3, 4, 5]'} <= set(text.splitlines())
