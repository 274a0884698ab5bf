"""The public names of both sides have one signature: same parameters, order and kinds.

Defaults may differ if they are objects of a framework or follow its conventions.
"""

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from backends import BACKENDS

import gs_ppl.numpyro
import gs_ppl.pyro

SIDES = {"pyro": gs_ppl.pyro, "numpyro": gs_ppl.numpyro}

# Parameters that a framework needs: states and keys, which JAX passes and Pyro keeps, devices and
# caches of torch, and those of NumPyro's signatures.
FORCED = {
    *("rng_key", "key", "seed"),
    *("params", "param_map", "state", "svi_state"),
    *("prefix", "intermediates", "device", "cache_size", "_instance"),
}
# The same for one name.
FORCED_IN = {
    # the parts of Pyro's AutoGuideList get the arguments of the program, those of NumPyro's the
    # parameters
    "AutoGuideList.median": {"args", "kwargs"},
    "AutoGumbelSoftmax.median": {"args", "kwargs"},
    "AutoGumbelSoftmax.quantiles": {"args", "kwargs"},
    # the parts of NumPyro's AutoGuideList get the arguments of the program
    "AutoGumbelSoftmax.sample_posterior": {"args", "kwargs"},
    # Pyro's ELBOs have more options: max_plate_nesting, retain_graph, ...
    **{
        elbo: {"options"}
        for elbo in (
            *("DARN_ELBO", "DisARM_ELBO", "MuProp_ELBO", "NVIL_ELBO", "REBAR_ELBO", "RLOO_ELBO"),
        )
    },
}
# Names that only one side has, besides methods by which a class extends a class of its PPL.
ONE_SIDED = {
    # Pyro keeps the state of a run, which NumPyro returns
    *("AnnealedSVI.get_state", "AnnealedSVI.set_state"),
    # in place in torch; arrays of JAX cannot be changed
    *("functional.gumbel_softmax_draw_", "functional.noise_to_draw_from"),
    "functional.gumbel_softmax_draw",
    # JAX draws bits from a key, sums last axes by products, and has two kinds of arrays
    *("functional.random_words", "functional.sum_last", "functional.is_array"),
}


def is_ours(owner: Any) -> bool:
    return owner.__module__.startswith("gs_ppl.")


def owner_of(cls: type, name: str) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))


def extends_its_ppl(cls: type, name: str) -> bool:
    """Whether a class of the PPL (or framework) has this method, or one that its methods call."""
    return any(name in vars(base) for base in cls.__mro__ if not is_ours(base))


def public_names(api: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names in __all__, and the functions and classes that its modules define."""
    for name in api.__all__:
        item = getattr(api, name)
        if not inspect.ismodule(item):
            yield name, item
            continue
        for inner, value in vars(item).items():
            defined = inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))
            if defined and value.__module__ == item.__name__ and not inner.startswith("_"):
                yield f"{name}.{inner}", value


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    for name in dir(cls):
        item = inspect.getattr_static(cls, name)
        if name.startswith("_") or not is_ours(owner_of(cls, name)):
            continue
        if isinstance(item, FunctionType | classmethod | staticmethod):
            yield name, getattr(cls, name)


def members(side: str) -> dict[str, Any]:
    """Public names, with the methods that gs_ppl defines in their classes."""
    found = {}
    for name, item in public_names(SIDES[side]):
        found[name] = item
        if inspect.isclass(item):
            found |= {f"{name}.{method}": function for method, function in methods(item)}
    return found


MEMBERS = {side: members(side) for side in BACKENDS}


def is_signed_by_us(item: Any) -> bool:
    """Whether the signature is not that of a class of the PPL."""
    return not inspect.isclass(item) or is_ours(owner_of(item, "__init__"))


SHARED = sorted(
    name
    for name in MEMBERS["pyro"].keys() & MEMBERS["numpyro"].keys()
    if any(is_signed_by_us(MEMBERS[side][name]) for side in BACKENDS)
)


def signature(name: str, item: Any) -> list[tuple[str, str]]:
    forced = FORCED | FORCED_IN.get(name, set())
    parameters = inspect.signature(item).parameters.values()
    return [(p.name, p.kind.name) for p in parameters if p.name not in forced]


@pytest.mark.parametrize("name", SHARED)
def test_same_signatures(name):
    ours, theirs = (signature(name, MEMBERS[side][name]) for side in ("pyro", "numpyro"))
    assert ours == theirs


def test_same_names():
    """A method that only one side has extends a class of its PPL."""
    one_sided = set()
    for side, other in (("pyro", "numpyro"), ("numpyro", "pyro")):
        for name in MEMBERS[side].keys() - MEMBERS[other].keys():
            cls, _, method = name.rpartition(".")
            owner = MEMBERS[side].get(cls)
            if not inspect.isclass(owner) or not extends_its_ppl(owner, method):
                one_sided.add(name)
    assert one_sided == ONE_SIDED


def test_exceptions_are_needed():
    """Each exception above belongs to an existing name."""
    names = {name for members in MEMBERS.values() for name in members}
    assert FORCED_IN.keys() <= names
    used = {
        parameter
        for members in MEMBERS.values()
        for item in members.values()
        for parameter in inspect.signature(item).parameters
    }
    assert used >= FORCED


LAWS = sorted(n for n in SHARED if "." not in n and hasattr(MEMBERS["pyro"][n], "log_prob"))
OPTIONS = {
    "relax": "temperature",
    "AutoGumbelSoftmax": "temperature",
    "auto_relaxed": "continuous",
    **dict.fromkeys([n for n in SHARED if n.endswith("_ELBO")], "num_particles"),
    **dict.fromkeys(LAWS, "logits"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_keyword_only(backend, name):
    parameters = [*inspect.signature(getattr(backend.gs, name)).parameters.values()]
    names = [p.name for p in parameters]
    after = parameters[names.index(OPTIONS[name]) + 1 :]
    assert after
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in after)
