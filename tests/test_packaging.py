"""The package as a whole: what is shipped, what an import loads, and how the two sides mirror."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gs_ppl

ROOT = Path(__file__).resolve().parent.parent
SIDES = ["pyro", "numpyro"]
FRAMEWORKS = {"pyro": {"pyro", "torch"}, "numpyro": {"numpyro", "jax"}}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Made by tools, not by hand; hidden folders other than .ci are not ours either.
GENERATED = {"_build", "build", "dist", "results", "__pycache__", "gs_ppl.egg-info"}


def source_paths() -> list[Path]:
    """Files and folders of the checkout, relative to its root."""
    found = []
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in GENERATED and (name == ".ci" or not name.startswith("."))
        ]
        files = [name for name in files if name != ".git"]  # in a worktree of git
        found += [(Path(folder) / name).relative_to(ROOT) for name in subfolders + files]
    return found


def python(code: str) -> str:
    """What the code prints in a fresh interpreter, where every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# What is shipped


def test_package_list_equals_the_tree():
    packages = {
        ".".join(path.parent.parts)
        for path in source_paths()
        if path.name == "__init__.py" and path.parts[0] == "gs_ppl"
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages | {"gs_ppl.models"}
    assert not (ROOT / "gs_ppl" / "models").exists()


def test_typed():
    assert (ROOT / "gs_ppl" / "py.typed").exists()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["gs_ppl"]


def test_one_version():
    for name, pattern in (
        ("CITATION.cff", r"^version: (\S+)$"),
        ("CHANGELOG.md", r"^## \[([0-9.]+)\]"),
    ):
        match = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert match is not None, name
        assert match.group(1) == gs_ppl.__version__, name


def requirement_names(lines: list[str]) -> set[str]:
    return {match.group() for line in lines if (match := re.match(r"[\w-]+", line))}


def test_constraints_name_every_dependency():
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = requirement_names(project["dependencies"] + extras) - {project["name"]}
    assert requirement_names((ROOT / "constraints.txt").read_text().splitlines()) == wanted


def test_classifiers_are_the_pythons_of_the_matrix():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    matrix = re.findall(r'"([\d.]+)"', re.search(r"python: \[(.*)\]", workflow)[1])
    prefix = "Programming Language :: Python :: 3."
    classifiers = [c for c in PYPROJECT["project"]["classifiers"] if c.startswith(prefix)]
    assert [c.rpartition(" ")[2] for c in classifiers] == matrix
    assert PYPROJECT["project"]["requires-python"] == f">={matrix[0]}"


def test_lowest_versions_are_those_that_are_claimed():
    """Of all that users and tests need; jaxlib's is that of jax."""
    project = PYPROJECT["project"]
    extras = [project["optional-dependencies"][n] for n in (*SIDES, "compare", "models", "test")]
    claimed = {
        re.sub(r"\[.*?\]", "", line).replace(">=", "==")
        for line in sum(extras, project["dependencies"])
    }
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = {re.sub(r"(\.0)+$", "", line) for line in lines if "==" in line}
    assert pinned - {line for line in pinned if line.startswith("jaxlib==")} == {
        re.sub(r"(\.0)+$", "", line) for line in claimed
    }


def test_a_record_of_the_lowest_versions_is_of_those_claimed():
    """Who raises one runs them: RECORD=1 make matrix-test CONSTRAINTS=constraints-lowest.txt"""
    rows = json.loads((ROOT / "tests" / "matrix" / "record.json").read_text())
    assert not any("failed" in row["tests"] for row in rows)
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    for row in rows:
        if row["constraints"] == "constraints-lowest.txt":
            assert {f"{name}=={version}" for name, version in plain(row["versions"])} <= set(lines)


def plain(versions: dict[str, str]) -> list[tuple[str, str]]:
    """Without the build of torch, as in 2.8.0+cpu."""
    return [(name, version.partition("+")[0]) for name, version in versions.items()]


DISTRIBUTIONS = {"pyro": "pyro-ppl", "sklearn": "scikit-learn"}


def extra(name: str) -> set[str]:
    """What an extra brings, beside what comes with every installation."""
    project = PYPROJECT["project"]
    return requirement_names(project["dependencies"] + project["optional-dependencies"][name])


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """The packages that a file imports, wherever in it; for `require`, the extra that it names."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        asked = None
        match node:
            case _ if id(node) in for_types:
                continue
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case ast.ImportFrom():
                assert node.level == 0, f"{path}: imports are absolute"
                modules = [node.module]
            case ast.Call(func=ast.Name("require"), args=[ast.Constant(module), *rest]):
                modules = [module]
                asked = rest[0].value if rest else "compare"
            case _:
                continue
        for package in {module.split(".")[0] for module in modules}:
            if package not in sys.stdlib_module_names and package != "gs_ppl":
                yield DISTRIBUTIONS.get(package, package), asked


def allowed(path: Path) -> set[str]:
    """What is there where this file is used: one PPL, or either of them."""
    sides = [side for side in SIDES if path.parent.name == side or path.stem.endswith(f"_{side}")]
    brought = set.intersection(*(extra(side) for side in sides or SIDES))
    return brought | (extra("models") if path.parts[0] == "models" else set())


LIBRARY = sorted(
    path.relative_to(ROOT) for top in ("gs_ppl", "models") for path in (ROOT / top).rglob("*.py")
)


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_every_import_is_declared(path):
    undeclared = {
        (package, asked)
        for package, asked in imports(ROOT / path)
        if package not in allowed(path) | (extra(asked) if asked else set())
    }
    assert undeclared == set()


def test_every_declared_package_is_imported():
    # h5netcdf: by ArviZ, to write files. funsor: by NumPyro, to enumerate.
    by_others = {"h5netcdf", "funsor"}
    used = {package for path in LIBRARY for package, _ in imports(ROOT / path)}
    declared = set.union(*(extra(name) for name in (*SIDES, "compare", "models")))
    assert declared - by_others <= used <= declared


def test_imports_are_seen(tmp_path):
    code = """
        from typing import TYPE_CHECKING
        import gs_ppl.report, os, torch.distributions
        if TYPE_CHECKING:
            import xarray
        def late():
            from sklearn.datasets import load_digits
            require("arviz.plots"), require("optax", "models")
        """
    file = tmp_path / "module.py"
    file.write_text(textwrap.dedent(code))
    expected = {("torch", None), ("scikit-learn", None), ("arviz", "compare"), ("optax", "models")}
    assert set(imports(file)) == expected


def test_no_file_shadows_a_framework():
    # A script is run with its own folder first on the path: `import pyro` would find the namesake.
    shadows = {"pyro", "numpyro", "torch", "jax"}
    outside = [path for path in source_paths() if path.parts[0] != "gs_ppl"]
    assert [path for path in outside if path.name.split(".")[0] in shadows] == []


def test_no_machine_paths():
    pattern = re.compile(rb"(?<![\w.~/-])/(work|root|home|Users|tmp)/[\w.-]")
    files = [path for path in source_paths() if (ROOT / path).is_file()]
    assert [path for path in files if pattern.search((ROOT / path).read_bytes())] == []


# What an import loads and changes


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gs_ppl", {"torch", "jax", "pyro", "numpyro"}),
        ("gs_ppl.reference", {"torch", "jax", "pyro", "numpyro", "scipy"}),
        ("gs_ppl.models", {"torch", "jax", "pyro", "numpyro"}),
        ("gs_ppl.pyro", FRAMEWORKS["numpyro"]),
        ("gs_ppl.numpyro", FRAMEWORKS["pyro"]),
    ],
)
def test_import_leaves_other_frameworks_alone(module, absent):
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert absent.isdisjoint(loaded)


GLOBAL_STATE = {
    "pyro": """
        import torch, pyro, pyro.infer, pyro.infer.autoguide

        def framework_state():
            return dict(
                settings=pyro.settings.get(),
                torch_validation=torch.distributions.Distribution._validate_args,
                dtype=torch.get_default_dtype(),
                device=torch.get_default_device(),
                threads=torch.get_num_threads(),
                grad=torch.is_grad_enabled(),
                deterministic=torch.are_deterministic_algorithms_enabled(),
                rng=torch.get_rng_state().tolist(),
                params=list(pyro.get_param_store()),
            )
        """,
    "numpyro": """
        import jax, numpyro, numpyro.infer, numpyro.infer.autoguide
        import scipy.special  # 1.12 sets a filter for its own warning

        def framework_state():
            return dict(
                config=dict(jax.config.values),
                validation=numpyro.distributions.Distribution._validate_args,
                stack=list(numpyro.primitives._PYRO_STACK),
                # Its import sets the backend of funsor, for Pyro too.
                funsor="numpyro.contrib.funsor" in sys.modules,
            )
        """,
}

COMPARE_STATE = """
import os, random, sys, warnings
import numpy as np

def state():
    return dict(
        framework_state(),
        warnings=list(warnings.filters),
        environment=dict(os.environ),
        printing=np.get_printoptions(),
        errors=np.geterr(),
        random=random.getstate(),
        numpy_random=repr(np.random.get_state()),
    )

before = state()
import gs_ppl.{side}
after = state()
print([name for name in before if before[name] != after[name]])
"""


@pytest.mark.parametrize("side", SIDES)
def test_import_changes_nothing_global(side):
    code = textwrap.dedent(GLOBAL_STATE[side]) + COMPARE_STATE.format(side=side)
    assert python(code) == "[]"


# The two sides mirror each other


def test_same_files():
    pyro, numpyro = (
        {path.relative_to(folder) for path in folder.rglob("*.py")}
        for folder in (ROOT / "gs_ppl" / side for side in SIDES)
    )
    # scan and cond are primitives of NumPyro's alone, as gather is of JAX's; JAX's names move;
    # Pyro's own enumeration is right over our classes
    own = {"control_flow.py", "soft_flow.py", "soft_indexing.py", "_versions.py"}
    own |= {"numpyros_enum.py"}
    assert pyro | set(map(Path, own)) == numpyro


MODULES = sorted(
    ".".join(path.relative_to(ROOT / "gs_ppl" / "pyro").with_suffix("").parts)
    for path in (ROOT / "gs_ppl" / "pyro").rglob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_same_public_names(module):
    suffix = "" if module == "__init__" else f".{module}"
    pyro, numpyro = (importlib.import_module(f"gs_ppl.{side}{suffix}") for side in SIDES)
    assert getattr(pyro, "__all__", None) == getattr(numpyro, "__all__", None)
    for name in getattr(pyro, "__all__", []):
        assert hasattr(pyro, name), name
        assert hasattr(numpyro, name), name
