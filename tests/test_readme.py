"""Every code block of the README runs; its tables are those of the recorded results."""

import re
import runpy
from pathlib import Path

import pytest
import readme_tables

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_code_block(block, tmp_path):
    path = tmp_path / "block.py"
    path.write_text(block)
    if "pyro" in block:
        import pyro

        pyro.clear_param_store()
    runpy.run_path(str(path))


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("path", readme_tables.DOCUMENTS, ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_results(path):
    assert readme_tables.filled(path) == path.read_text()
