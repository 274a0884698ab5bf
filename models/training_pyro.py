"""Training and evaluation in Pyro: plain steps, torch.save for checkpoints."""

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

import gs_ppl.pyro as gs
from gs_ppl.models.layers_pyro import make_mlp
from gs_ppl.models.training import MODELS, Settings


class Trainer:
    """One run: see gs_ppl.models.training."""

    def __init__(
        self, settings: Settings, images: np.ndarray, labelled: tuple[np.ndarray, ...] = ()
    ) -> None:
        self.settings, self.images = settings, torch.as_tensor(images)
        self.labelled = tuple(map(torch.as_tensor, labelled))
        pyro.clear_param_store()
        pyro.set_rng_seed(settings.seed)
        program = importlib.import_module(f"gs_ppl.models.{settings.model}_pyro")
        self.network = getattr(program, MODELS[settings.model])(**settings.network(images))
        guide, loss = handle(self.network.guide, settings), make_loss(settings)
        if settings.baseline:
            guide = with_baseline(guide, make_mlp(images.shape[-1], settings.baseline, 1))
        self.svi = gs.AnnealedSVI(
            handle(self.network.model, settings),
            loss.wrap(guide) if hasattr(loss, "wrap") else guide,
            make_optimizer(settings),
            loss,
            settings.schedule,
        )
        first = torch.tensor(settings.schedule(0)), *settings.inputs(self.images[: settings.batch])
        gs.check(self.svi.model, self.svi.guide, loss, *first)

    @property
    def step(self) -> int:
        return self.svi.num_steps

    def advance(self, steps: int) -> np.ndarray:
        losses = []
        with pyro.validation_enabled(False):  # a NaN reaches the loss, where fit finds it
            for _ in range(steps):
                rows = torch.randint(len(self.images), (self.settings.batch,))
                inputs = self.settings.inputs(self.images[rows])
                if self.labelled:
                    rows = torch.randint(len(self.labelled[0]), (self.settings.labelled,))
                    inputs += tuple(part[rows] for part in self.labelled)
                losses.append(self.svi.step(*inputs))
                self.svi.optim.step()  # of the learning rate
        return np.array(losses) / self.settings.batch

    def save(self, file: BinaryIO) -> None:
        state = self.svi.get_state()
        state["params"] = state["params"]["params"]  # no parameter is constrained
        state["optim"] = dict(sorted(state["optim"].items()))  # Pyro has them in the order of a set
        torch.save({**state, "random": _plain(get_rng_state())}, file)

    def load(self, file: BinaryIO) -> None:
        state = torch.load(file, weights_only=True)  # tensors and numbers
        # registers the networks' parameters, which set_state then overwrites
        self.svi.evaluate_loss(*self.settings.inputs(self.images[: self.settings.batch]))
        random, params = state.pop("random"), dict(pyro.get_param_store().items())
        wanted, got = ({n: (*x.shape,) for n, x in ps.items()} for ps in (params, state["params"]))
        if got != wanted:
            raise ValueError(f"parameters of {wanted} are wanted, got {got}")
        self.svi.set_state(state | {"params": {"params": state["params"], "constraints": {}}})
        set_rng_state(random)

    @torch.no_grad()
    def bound(self, images: np.ndarray, samples: int, seed: int) -> np.ndarray:
        random_state = get_rng_state()
        pyro.set_rng_seed(seed)
        batches = torch.as_tensor(images).split(500)
        bounds = torch.cat([self._bound(batch, samples) for batch in batches]).numpy(force=True)
        set_rng_state(random_state)
        return bounds

    @torch.no_grad()
    def means(self, images: np.ndarray, from_guide: bool, seed: int) -> np.ndarray:
        random_state = get_rng_state()
        pyro.set_rng_seed(seed)
        inputs = self.settings.inputs(torch.as_tensor(images))
        guide, model = (gs.discretize(f) for f in (self.network.guide, self.network.model))
        if from_guide:
            model = poutine.replay(model, trace=poutine.trace(guide).get_trace(*inputs))
        nodes = poutine.trace(model).get_trace(*inputs).nodes
        set_rng_state(random_state)
        observed = [node for node in nodes.values() if node.get("is_observed")]
        return observed[-1]["fn"].mean.numpy(force=True)

    @torch.no_grad()
    def classify(self, images: np.ndarray) -> np.ndarray:
        random_state = get_rng_state()
        guide, batches = gs.discretize(self.network.guide), torch.as_tensor(images).split(1000)
        traces = (poutine.trace(guide).get_trace(batch) for batch in batches)
        probs = torch.cat([trace.nodes["y"]["fn"].probs for trace in traces]).numpy(force=True)
        set_rng_state(random_state)
        return probs

    def _bound(self, images: Tensor, samples: int) -> Tensor:
        """-log mean of the importance weights, by image."""
        inputs = self.settings.inputs(images)
        weights = torch.stack([self._log_weights(inputs) for _ in range(samples)])
        return math.log(samples) - weights.logsumexp(0)

    def _log_weights(self, inputs: tuple[Tensor, ...]) -> Tensor:
        guide = gs.discretize(self.network.guide)
        guide_trace = poutine.trace(guide).get_trace(*inputs)
        model = poutine.replay(gs.discretize(self.network.model), trace=guide_trace)
        model_trace = poutine.trace(model).get_trace(*inputs)
        return _log_density(model_trace) - _log_density(guide_trace)


def _plain(random_state: dict[str, Any]) -> dict[str, Any]:
    """With a list in place of NumPy's array: torch does not load that without its class."""
    name, words, *rest = random_state["numpy"]
    return random_state | {"numpy": (name, words.tolist(), *rest)}


def handle(program: Callable, settings: Settings) -> Callable:
    """A program with its discrete latents relaxed or enumerated."""
    if settings.discrete:
        return program
    if settings.enumerated:
        return gs.config_enumerate(program)
    family = getattr(gs, settings.family)
    return gs.relax(program, family=family, objective=settings.objective)


def make_optimizer(settings: Settings) -> pyro.optim.PyroLRScheduler:
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer != "RAdam":  # which has no fused form
        options["fused"] = True
    return pyro.optim.LambdaLR(
        {
            "optimizer": getattr(torch.optim, settings.optimizer),
            "optim_args": options,
            "lr_lambda": partial(decay, settings=settings),
        }
    )


def decay(step: int, settings: Settings) -> float:
    """Of the learning rate: a cosine, for AdamW."""
    if settings.optimizer != "AdamW":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1, step / settings.steps)))


def make_loss(settings: Settings) -> ELBO:
    if settings.enumerated:
        return TraceEnum_ELBO(max_plate_nesting=1)
    return getattr(gs, settings.family)() if settings.discrete else TraceMeanField_ELBO()


def with_baseline(guide: Callable, network: torch.nn.Module) -> Callable:
    """Declares NVIL's learned baseline at each site: a network of all arguments of the guide."""

    def program(*inputs: Tensor) -> None:
        pyro.module("baseline", network)
        baseline = {
            "nn_baseline": lambda x: network(x).squeeze(-1),
            "nn_baseline_input": torch.cat(inputs, -1),
        }
        with poutine.infer_config(config_fn=lambda site: {"baseline": baseline}):
            guide(*inputs)

    return program


def _log_density(trace: poutine.Trace) -> Tensor:
    trace.compute_log_prob()
    sites = (node for node in trace.nodes.values() if node["type"] == "sample")
    return sum(node["log_prob"] for node in sites)
