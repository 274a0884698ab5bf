"""Pages of the site: the code in tabs runs, and the page of errors has each message of check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs"
SHOWN = {"pyro": "Pyro", "numpyro": "NumPyro"}
ALL = None
CHECKS = {  # the functions in which check finds errors and warnings
    "gs_ppl/_shared/pairings.py": ALL,
    "gs_ppl/_shared/observed.py": ALL,
    "gs_ppl/_shared/probing.py": ALL,
    "gs_ppl/_shared/starting.py": {"warn_of_equal"},
    "gs_ppl/_shared/families.py": {"refuse_enumerated_parents", "refuse_straight_through"},
    "gs_ppl/pyro/checks.py": ALL,
    "gs_ppl/numpyro/checks.py": ALL,
}
NOT_OF_CHECK = {"refuse_mixed", "refuse_spaces", "refuse_temperatures"}  # errors of the divergences


def blocks_of(page, side):
    """The code in the tabs of a side, which is one program."""
    tabs = re.findall(r"^:::\{tab-item\} (\w+)\n(.*?)^:::$", page.read_text(), re.DOTALL | re.M)
    bodies = [body for title, body in tabs if title == SHOWN[side]]
    return re.findall(r"```python\n(.*?)```", "\n".join(bodies), re.DOTALL)


PAGES = [
    pytest.param(
        page,
        id=str(page.relative_to(SITE)),
        marks=[] if page.name == "first_program.md" else pytest.mark.long,
    )
    for folder in ("start", "howtos", "explanations")
    for page in sorted((SITE / folder).glob("*.md"))
    if any(blocks_of(page, side) for side in SHOWN)
]


@pytest.mark.parametrize("page", PAGES)
def test_code_in_tabs(page, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend.start_anew()
    exec("\n".join(blocks_of(page, backend.name)), {})


def parts_of(node):
    """The texts of a message, without the parts in braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [x for part in node.values for x in parts_of(part)]
    return []


def messages_of(path, functions):
    """The longest text of each error and warning of these functions; None: all but some
    functions."""
    for function in ast.parse((ROOT / path).read_text()).body:
        name = getattr(function, "name", "")
        if name in NOT_OF_CHECK or (functions is not None and name not in functions):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and node.args:
                raises = ast.unparse(node.func) in ("ValueError", "warnings.warn")
                if raises and (parts := parts_of(node.args[0])):
                    yield max(parts, key=len).strip()


def words(text):
    return " ".join(text.replace("`", "").split())


@pytest.mark.parametrize(("path", "functions"), CHECKS.items(), ids=CHECKS)
def test_page_of_errors(path, functions):
    page = words((SITE / "howtos" / "errors.md").read_text())
    found = [words(text) for text in messages_of(path, functions)]
    assert found
    assert [text for text in found if text not in page] == []
