"""A tutorial in two forms: short, when the site is built; long, when its record is written.

`steps(short, long)` is the number of training steps. Code below `if LONG:` runs only in the long
form; it ends with `keep`, which writes results/PAGE.json. Both forms show what `read` finds there.
`make docs` runs the short form. `make docs-full` runs this file as a program, which executes the
long form of all pages, or of the named pages:

    python docs/tutorials/_record.py mixture hidden_markov
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterable
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CACHE = HERE.parent / "_build" / "jupyter_cache"
LONG = os.environ.get("GS_PPL_DOCS") == "full"
PACKAGES = ["gs-ppl", "numpy", "scikit-learn", "torch", "pyro-ppl", "jax", "numpyro"]


def steps(short: int, long: int) -> int:
    """The number of steps in the current form."""
    return long if LONG else short


def keep(page: str, seed: int = 0, also: tuple[str, ...] = (), **figures: Any) -> None:
    """Writes the results of the long form of a page, with the versions of the packages."""
    kept = {
        "command": f"python docs/tutorials/_record.py {page}",
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in (*PACKAGES, *also)},
        },
        **_plain(figures),
    }
    _path(page).write_text(json.dumps(kept) + "\n")


def read(page: str) -> dict[str, Any]:
    """The record of a page."""
    return json.loads(_path(page).read_text())


def source(found: dict[str, Any]) -> Any:
    """The source of a record, as one line below its table."""
    from IPython.display import Markdown

    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return Markdown(f"*Long form: `{found['command']}`, seed {found['seed']}; {versions}.*")


def table(rows: list[dict[str, Any]]) -> Any:
    """A table in HTML, because the site cannot read Markdown tables in outputs.

    Args:
        rows: their keys are the columns.
    """
    from IPython.display import HTML

    def line(tag: str, cells: Iterable) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    head, body = line("th", rows[0]), "".join(line("td", row.values()) for row in rows)
    whole = f"<table class='docutils'><thead>{head}</thead><tbody>{body}</tbody></table>"
    return HTML(f"<div class='table-wrapper'>{whole}</div>")


def _path(page: str) -> Path:
    return HERE / "results" / f"{page}.json"


def _plain(value: Any) -> Any:
    """The value in JSON's types; numbers have five digits."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, list | tuple) or np.ndim(value):
        return [_plain(part) for part in value]
    number = np.asarray(value).item()
    return float(f"{number:.5g}") if isinstance(number, float) else number


def forget(page: str) -> None:
    """Removes the page from the site's cache, which compares only its code, not its record."""
    from jupyter_cache import get_cache

    if CACHE.exists():
        cache = get_cache(CACHE)
        for kept in cache.list_cache_records():
            if Path(kept.uri).stem == page:
                cache.remove_cache(kept.pk)


def run(page: str) -> None:
    """Executes a page in the same way as the site."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(HERE / f"{page}.md")
    began = time.perf_counter()
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(HERE)}}).execute()
    forget(page)
    print(f"{page}: {time.perf_counter() - began:.0f} s")


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("*.md") if "keep(" in path.read_text())
    parser = argparse.ArgumentParser(description="Runs the long form of tutorials.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(names)}")
    pages = parser.parse_args().pages or names
    if unknown := {*pages} - {*names}:
        parser.error(f"no such tutorials: {', '.join(sorted(unknown))}")
    os.environ["GS_PPL_DOCS"] = "full"
    for page in pages:
        run(page)


if __name__ == "__main__":
    main()
