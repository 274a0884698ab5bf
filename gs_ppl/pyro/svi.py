"""SVI with an annealed temperature."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral
from typing import Any

import pyro
import torch
from pyro import infer, poutine, validation_enabled
from pyro.infer import SVI
from pyro.infer.util import is_validation_enabled
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.optim import Optimizer

from gs_ppl._shared.annealing import LOSS, SCHEDULE, STEPS, check_argument, takes
from gs_ppl._shared.following import missing_site_named
from gs_ppl._shared.pairings import shapes
from gs_ppl._shared.reprs import ShownELBO, call, program_name
from gs_ppl.pyro.checks import check, check_tails
from gs_ppl.pyro.handlers import annealed, discretize, program_inside, random_state
from gs_ppl.pyro.sparse import ByRow, gradients_by_row, has_sparse
from gs_ppl.training import Callback, Training, Watch, refuse_infinite, refuse_nan

__all__ = ["AnnealedSVI"]  # the rest is only for torch

OPTIMIZER = "an optimizer of Pyro or torch, or a function that makes one from a list of parameters"

EVALUATION_DRAWS = 10


class TorchOptim(PyroOptim):
    """One torch optimizer for all parameters; Pyro's own optimizers have one for each of them.

    Args:
        optim: an optimizer, which must then have every parameter; or a function that makes one from
            a list of parameters. It is called when the parameters are first seen.
    """

    def __init__(self, optim: Optimizer | Callable[[list[Tensor]], Optimizer]) -> None:
        if isinstance(optim, type):
            makes_one = issubclass(optim, Optimizer)
        else:  # pyro.optim.Adam is a function, too, but of options
            of_options = getattr(optim, "__module__", "").startswith("pyro.optim")
            makes_one = callable(optim) and not of_options
        is_optim = isinstance(optim, Optimizer) or (makes_one and not isinstance(optim, infer.ELBO))
        check_argument("optim", is_optim, OPTIMIZER, optim)
        super().__init__(optim, {})
        self.make = None if isinstance(optim, Optimizer) else optim
        self.optimizer = optim if isinstance(optim, Optimizer) else None
        self._saved: dict[str, Any] | None = None

    def __call__(self, params: Iterable[Tensor]) -> None:
        if self.optimizer is None:
            self.optimizer = self._start(params)
        known = {p for group in self.optimizer.param_groups for p in group["params"]}
        new = by_name(p for p in params if p not in known)
        if new and self.make is None:
            names = ", ".join(new)
            raise ValueError(
                f"AnnealedSVI: the optimizer must have every parameter, but lacks {names}"
            )
        if new:
            self.optimizer.add_param_group({"params": list(new.values())})
        self.optimizer.step()
        self.optimizer.zero_grad()  # sets None; SVI would write zeros, and backward add to them

    def _get_optim(self, param: Any) -> Optimizer:
        """The optimizer that a parameter has, or would get."""
        if self.make is not None:
            return self.make([param])
        assert self.optimizer is not None  # the caller's own
        return self.optimizer

    def _start(self, params: Iterable[Tensor]) -> Optimizer:
        """Makes a new optimizer, or takes the saved one."""
        assert self.make is not None  # the caller's own optimizer exists from the start
        if not self._saved:
            return self.make(list(by_name(params).values()))
        store = dict(pyro.get_param_store().named_parameters())
        first, *others = ([store[name] for name in group] for group in self._saved["names"])
        optimizer = self.make(first)
        for group in others:
            optimizer.add_param_group({"params": group})
        optimizer.load_state_dict(self._saved["optimizer"])
        return optimizer

    def get_state(self) -> dict[str, Any]:
        if self.optimizer is None:
            return self._saved or {}
        state = {"optimizer": self.optimizer.state_dict()}
        if self.make is None:
            return state  # in the caller's order; it may have parameters that no program has
        groups = [group["params"] for group in self.optimizer.param_groups]
        return state | {"names": [list(by_name(group)) for group in groups]}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
        if self.make is not None:
            self.optimizer = None
        elif self.optimizer is not None:
            self.optimizer.load_state_dict(state_dict["optimizer"])


def by_name(params: Iterable[Tensor]) -> dict[str, Tensor]:
    """Unconstrained parameters by their names in the store, in the order of the names."""
    store = pyro.get_param_store()
    return dict(sorted((store.param_name(p), p) for p in params))


class ScoredOnDemand(dict):
    """A site of a trace; it is scored at the first use of its score."""

    def __missing__(self, key: str) -> Any:
        alone = poutine.Trace()
        alone.add_node(self["name"], **self)
        if key == "score_parts":
            alone.compute_score_parts()
        elif key == "log_prob_sum":
            alone.compute_log_prob()
        else:
            raise KeyError(key)
        self.update(alone.nodes[self["name"]])
        return self[key]


class TraceMeanField_ELBO(ShownELBO, infer.TraceMeanField_ELBO):
    """Pyro's ELBO, without scores that it does not use: those of sites with an analytic divergence.

    With validation it computes all scores, for their checks.

    Example:
        >>> elbo = TraceMeanField_ELBO(num_particles=2)
    """

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple:
        if is_validation_enabled() or isinstance(program_inside(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        for trace in traces:
            trace.nodes.update({n: ScoredOnDemand(site) for n, site in trace.nodes.items()})
        return traces


class JitTraceMeanField_ELBO(TraceMeanField_ELBO, infer.JitTraceMeanField_ELBO):
    """The same ELBO, compiled once. Pyro's compiles at every step, since it reads another name.

    The first step fixes the structure of the program, and whether its logits mask categories. If
    they mask categories only later, the loss is no longer finite.

    Example:
        >>> elbo = JitTraceMeanField_ELBO(ignore_jit_warnings=True)
    """

    @property
    def _loss_and_surrogate_loss(self) -> Callable | None:
        return getattr(self, "_differentiable_loss", None)


class AnnealedSVI(SVI):
    """SVI whose step t runs at the temperature schedule(t).

    Handlers and guides (relax, AutoGumbelSoftmax) without a temperature of their own use it, and so
    do programs that have an argument `temperature`. Other programs do not see it. It is a 0-d
    tensor, so that the Jit ELBOs compile once.

    Args:
        model, guide, loss: as in pyro.infer.SVI.
        optim: an optimizer of Pyro; or, faster, an optimizer of torch, or a function that makes one
            from a list of parameters, such as partial(torch.optim.Adam, lr=0.05, fused=True). A
            class alone, such as torch.optim.Adam, has torch's default rate, 1e-3.
        schedule: step -> temperature, e.g. one of gs_ppl.temperature.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl import temperature
        >>> from gs_ppl.pyro import AnnealedSVI, AutoGumbelSoftmax, OneHotCategorical, relax
        >>> def model():
        ...     z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...     loc = (z * torch.tensor([-2.0, 2.0])).sum(-1)
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(1.5))
        >>> pyro.clear_param_store()
        >>> guide = AutoGumbelSoftmax(model)
        >>> schedule = temperature.exponential(rate=1e-2, minimum=0.5)
        >>> adam, elbo = pyro.optim.Adam({"lr": 0.05}), pyro.infer.TraceMeanField_ELBO()
        >>> svi = AnnealedSVI(relax(model), guide, adam, elbo, schedule)
        >>> losses = [svi.step() for _ in range(100)]
        >>> guide.mode()["z"]
        tensor([0., 1.])
    """

    loss_and_grads: Callable

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: Any,
        loss: Any,
        schedule: Callable[[int], Any],
        **kwargs: Any,
    ) -> None:
        is_loss = isinstance(loss, infer.ELBO) or (
            not isinstance(loss, PyroOptim | Optimizer) and takes(loss, 3)
        )
        check_argument("loss", is_loss, LOSS, loss)
        is_schedule = not isinstance(schedule, infer.ELBO | PyroOptim | Optimizer)
        check_argument("schedule", is_schedule and takes(schedule, 1), SCHEDULE, schedule)
        optim = optim if isinstance(optim, PyroOptim) else TorchOptim(optim)
        self._sparse = has_sparse(guide)
        optim = ByRow(optim) if self._sparse else optim
        super().__init__(annealed(model), annealed(guide), optim, loss, **kwargs)
        self.schedule = schedule
        self._shown = [*map(program_name, (model, guide)), type(loss).__name__, repr(schedule)]
        self.num_steps = 0
        self._elbo = loss
        self._checked: set[Any] = set()

    def __repr__(self) -> str:
        return call(type(self).__name__, *self._shown)

    def temperature(self) -> torch.Tensor:
        """The temperature of the coming step."""
        return torch.as_tensor(self.schedule(self.num_steps), dtype=torch.get_default_dtype())

    def _check(self, *args: Any, **kwargs: Any) -> None:
        """Checks the pairing once for each combination of shapes of the arguments."""
        signature = shapes((args, kwargs))
        if signature not in self._checked:
            check(self.model, self.guide, self._elbo, *args, **kwargs)
            self._checked.add(signature)

    def step(self, *args: Any, **kwargs: Any) -> float:
        temperature = self.temperature()
        self._check(temperature, *args, **kwargs)
        by_row = gradients_by_row() if self._sparse else nullcontext()
        with missing_site_named("pyro"), by_row:
            loss = super().step(temperature, *args, **kwargs)
        self.num_steps += 1
        return loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        self._check(self.temperature(), *args, **kwargs)
        with missing_site_named("pyro"):
            return super().evaluate_loss(self.temperature(), *args, **kwargs)

    def run(
        self,
        num_steps: int,
        *args: Any,
        progress_bar: bool = True,
        callback: Callback | None = None,
        callback_every: int = 1,
        evaluate_every: int | None = None,
        **kwargs: Any,
    ) -> Training:
        """Takes steps on the same data, and returns the arrays of the run.

        Args:
            num_steps: number of steps.
            *args: what the programs take.
            progress_bar: whether to show one, with loss and temperature.
            callback: called with step, loss and temperature.
            callback_every: number of steps from one call to the next.
            evaluate_every: number of steps between evaluations of the discrete ELBO, with ten
                draws.
            **kwargs: what the programs take.

        Raises:
            ValueError: if the loss is NaN, naming the step and the first site; if the loss of all
                steps is infinite, naming the sites.
        """
        check_argument("num_steps", isinstance(num_steps, Integral), STEPS, num_steps)
        first = self.num_steps
        watch = Watch(first, num_steps, progress_bar, callback, callback_every, evaluate_every)
        losses, temperatures = [], []
        with self._nan_refused():
            for done in range(1, num_steps + 1):
                temperatures.append(float(self.temperature()))
                losses.append(self.step(*args, **kwargs))
                if watch.wants(done):
                    evaluate = partial(self._discrete_elbo, *args, **kwargs)
                    watch.report(done, losses[-1], temperatures[-1], evaluate)
        if losses and all(map(math.isinf, losses)):
            refuse_infinite(self._scores(self.temperature(), *args, **kwargs))
        # truncated counts again: the parameters have changed since the first check
        check_tails(self.model, self.guide, self.temperature(), *args, **kwargs)
        return watch.finish(losses, temperatures)

    @contextmanager
    def _nan_refused(self) -> Iterator[None]:
        """Within it a loss of NaN is refused before the optimizer writes it to the parameters."""
        loss_and_grads: Callable = self.loss_and_grads

        def refusing(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
            before = get_rng_state()
            loss = loss_and_grads(model, guide, *args, **kwargs)
            if math.isnan(loss):
                set_rng_state(before)
                refuse_nan(self.num_steps, loss, self._scores(*args, **kwargs))
            return loss

        self.loss_and_grads = refusing
        try:
            yield
        finally:
            self.loss_and_grads = loss_and_grads

    def _discrete_elbo(self, *args: Any, **kwargs: Any) -> float:
        """The ELBO of the discretized pair; the random state does not change."""
        enumerates = isinstance(self._elbo, infer.TraceEnum_ELBO)
        elbo = self._elbo if enumerates else infer.Trace_ELBO(num_particles=EVALUATION_DRAWS)
        pair = discretize(self.model), discretize(self.guide)
        with random_state(), torch.no_grad():
            return -elbo.loss(*pair, self.temperature(), *args, **kwargs)

    def _scores(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The score of each site, the guide's first."""
        with torch.no_grad(), validation_enabled(False):
            guide = poutine.trace(self.guide).get_trace(*args, **kwargs)
            model = poutine.trace(poutine.replay(self.model, trace=guide))
            traces = guide, model.get_trace(*args, **kwargs)
            for trace in traces:
                trace.compute_log_prob()
        nodes = [item for trace in traces for item in trace.nodes.items()]
        return {n: float(node["log_prob_sum"]) for n, node in nodes if "log_prob_sum" in node}

    def get_state(self) -> dict[str, Any]:
        """Step, parameters and optimizer, for set_state, which continues the schedule too."""
        return {
            "num_steps": self.num_steps,
            "params": pyro.get_param_store().get_state(),
            "optim": self.optim.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues a run from the state that get_state returned.

        Parameters that exist are written in place. Those of a torch module must exist: run the
        programs once before, by evaluate_loss.
        """
        self.num_steps = state["num_steps"]
        store, saved = pyro.get_param_store(), state["params"]
        current = dict(store.named_parameters())
        if current.keys() == saved["params"].keys():
            for name, parameter in current.items():
                parameter.data.copy_(saved["params"][name])
        else:
            store.set_state(saved)
        self.optim.optim_objs.clear()
        self.optim.set_state(state["optim"])
