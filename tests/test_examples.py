"""Every example runs, in a short form, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "compare_inference.py": ["--quick", "--backend", "both"],
}


def test_every_example_is_listed():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts - {"_report.py"} == set(EXAMPLES)


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / name, *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    result = run(name, *EXAMPLES[name], "--output", tmp_path, "--json", tmp_path / "table.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["rows"]
    for picture in report["pictures"]:
        assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_compare_inference_refuses_a_bad_step_count():
    result = run("compare_inference.py", "--steps", "0")
    assert result.returncode == 2
    assert "--steps must be at least 1, got 0" in result.stderr


@pytest.mark.parametrize("record", ["comparison", "comparison_seed1", "comparison_seed2"])
def test_recorded_demo(record):
    """What the README shows: Gumbel-Softmax within 1 % of enumeration, on both sides."""
    report = json.loads((ROOT / "examples" / "results" / f"{record}.json").read_text())
    gaps = {
        (row["backend"], row["method"], row["temperature"]): row["gap_percent"]
        for row in report["rows"]
    }
    for backend in ("pyro", "numpyro"):
        assert gaps[backend, "Enumeration", None] == 0
        assert abs(gaps[backend, "GumbelSoftmax", "1 → 0.5"]) < 1
        # cold from the start: more variance than the bias that it saves
        assert gaps[backend, "STGumbelSoftmax", "0.1"] > gaps[backend, "STGumbelSoftmax", "1 → 0.5"]
