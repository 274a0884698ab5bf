"""The tutorials as files: notebooks that Jupyter opens, and the records that they show.

`make docs` executes them.
"""

import json
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="of the extra [docs]")
nbformat = pytest.importorskip("nbformat", reason="of the extra [docs]")
read = pytest.importorskip("myst_nb.core.read", reason="of the extra [docs]")

SITE = Path(__file__).parents[1] / "docs"
FOLDER = SITE / "tutorials"
EXECUTED = [
    str(path.relative_to(SITE))
    for path in sorted(SITE.glob("*/*.md"))
    if "file_format: mystnb" in path.read_text()
]
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
RECORDS = sorted(path.stem for path in (FOLDER / "results").glob("*.json"))


def keeps(page: str) -> bool:
    """Whether its long form writes a record."""
    return bool(re.search(rf'keep\(\s*"{page}"', (FOLDER / f"{page}.md").read_text()))


def sources(notebook) -> list[str]:
    return [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("page", PAGES)
def test_jupyter_and_the_site_read_the_same_cells(page):
    path = FOLDER / f"{page}.md"
    cells = sources(jupytext.read(path))
    assert cells
    assert cells == sources(read.read_myst_markdown_notebook(path.read_text()))
    for i, cell in enumerate(cells):
        compile(cell, f"{page}, cell {i}", "exec")
        assert max(map(len, cell.splitlines())) <= 100


@pytest.mark.parametrize("page", EXECUTED)
def test_jupyter_opens_it(page):
    """The kernel has a display name, which nbformat requires."""
    notebook = jupytext.read(SITE / page)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"] == {"display_name": "Python 3", "name": "python3"}


@pytest.mark.parametrize("page", RECORDS)
def test_a_record_is_shown_and_says_where_it_is_from(page):
    record = json.loads((FOLDER / "results" / f"{page}.json").read_text())
    assert record.keys() > {"command", "seed", "versions"}
    assert record["command"].endswith(f"_record.py {page}")
    text = (FOLDER / f"{page}.md").read_text()
    assert keeps(page)
    assert f'found = read("{page}")' in text
    assert "source(found)" in text


def test_every_page_is_in_the_index_and_has_its_record():
    index = (FOLDER / "index.md").read_text()
    assert [page for page in PAGES if f"({page}.md)" not in index] == []
    assert [page for page in PAGES if keeps(page)] == RECORDS
