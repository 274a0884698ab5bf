"""`--backend pyro|numpyro|both` selects the sides that the parity tests drive."""

import functools

import pytest
from backends import BACKENDS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=[*BACKENDS, "both"], default="both")


@functools.cache
def load(name: str):
    return BACKENDS[name]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("backend")
        names = list(BACKENDS) if chosen == "both" else [chosen]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest):
    """The adapter of one side; loads its framework on first use."""
    return load(request.param)
