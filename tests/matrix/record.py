"""Keeps the result of a run of the whole suite, for the site's table: one row for each Python and
set of versions. `run.sh` calls it, with the interpreter of the tested environment.

Usage: record.py CONSTRAINTS REPORT...   (JUnit's XML; a later report, of tests that were corrected
and run again, replaces the results of an earlier one)
"""

import json
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

RECORD = Path(__file__).with_name("record.json")
PACKAGES = "torch", "pyro-ppl", "jax", "numpyro", "funsor", "numpy", "scipy", "arviz", "flax"
BAD = "failure", "error"


def outcomes(report: Path) -> dict[str, str]:
    """The outcome by test; a test whose teardown fails is there twice."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        tags = [child.tag for child in case]
        word = "failed" if set(tags) & set(BAD) else "skipped" if "skipped" in tags else "passed"
        found[name] = "failed" if found.get(name) == "failed" else word
    return found


def row(constraints: str, reports: list[Path]) -> dict[str, object]:
    first, *again = map(outcomes, reports)
    last = first | {name: word for other in again for name, word in other.items() if name in first}
    return {
        "python": platform.python_version(),
        "constraints": constraints,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "tests": dict(sorted(Counter(last.values()).items())),
        "run again after mending": sum(word == "failed" for word in first.values()) if again else 0,
    }


def kept(rows: list[dict], new: dict) -> list[dict]:
    """The rows; the new one replaces the one with the same Python and constraints."""

    def key(row: dict) -> tuple:
        return [int(part) for part in row["python"].split(".")[:2]], row["constraints"]

    return sorted([*(row for row in rows if key(row) != key(new)), new], key=key)


if __name__ == "__main__":
    constraints, *reports = sys.argv[1:]
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
    rows = kept(rows, row(constraints, [Path(report) for report in reports]))
    RECORD.write_text(json.dumps(rows, indent=2) + "\n")
