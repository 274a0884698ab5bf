"""Exact enumeration inside of scan, where NumPyro's own is wrong or cannot draw; not of cond."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from numbers import Real
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import Distribution, Unit, constraints
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from gs_ppl._shared.wrappers import innermost, rewrap, unmasked
from gs_ppl.numpyro.control_flow import Within, latent_values
from gs_ppl.numpyro.handlers import is_latent


def _enumerated(sites: Mapping[str, Any]) -> list[str]:
    """Names of the latents that are marked for enumeration."""
    return [
        name
        for name, site in sites.items()
        if is_latent(site) and site["infer"].get("enumerate") == "parallel"
    ]


def _run_apart(body: Callable, *args: Any) -> tuple[dict[str, Any], Any]:
    """The sites of a body and what it returns, as shapes without values."""
    sites: dict[str, Any] = {}

    def run() -> Any:
        with handlers.block(), handlers.seed(rng_seed=0), handlers.trace() as trace:
            output = body(*args)
        sites.update(trace)
        return output

    return sites, jax.eval_shape(run)


def enumerate_cond(msg: dict[str, Any], run: Callable, *args: Any, **kwargs: Any) -> Any:
    """Refuses enumerated sites inside of cond: a branch is chosen, not summed over."""
    if kwargs.get("enum"):
        _, *branches, operand = args
        sites = (_run_apart(branch, operand)[0] for branch in branches)
        for name in (name for of_branch in sites for name in _enumerated(of_branch)):
            raise ValueError(
                f"site {name!r}: sites inside of cond are not enumerated: draw the site before"
                " cond, and choose by jnp.where"
            )
        msg["kwargs"]["enum"] = kwargs["enum"] = False
    return run(*args, **kwargs)


def enumerate_scan(msg: dict[str, Any], run: Callable, *args: Any, **kwargs: Any) -> Any:
    """Sums out the latents that are not in the guide.

    If a guide is replayed, this is an ELBO: NumPyro's TraceEnum_ELBO treats time as a plate, and
    scan does not replay under enumeration. Without a guide NumPyro's own elimination is right.
    """
    body, init, xs, _, reverse = args
    body = Within(_FactorsAsLaws(), body)
    args = (body, *args[1:])
    stack = kwargs["substitute_stack"]
    guides = [trace for kind, trace in stack if kind == "replay"]
    has_drawn = any(isinstance(data, Mapping) and any("@" in k for k in data) for _, data in stack)
    if not (guides or kwargs.get("enum") or has_drawn):
        return run(*args, **kwargs)
    first = handlers.infer_config(body, lambda _: {"_scan_current_index": 0})  # read by compare
    sites, (carry, ys) = _run_apart(first, init, jax.tree.map(lambda x: x[0], xs))
    stack[:] = [(kind, _joined(data, sites)) for kind, data in stack]
    if not (guides or kwargs.get("enum")):
        return run(*args, **kwargs)
    drawn = {name: site for trace in guides for name, site in trace.items() if name in sites}
    names = [n for n in _enumerated(sites) if not _is_conditioned(sites[n], stack)]
    for name in sites:
        if any(f"_PREV_{name}" in trace for trace in guides):  # NumPyro's own name in a scan
            refuse_taken_apart(name)
    for name in names:
        if name in drawn and drawn[name]["infer"].get("enumerate") == "parallel":
            _refuse_in_scan(name, " are not enumerated in a guide: leave the site to the model, or")
    names = [name for name in names if name not in drawn]
    if not names:
        if not guides and kwargs["history"]:
            return _without_confusion(run(*args, **kwargs))
        msg["kwargs"]["enum"] = False
        return run(*args, **{**kwargs, "enum": False})
    if kwargs["history"] == 0:
        _refuse_in_scan(names[0], " with history=0 are not enumerated: use a plate, or")
    if reverse:
        _refuse_in_scan(names[0], " with reverse=True are not enumerated: reverse its xs, or")
    if guides:
        given = [entry for entry in stack if entry[0] != "replay"]
        given += [("condition", latent_values(trace)) for trace in guides]
        _factor(names, sites, args, {**kwargs, "substitute_stack": given})
    elif _is_lazy():
        _unroll(names, sites, args, kwargs)
        msg["kwargs"]["enum"] = False
    else:
        return _without_confusion(run(*args, **kwargs))
    carry, ys = jax.tree.map(lambda _: SummedOut(names[0]), (carry, ys))
    return (None, None, carry), (PytreeTrace({}), ys)


def _refuse_in_scan(site: str, why: str) -> NoReturn:
    raise ValueError(
        f"site {site!r}: sites inside of scan{why} write a Python loop over"
        " numpyro.contrib.funsor.markov(range(n))"
    )


def refuse_taken_apart(site: str) -> NoReturn:
    """TraceEnum_ELBO splits the scan of a guide into sites that the model does not have."""
    cure = "give scan history=0 and use config_enumerate(guide), or"
    _refuse_in_scan(site, f" are taken apart in a guide, by TraceEnum_ELBO: {cure}")


def runs_whole(msg: dict[str, Any]) -> bool:
    """Whether TraceEnum_ELBO does not split a scan that config_enumerate has seen."""
    seen = isinstance(msg["fn"], partial) and msg["fn"].func is enumerate_scan
    return seen and msg["kwargs"]["history"] == 0


def _without_confusion(output: tuple) -> tuple:
    """Refuses sites whose time axis NumPyro would confuse with another axis in the same place."""
    from numpyro.contrib.funsor.enum_messenger import _DIM_STACK

    taken = _DIM_STACK.global_frame.dim_to_name
    for name, site in output[1][0].trace.items():
        for dim, axis in site.get("infer", {}).get("dim_to_name", {}).items():
            if axis.startswith("_time") and dim in taken:
                _refuse_in_scan(name, f" have their time axis where {taken[dim]!r} has its axis:")
    return output


def _is_lazy() -> bool:
    """Whether NumPyro's infer_discrete runs the program: only it does so lazily."""
    import funsor  # imported here: it sets its backend, for Pyro too

    return funsor.interpreter.get_interpretation() is funsor.interpretations.lazy


class _Step(Messenger):
    """Adds the step to the names of sites, and removes masks from summed sites, as _AsMeasure."""

    def __init__(self, step: int, summed: list[str], body: Callable) -> None:
        super().__init__(body)
        self.step, self.summed = step, summed

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] in ("sample", "deterministic"):
            if msg["name"] in self.summed:
                msg["fn"] = unmasked(msg["fn"])
            msg["name"] = f"{msg['name']}@{self.step}"


def _unroll(names: list[str], sites: Mapping[str, Any], args: tuple, kwargs: dict) -> None:
    """A loop instead of scan, so that infer_discrete draws each step by its name."""
    from numpyro.contrib.control_flow.scan import _subs_wrapper
    from numpyro.contrib.funsor import markov

    body, carry, xs, length, _ = args
    length = length or len(jax.tree.leaves(xs)[0])
    key = kwargs["rng_key"]
    for i in markov(range(length), history=kwargs["history"]):
        step = handlers.infer_config(body, lambda _, i=i: {"_scan_current_index": i})
        step = step if key is None else handlers.seed(step, jax.random.fold_in(key, i))
        for kind, data in kwargs["substitute_stack"]:
            given = partial(_subs_wrapper, data, i, length)
            step = getattr(handlers, kind)(step, **{f"{kind}_fn": given})
        carry, _ = _Step(i, names, step)(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    for name in sites:  # for readers of the trace; the draws come with the second run
        if sites[name]["type"] in ("sample", "deterministic"):
            numpyro.deterministic(name, SummedOut(names[0]))


def _joined(data: Any, sites: Mapping[str, Any]) -> Any:
    """The draws of a scan that ran as a loop, joined along time again."""
    if not isinstance(data, Mapping):
        return data
    joined = dict(data)
    for name, site in sites.items():
        steps = [data[key] for i in range(len(data)) if (key := f"{name}@{i}") in data]
        if steps and site["type"] == "sample":
            joined[name] = jnp.stack([unpacked(x, site["fn"].shape()) for x in steps])
    return joined


def unpacked(value: Array, shape: tuple[int, ...]) -> Array:
    """What enumeration drew, in its full shape: enumeration drops and adds axes of size 1."""
    if value.size == math.prod(shape):
        return value.reshape(shape)
    return jnp.broadcast_to(value.reshape(value.shape[value.ndim - len(shape) :]), shape)


def _is_conditioned(site: dict[str, Any], stack: list[tuple[str, Any]]) -> bool:
    data = [given for kind, given in stack if kind == "condition"]
    return any(site["name"] in d if isinstance(d, Mapping) else d(site) is not None for d in data)


class SummedOut:
    """What scan returns if its sites are summed out: nothing can be computed from it."""

    def __init__(self, site: str) -> None:
        self._site = site

    def _refuse(self, *_: Any) -> NoReturn:
        raise ValueError(
            f"site {self._site!r} is summed out inside of scan: the result of scan may depend on"
            " it, and cannot be used; write a Python loop over"
            " numpyro.contrib.funsor.markov(range(n))"
        )

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __jax_array__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _refuse
    __rmatmul__ = __truediv__ = __rtruediv__ = __neg__ = __pow__ = __rpow__ = __eq__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __ne__ = _refuse
    __hash__ = object.__hash__


class Weight(Distribution):
    """The law of a factor: its score is given, and its value has the shape of the score.

    The value of NumPyro's Unit has no batch axes, and scan takes another axis of it for time.
    """

    arg_constraints = {"log_factor": constraints.real}
    support = constraints.real
    pytree_data_fields = ("log_factor",)

    def __init__(self, log_factor: Array) -> None:
        self.log_factor = log_factor
        super().__init__(jnp.shape(log_factor), validate_args=False)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        return self.log_factor


class _FactorsAsLaws(Messenger):
    """Gives factors inside of scan a value of their batch shape, in which scan looks for time."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and isinstance(unit := innermost(msg["fn"]), Unit):
            msg["fn"] = rewrap(msg["fn"], lambda unit: Weight(unit.log_factor))
            msg["value"] = jnp.zeros(unit.batch_shape)


class _AsMeasure(Messenger):
    """Removes masks from summed sites, so that a masked step counts as 1, and all scales.

    The plates `kept`, in which all sites are, are left to the program around the scan.
    """

    def __init__(self, sites: list[str], kept: set[str]) -> None:
        super().__init__()
        self.sites, self.kept = sites, kept

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample":
            msg["scale"] = None
            msg["cond_indep_stack"] = [
                frame for frame in msg["cond_indep_stack"] if frame.name not in self.kept
            ]
            if msg["name"] in self.sites:
                msg["fn"] = unmasked(msg["fn"])


def _factor(names: list[str], sites: dict, args: tuple, kwargs: dict[str, Any]) -> None:
    """Replaces the sites of a scan by its log evidence, a factor by row of their common plates."""
    # imported here: they set the backend of funsor, for Pyro too
    import funsor
    from numpyro.contrib.funsor import enum
    from numpyro.contrib.funsor.infer_util import _enum_log_density

    stacks = [site["cond_indep_stack"] for site in sites.values() if site["type"] == "sample"]
    common = set.intersection(*({frame.name for frame in stack} for stack in stacks))
    frames = [frame for frame in stacks[0] if frame.name in common]
    body, *rest = args
    measured = Within(_AsMeasure(names, common), body)

    def program() -> None:
        scan(measured, *rest, history=kwargs["history"])

    for kind, data in kwargs["substitute_stack"]:
        how = {"data": data} if isinstance(data, Mapping) else {f"{kind}_fn": data}
        program = getattr(handlers, kind)(program, **how)
    program = handlers.seed(program, kwargs["rng_key"])
    depth = -min((frame.dim for stack in stacks for frame in stack), default=0)
    free = min(kwargs.get("first_available_dim") or -1, -1 - depth, -1 - _used_dims())
    with handlers.block(), _apart(), enum(first_available_dim=free), _plates_as_they_are():
        operations = funsor.ops.logaddexp, funsor.ops.add
        lazy, *_ = _enum_log_density(program, (), {}, {}, *operations, apply_optimizer=False)
        evidence = funsor.optimizer.apply_optimizer(lazy)
    dims = {frame.name: frame.dim for frame in frames}
    dims |= {f"_pyro_dim_{i}": -i for i in range(1, -free)}  # of sites enumerated earlier
    if left := [name for name in evidence.inputs if name not in dims]:
        _refuse_in_scan(names[0], f" depend on {left[0]!r} in a way that is not summed out here:")
    evidence = funsor.to_data(evidence, name_to_dim={n: dims[n] for n in evidence.inputs})
    with handlers.block():  # the program has these axes already
        plates = [numpyro.plate(frame.name, frame.size, dim=frame.dim) for frame in frames]
    with ExitStack() as context:
        for plate in plates:
            context.enter_context(plate)
        context.enter_context(handlers.scale(scale=_common_scale(names[0], sites)))
        numpyro.factor(f"{names[0]}_summed", evidence)


def _used_dims() -> int:
    """The axes of plates and enumerated sites outside of the scan."""
    from numpyro.contrib.funsor.enum_messenger import _DIM_STACK

    return -min(_DIM_STACK.global_frame.dim_to_name, default=0)


@contextmanager
def _apart() -> Iterator[None]:
    """Hides the names of the axes of outer sites: scan may put time in the same place."""
    from numpyro.contrib.funsor.enum_messenger import _DIM_STACK, StackFrame

    around = _DIM_STACK._stack
    _DIM_STACK._stack = [StackFrame(OrderedDict(), OrderedDict(), (), (), False)]
    try:
        yield
    finally:
        _DIM_STACK._stack = around


def _common_scale(name: str, sites: Mapping[str, Any]) -> float:
    scales = {1.0 if s["scale"] is None else s["scale"] for s in sites.values() if "scale" in s}
    if len(scales) != 1 or not isinstance(scale := scales.pop(), Real):
        raise ValueError(
            f"site {name!r} is summed out inside of scan, where all sites must have the same scale,"
            " a number"
        )
    return float(scale)


@contextmanager
def _plates_as_they_are() -> Iterator[None]:
    """Keeps funsor's replacement of numpyro.plate, which an inner enumeration would remove."""
    new = vars(numpyro.plate).get("__new__")
    try:
        yield
    finally:
        if new is not None:
            numpyro.plate.__new__ = new
