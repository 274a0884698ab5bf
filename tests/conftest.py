"""`--backend pyro|numpyro|both` selects the sides that the parity tests run on.

`--long` runs only the long tests: those marked `long`, and the cells of a test marked
`quick(*words)` whose id has none of the words. `--device cuda` puts the arrays of both sides on a
GPU.
"""

import functools
import importlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import pytest
from backends import BACKENDS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=[*BACKENDS, "both"], default="both")
    parser.addoption("--long", action="store_true", help="only the tests marked long")
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu")


# Most functions that JAX compiles here run once. Compiling takes a fraction of the time without
# optimization, with XLA's older code generator, and in one piece each. `make test-long` runs
# numbers and trainings with the ordinary settings.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
if find_spec("jaxlib") and metadata.version("jaxlib").startswith("0.10."):
    flags = "use_fusion_emitters=false", "parallel_codegen_split_count=1"
    QUICK["XLA_FLAGS"] = " ".join(f"--xla_cpu_{flag}" for flag in flags)  # unknown ones are errors


def pytest_configure(config: pytest.Config) -> None:
    for name, value in QUICK.items():  # before JAX is imported; a value that is set is kept
        os.environ.setdefault(name, value)
    flags = os.environ.get("XLA_FLAGS", "")
    if "device_count" not in flags:  # two devices, for the tests of several devices
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2"
    if (device := config.getoption("device")) != "cpu":
        use(device, config.getoption("backend"))
    config.addinivalue_line("markers", "only(side): about a thing that only this side has")


def use(device: str, backend: str) -> None:
    """Makes the device the default of the frameworks, before any test file makes an array."""
    if backend != "numpyro":
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise pytest.UsageError(f"--device {device}: torch {torch.__version__} sees no GPU")
        torch.set_default_device(device)
    if backend != "pyro":
        os.environ["JAX_PLATFORMS"] = device  # JAX's own error says what is missing
        try:
            importlib.import_module("jax").devices()
        except RuntimeError as error:
            raise pytest.UsageError(f"--device {device}: {error}") from error


def is_long(item: pytest.Item) -> bool:
    """A cell with several `quick` marks is quick if each of them has one of its words."""
    parts = f"-{item.callspec.id}-" if hasattr(item, "callspec") else ""
    found = (any(f"-{word}-" in parts for word in m.args) for m in item.iter_markers("quick"))
    return item.get_closest_marker("long") is not None or not all(found)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = {item for item in items if is_long(item) == config.getoption("long")}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


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
    """The adapter of one side; it imports its framework at first use."""
    return load(request.param)


@pytest.fixture(autouse=True, scope="module")
def forget_compilations() -> Iterator[None]:
    """Clears JAX's compiled functions after each file: the next one cannot use these gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def global_state() -> dict[str, object]:
    """Global state of the imported frameworks, which one test could change for the next."""
    state: dict[str, object] = {"folder": os.getcwd(), "numpy.errors": np.geterr()}
    if torch := sys.modules.get("torch"):
        state["torch.dtype"] = torch.get_default_dtype()
        state["torch.gradients"] = torch.is_grad_enabled()
        state["torch.validation"] = torch.distributions.Distribution._validate_args
    if pyro := sys.modules.get("pyro"):
        parts = pyro.distributions, pyro.infer, pyro.poutine
        state["pyro.validation"] = [part.is_validation_enabled() for part in parts]
        state["pyro.stack"] = [*pyro.poutine.runtime._PYRO_STACK]
    if jax := sys.modules.get("jax"):
        flags = "enable_x64", "check_tracer_leaks", "debug_nans", "disable_jit", "default_prng_impl"
        state |= {f"jax.{flag}": getattr(jax.config, f"jax_{flag}") for flag in flags}
    if numpyro := sys.modules.get("numpyro"):
        laws = numpyro.distributions.distribution
        state["numpyro.validation"] = laws._VALIDATION_ENABLED, laws.Distribution._validate_args
        state["numpyro.stack"] = [*numpyro.primitives._PYRO_STACK]
    return state


@pytest.fixture(autouse=True)
def global_state_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that has changed global state, by which a later test could fail."""
    if "backend" in request.fixturenames:
        request.getfixturevalue("backend")  # their import may set something
    before = global_state()
    yield
    if torch := sys.modules.get("torch"):  # torch's compiler turns it off at its first use
        kept = before.get("torch.validation", True)
        torch.distributions.Distribution.set_default_validate_args(kept)
    after = global_state()
    changed = {name: (was, after[name]) for name, was in before.items() if after[name] != was}
    assert not changed, f"this test has changed {changed}"
    if pyro := sys.modules.get("pyro"):
        pyro.clear_param_store()
