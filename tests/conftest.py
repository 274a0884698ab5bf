"""`--backend pyro|numpyro|both` selects the sides that the parity tests drive."""

import functools
import sys
from collections.abc import Iterator

import pytest
from backends import BACKENDS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=[*BACKENDS, "both"], default="both")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(side): about a thing that only this side has")


@functools.cache
def load(name: str):
    return BACKENDS[name]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("backend")
        marker = metafunc.definition.get_closest_marker("only")
        own = marker.args if marker else BACKENDS
        names = [name for name in own if chosen in (name, "both")]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest):
    """The adapter of one side; loads its framework on first use."""
    return load(request.param)


@pytest.fixture(autouse=True, scope="module")
def forget_compilations() -> Iterator[None]:
    """What JAX has compiled for one file is of no use to the next; kept, it fills gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
