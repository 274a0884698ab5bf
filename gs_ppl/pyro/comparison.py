"""Exact enumeration and relaxations of one program side by side."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import process_time
from typing import Any
from zlib import crc32

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.inspect import get_dependencies
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from gs_ppl._shared import comparison
from gs_ppl._shared.comparison import Gradients, Options
from gs_ppl._shared.families import Family
from gs_ppl._shared.wrappers import innermost
from gs_ppl.pyro.checks import check, check_observed, check_traces
from gs_ppl.pyro.distributions import GumbelSoftmax
from gs_ppl.pyro.enumeration import OneHotIndex, config_enumerate
from gs_ppl.pyro.handlers import (
    annealed,
    discretize,
    random_state,
    relax,
)
from gs_ppl.pyro.integers import (
    class_dims,
    classes,
    event_dims,
    index_in_support,
    is_integer,
    support_of,
)
from gs_ppl.pyro.selection import select
from gs_ppl.pyro.straight_through import STGumbelSoftmax
from gs_ppl.report import Comparison

__all__ = ["compare"]


def compare(
    model: Callable,
    guide: Callable,
    *args: Any,
    families: Sequence[Family | ELBO] = (GumbelSoftmax, STGumbelSoftmax),
    objectives: Sequence[str] = ("categorical", "relaxed"),
    temperatures: Sequence[float] = (0.1, 0.5, 1.0),
    temperature: float | None = None,
    loss: ELBO | None = None,
    num_samples: int = 200,
    adaptation_steps: int = 1000,
    budget: float = 100.0,
    cost: Mapping[str, float] | None = None,
    relabel: Collection[str] = (),
    max_entries: int = 50_000_000,
    seed: int = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Comparison:
    """How wrong is a relaxation of this program, and which one is best for it?

    Model and guide may be discrete, relaxed or automatic. For the exact numbers both are made
    discrete and enumerated. Then they are relaxed for each family, objective and temperature. The
    guide is not trained. All methods use the same random numbers at each site, also at continuous
    latents. The random state does not change.

    Args:
        model: program.
        guide: program, or an automatic guide.
        *args: what the programs take.
        families: classes to relax by; also ELBOs that have a gradient for the discrete program,
            such as RLOO_ELBO(), which has no temperature. ELBOs with state in the guide are
            wrapped by compare.
        objectives: of the soft families, see relax; straight-through families have only one.
        temperatures: tau > 0, for each family.
        temperature: one temperature instead of several.
        loss: ELBO of the relaxed programs; default TraceMeanField_ELBO.
        num_samples: number of draws for each method.
        adaptation_steps: number of steps in which the state of an ELBO adapts to the program.
        budget: CPU time to spend on a gradient, in estimates by STGumbelSoftmax. The last line
            names the family with the least bias^2 + variance x cost / budget (`best`).
        cost: CPU time of one estimate by family, as {"RLOO_ELBO(2)": 2.0}, relative to
            STGumbelSoftmax (or to the cheapest family, without it). None: measured, and rounded
            to half an octave.
        relabel: sites whose classes in the guide are matched to those in the model.
        max_entries: largest table of an enumeration, in numbers.
        seed: of the draws.
        progress_bar: whether to show one.
        **kwargs: what the programs take.

    Raises:
        ValueError: naming the site, if a relaxation of the program is refused (see check).

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import AutoGumbelSoftmax, OneHotCategorical, compare, select
        >>> def model():
        ...     z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...     loc = select(torch.tensor([-1.0, 1.0]), z)
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(0.5))
        >>> pyro.clear_param_store()
        >>> report = compare(model, AutoGumbelSoftmax(model), num_samples=10, progress_bar=False)
        >>> round(report.evidence.mean, 4), round(report.elbo.mean, 4)
        (-1.4238, -1.5439)
    """
    temperatures = [temperature] if temperature is not None else temperatures
    options = Options(
        families,
        objectives,
        temperatures,
        num_samples,
        adaptation_steps,
        relabel,
        max_entries,
        progress_bar,
        budget,
        cost,
    )
    with random_state():
        session = Session(model, guide, args, kwargs, loss or TraceMeanField_ELBO(), seed)
        return comparison.run(session, options)


# --- handlers -------------------------------------------------------------------------------------


class SeedBySite(Messenger):
    """Seeds each site by its name and the draw: its noise does not depend on what else is drawn.

    The particles of a loss draw a site again, so they are counted.
    """

    def __init__(self, seed: int, draw: int) -> None:
        super().__init__()
        self.prefix = f"{seed}/{draw}/"
        self.drawn: Counter[str] = Counter()

    def __enter__(self) -> "SeedBySite":
        _seed(self.prefix)  # for noise that an ELBO draws by itself
        return super().__enter__()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["done"]:
            site = f"{msg['name']}/{self.drawn[msg['name']]}"
            self.drawn[msg["name"]] += 1
            _seed(self.prefix + site)


def _seed(text: str) -> None:
    """torch.manual_seed; if no accelerator is used, without the stack trace that it keeps for one.

    The stack trace takes more time than a run of a small program.
    """
    seed = crc32(text.encode())
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class Tilt(Messenger):
    """Multiplies the weight of each value of a latent by exp(tilt).

    The derivative of the log evidence with respect to the tilt, at 0, is the posterior marginal.
    """

    def __init__(self, tilts: dict[str, Tensor]) -> None:
        super().__init__()
        self.tilts = tilts

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.tilts:
            law, value = innermost(msg["fn"]), msg["value"]
            if is_integer(law) and not isinstance(law, OneHotIndex):
                value = index_in_support(msg["name"], law, value)
            binary = event_dims(law) == 0
            tilt = pyro.subsample(self.tilts[msg["name"]], event_dim=1)
            pyro.factor(f"{msg['name']}_tilt", select(tilt, value, binary=binary))


# --- the programs ---------------------------------------------------------------------------------


class Program(comparison.Program):
    """A program made discrete, with its arguments bound, and the sites of one run."""

    def __init__(self, fn: Callable, args: tuple, kwargs: dict) -> None:
        self._fn = discretize(annealed(fn))
        self._args, self._kwargs = args, kwargs

    def at(self, temperature: float) -> None:
        """Runs it; the temperature is passed to a program that declares the argument."""
        return self._fn(temperature, *self._args, **self._kwargs)

    def __call__(self) -> None:
        return self.at(1.0)

    def run(self, guide_trace: Any = None) -> None:
        """Keeps the trace, and its latent sites by kind."""
        program = self if guide_trace is None else poutine.replay(self, trace=guide_trace)
        self.trace = poutine.trace(program).get_trace()
        nodes = self.trace.nodes.items()
        self.sites = {
            name: node
            for name, node in nodes
            if node["type"] == "sample" and not site_is_subsample(node)
        }
        latents = {name: node for name, node in self.sites.items() if not node["is_observed"]}
        for name in self.sites.keys() - latents:
            check_observed(name, self.sites[name])
        dims = {name: class_dims(innermost(node["fn"])) for name, node in latents.items()}
        self.discrete = {name: dim for name, dim in dims.items() if dim is not None}
        self.continuous = [name for name, dim in dims.items() if dim is None]
        self.parameters = {
            name: node["value"].unconstrained() for name, node in nodes if node["type"] == "param"
        }

    def classes(self, site: str) -> int:
        fn = self.sites[site]["fn"]
        if not is_integer(innermost(fn)):
            return super().classes(site)
        return len(support_of(site, innermost(fn))) ** math.prod(fn.event_shape)

    def tilts(self) -> dict[str, Tensor]:
        """Zeros by discrete latent, shape plates + (K,), for all rows of a subsampled plate."""
        tilts = {}
        for name in self.discrete:
            node = self.sites[name]
            shape = list(node["fn"].batch_shape)
            for frame in self.frames(name):
                shape[frame.dim] = frame.full_size or frame.size
            law, dtype = innermost(node["fn"]), node["value"].dtype
            if is_integer(law):
                dtype = next(iter(classes(name, law)[1].values())).dtype
            zeros = node["value"].new_zeros((*shape, self.classes(name)), dtype=dtype)
            tilts[name] = zeros.requires_grad_()
        return tilts

    def upstream(self) -> Any:
        without_parameters = poutine.block(self, hide_types=["param"])
        return get_dependencies(without_parameters)["prior_dependencies"]


class Session(comparison.Session):
    """What comparison.run needs, computed by Pyro's own ELBOs."""

    model: Program
    guide: Program

    def __init__(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict, loss: ELBO, seed: int
    ) -> None:
        self.model, self.guide = (Program(fn, args, kwargs) for fn in (model, guide))
        self.loss, self.seed = loss, seed
        with SeedBySite(seed, 0):
            self.guide.run()
            self.model.run(self.guide.trace)
        comparison.refuse_unbounded(self.model, self.guide)
        check_traces(self.guide.trace, self.model.trace)
        frames = [f for p in (self.model, self.guide) for s in p.sites for f in p.frames(s)]
        subsampled = any(frame.size != (frame.full_size or frame.size) for frame in frames)
        self.continuous = bool(self.model.continuous)
        self.stochastic = self.continuous or subsampled
        self.sizes = {frame.name: frame.size for frame in frames}
        self.exact = TraceEnum_ELBO(
            max_plate_nesting=-min((frame.dim for frame in frames), default=0)
        )

    def marginals(self, side: str, draws: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        program = self.model if side == "model" else self.guide
        rest = self.guide if self.model.continuous else _empty
        others = poutine.block(rest, hide=list(self.guide.discrete))
        if side == "guide":  # its sites are then in both programs: no warning of auxiliary ones
            others = poutine.infer_config(others, lambda site: {"is_auxiliary": False})
        tilts = program.tilts()
        tilted = config_enumerate(Tilt(tilts)(program))
        values, slopes = self._values(self.exact, tilted, others, draws, tilts)
        weights = {name: g.mean(0).reshape(tilts[name].shape) for name, g in slopes.items()}
        return values, comparison.normalized(weights)

    def elbo(self, draws: int) -> tuple[np.ndarray, Gradients]:
        pair = config_enumerate(self.model), config_enumerate(self.guide)
        return self._values(self.exact, *pair, draws, self.parameters)

    def logits(self) -> set[str]:
        data = {name: site["value"].detach() for name, site in self.guide.sites.items()}
        with SeedBySite(self.seed, 0):
            trace = poutine.trace(poutine.condition(self.guide, data=data)).get_trace()
        sites = [trace.nodes[name] for name in self.guide.discrete]
        score = sum(site["fn"].log_prob(site["value"]).sum() for site in sites)
        if not getattr(score, "requires_grad", False):
            return set()
        leaves = self.guide.parameters
        slopes = torch.autograd.grad(score, list(leaves.values()), allow_unused=True)
        return {name for name, g in zip(leaves, slopes, strict=True) if g is not None}

    def relaxed(
        self, family: Family, objective: str, temperature: float, draws: int
    ) -> tuple[np.ndarray, Gradients]:
        # a straight-through family is scored by its mass under both objectives
        scoring = "categorical" if objective == "discrete" else objective
        model, guide = (
            relax(partial(p.at, temperature), temperature, family=family, objective=scoring)
            for p in (self.model, self.guide)
        )
        check(model, guide, self.loss)
        return self._values(self.loss, model, guide, draws, self.parameters)

    def discrete(
        self, elbo: ELBO, draws: int, adaptation_steps: int
    ) -> tuple[np.ndarray, Gradients]:
        if not hasattr(elbo, "wrap"):
            check(self.model, self.guide, elbo)
            return self._values(elbo, self.model, self.guide, draws, self.parameters)
        guide = elbo.wrap(self.guide)
        with self._without_state():
            check(self.model, guide, elbo)
            self._adapt(elbo, guide, adaptation_steps)
            return self._values(elbo, self.model, guide, draws, self.parameters)

    @contextmanager
    def _without_state(self) -> Iterator[None]:
        """Within it the store has only the programs' parameters; afterwards it is as before."""
        store, own = pyro.get_param_store(), {**self.model.parameters, **self.guide.parameters}
        kept = {
            kind: {name: x for name, x in entries.items() if name in own}
            for kind, entries in store.get_state().items()
        }
        with store.scope(kept):
            yield

    def _adapt(self, elbo: ELBO, guide: Callable, steps: int) -> None:
        """Steps that train only the state that the guide keeps for an ELBO."""
        own = {**self.model.parameters, **self.guide.parameters}
        store = pyro.get_param_store()
        state = [x for name, x in store.named_parameters() if name not in own]
        adam = torch.optim.Adam(state, comparison.ADAPTATION_RATE)
        for step in range(steps):
            with SeedBySite(self.seed, -1 - step):
                loss = elbo.differentiable_loss(self.model, guide)
            if loss.requires_grad:
                slopes = torch.autograd.grad(loss, state, allow_unused=True)
                for x, slope in zip(state, slopes, strict=True):
                    x.grad = slope
                adam.step()

    def _values(
        self,
        elbo: ELBO,
        model: Callable,
        guide: Callable,
        draws: int,
        variables: dict[str, Tensor],
    ) -> tuple[np.ndarray, Gradients]:
        """ELBO, and its gradient with respect to the variables, for each draw."""
        leaves = list(variables.values())
        values: list[float] = []
        seconds: list[float] = []
        gradients: dict[str, list[np.ndarray]] = {name: [] for name in variables}
        for draw in range(draws):
            began = process_time()
            with SeedBySite(self.seed, draw):
                value, slopes = _value_and_gradient(elbo, model, guide, leaves)
            seconds.append(process_time() - began)
            values.append(value)
            for name, leaf, slope in zip(variables, leaves, slopes, strict=True):
                slope = torch.zeros_like(leaf) if slope is None else slope
                gradients[name].append(slope.flatten().double().numpy(force=True))
        self.seconds = float(np.median(seconds))
        return np.array(values), {name: np.stack(g) for name, g in gradients.items()}


def _value_and_gradient(
    elbo: ELBO, model: Callable, guide: Callable, leaves: list[Tensor]
) -> tuple[float, list[Tensor | None]]:
    """Value and gradient of the ELBO; `grad` of the leaves does not change."""
    if not leaves:
        return -float(elbo.loss(model, guide)), []
    if hasattr(elbo, "differentiable_loss"):
        loss = elbo.differentiable_loss(model, guide)
        return -loss.item(), list(torch.autograd.grad(-loss, leaves, allow_unused=True))
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    loss = elbo.loss_and_grads(model, guide)
    slopes = [None if leaf.grad is None else -leaf.grad for leaf in leaves]
    for leaf, grad in zip(leaves, before, strict=True):
        leaf.grad = grad
    return -float(loss), slopes


def _empty() -> None: ...
