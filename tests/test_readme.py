"""Each code block of the README runs; the tables are those that the recorded results generate."""

import re
from pathlib import Path

import pytest
import readme_tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST, IN_NUMPYRO, *IN_PYRO = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
IN_THE_OTHER = {  # changes that the README describes
    "pyro": "numpyro",
    "torch.tensor": "jnp.array",
    "import torch": "import jax\nimport jax.numpy as jnp",
}


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_blocks_of_pyro(tmp_path, monkeypatch):
    import pyro

    monkeypatch.chdir(tmp_path)  # it saves a guide
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    found: dict = {}
    exec("\n".join([FIRST, *IN_PYRO]), found)
    assert found["locs"].sort().values.round().tolist() == [-4.0, 0.0, 4.0]
    assert found["own"].shape == (150, 3)
    assert found["classes"]["z"].unique().numel() == 2
    assert (tmp_path / "guide.pt").exists()


def test_blocks_of_numpyro(capsys):
    """The first program with the changes of the README, and the block that differs."""
    both, _, _ = FIRST.partition("adam = ")
    for old, new in IN_THE_OTHER.items():
        both = re.sub(rf"\b{re.escape(old)}\b", new, both)
    exec(both + IN_NUMPYRO, {})
    assert "[0 0 0 1 1 1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", readme_tables.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_tables_are_those_of_the_results(path):
    assert readme_tables.filled(path) == path.read_text()


@pytest.mark.parametrize(
    "path", readme_tables.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_table_has_its_place(path):
    marked = re.findall(r"<!-- table: (\w+) -->", path.read_text())
    assert sorted(marked) == sorted(readme_tables.DOCUMENTS[path])
