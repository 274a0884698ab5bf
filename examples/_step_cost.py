"""Cost of a step of the semi-supervised model by its number of classes: the paper's Figure 5."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _pictures import name_lines
from _report import TITLES
from matplotlib.figure import Figure
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.training import SemiSupervisedSettings, make_trainer

CLASSES = (5, 10, 20, 50, 100, 200)
STYLE, WIDTH, PIXELS, BATCH = 50, 500, 784, 200
METHODS = {
    "relaxed": "GumbelSoftmax",
    "enumerated": "networks of x and y run for each class",
    "enumerated, shared": "features of x computed once, as the model is shipped",
    "loop": "no PPL: a loop over the classes, features of x computed once",
}
TURN = 0.1  # seconds of one turn of a method
Step = Callable[[int], Any]  # takes that many steps


def measure_step_cost(backends: list[str], quick: bool, seed: int) -> list[dict[str, Any]]:
    """CPU time of a step: the median over rounds in which all methods of both sides take turns.

    All run on one CPU with one thread.
    """
    use_one_thread(quick)
    settings = SemiSupervisedSettings(variables=STYLE, hidden=(WIDTH,), batch=BATCH, seed=seed)
    rounds, turn, classes = 7, TURN, CLASSES
    if quick:
        settings = dataclasses.replace(settings, variables=2, hidden=(8,), batch=4)
        rounds, turn, classes = 1, 0.0, CLASSES[:1]
    rng = np.random.default_rng(seed)
    images = (rng.random((1000, PIXELS)) < 0.2).astype(np.float32)
    rows = []
    for K in tqdm(classes, desc="classes"):
        of_size = dataclasses.replace(settings, classes=K)
        takers = {(b, m): make_step(b, m, of_size, images) for b in backends for m in METHODS}
        seconds = time_in_turns(takers, rounds, turn)
        for backend in backends:
            medians = {m: float(np.median(seconds[backend, m])) for m in METHODS}
            base = medians["relaxed"]
            rows += [
                {"backend": backend, "classes": K, "method": m, "ms": 1e3 * s, "ratio": s / base}
                for m, s in medians.items()
            ]
    return rows


def use_one_thread(quick: bool) -> None:
    """Keeps the process on one CPU, if it measures."""
    if not quick and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def time_in_turns(
    steps: dict[Any, Step], rounds: int, turn: float = TURN
) -> dict[Any, list[float]]:
    """CPU seconds of one step, by round; a turn has the steps of `turn` seconds, at least one."""
    repeats = {}
    for key, step in steps.items():
        step(1)  # this compiles
        began = time.process_time()
        step(1)
        repeats[key] = max(1, round(turn / (time.process_time() - began)))
        step(repeats[key])
    seconds: dict[Any, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            began = time.process_time()
            step(repeats[key])
            seconds[key].append((time.process_time() - began) / repeats[key])
    return seconds


def make_step(
    backend: str, method: str, settings: SemiSupervisedSettings, images: np.ndarray
) -> Step:
    family = "GumbelSoftmax" if method == "relaxed" else "enumerated"
    shared = method != "enumerated"
    settings = dataclasses.replace(settings, family=family, shared=shared)
    trainer = make_trainer(backend, settings, images)
    if method != "loop":
        return trainer.advance
    loop = {"pyro": TorchLoop, "numpyro": JaxLoop}[backend]
    return loop(trainer.network, settings, images).advance


class TorchLoop:
    """Exact sum over y, written by hand with the networks of the Pyro model."""

    def __init__(self, network: Any, settings: SemiSupervisedSettings, images: np.ndarray) -> None:
        import torch

        torch.set_num_threads(1)
        self.network, self.images, self.batch = network, torch.as_tensor(images), settings.batch
        self.classes = torch.eye(settings.classes)
        self.optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, fused=True)
        self.randint = torch.randint

    def loss(self, x: Any) -> Any:
        from torch.distributions import Bernoulli, Normal, kl_divergence

        from gs_ppl.models.semi_supervised_pyro import make_normal

        network, K = self.network, len(self.classes)
        log_q = network.classifier(x).log_softmax(-1)
        from_x, loss = network.encoder.from_x(network.encoder.features(x)), 0.0
        for k, y in enumerate(self.classes):
            hidden = (from_x + network.encoder.from_y(y)).relu()
            law = make_normal(network.encoder.head(hidden)).base_dist
            pixels = Bernoulli(logits=network.decoder(law.rsample(), y))
            elbo = pixels.log_prob(x).sum(-1) - kl_divergence(law, Normal(0.0, 1.0)).sum(-1)
            loss -= (log_q[:, k].exp() * (elbo - np.log(K) - log_q[:, k])).sum()
        return loss

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss(self.images[self.randint(len(self.images), (self.batch,))]).backward()
            self.optimizer.step()


class JaxLoop:
    """Exact sum over y, written by hand with the networks of the NumPyro model."""

    def __init__(self, network: Any, settings: SemiSupervisedSettings, images: np.ndarray) -> None:
        import jax
        import optax
        from flax import nnx

        self.jax, self.nnx, self.optax = jax, nnx, optax
        self.batch, self.images = settings.batch, jax.numpy.asarray(images)
        self.classes = jax.numpy.eye(settings.classes)
        modules = network.classifier, network.encoder, network.decoder
        self.graph, params = nnx.split(modules)
        self.adam = optax.adam(settings.learning_rate)
        self.state = params, self.adam.init(params), jax.random.key(settings.seed)
        self.update = jax.jit(self._update)

    def loss(self, params: Any, x: Any, key: Any) -> Any:
        from numpyro.distributions import Bernoulli, Normal, kl_divergence

        from gs_ppl.models.semi_supervised_numpyro import make_normal

        jax, K = self.jax, len(self.classes)
        classifier, encoder, decoder = self.nnx.merge(self.graph, params)
        log_q = jax.nn.log_softmax(classifier(x))
        from_x = encoder.from_x(encoder.features(x))

        def elbo(y_and_key: Any) -> Any:
            y, key = y_and_key
            hidden = jax.nn.relu(from_x + encoder.from_y(y))
            law = make_normal(encoder.head(hidden)).base_dist
            pixels = Bernoulli(logits=decoder(law.rsample(key), y))
            return pixels.log_prob(x).sum(-1) - kl_divergence(law, Normal(0.0, 1.0)).sum(-1)

        elbos = jax.lax.map(elbo, (self.classes, jax.random.split(key, K))).T
        return -(jax.numpy.exp(log_q) * (elbos - np.log(K) - log_q)).sum()

    def _update(self, state: tuple, steps: int) -> tuple:
        jax = self.jax

        def step(_: int, state: tuple) -> tuple:
            params, optimizer, key = state
            key, of_rows, of_loss = jax.random.split(key, 3)
            x = self.images[jax.random.randint(of_rows, (self.batch,), 0, len(self.images))]
            gradient = jax.grad(self.loss)(params, x, of_loss)
            updates, optimizer = self.adam.update(gradient, optimizer)
            return self.optax.apply_updates(params, updates), optimizer, key

        return jax.lax.fori_loop(0, steps, step, state)

    def advance(self, steps: int) -> None:
        self.state = self.jax.block_until_ready(self.update(self.state, steps))


def draw_step_cost(rows: list[dict[str, Any]], path: Path) -> Table:
    """Ratios to the time of the relaxed step, as a picture and a table."""
    sides = list(dict.fromkeys(row["backend"] for row in rows))
    classes = list(dict.fromkeys(row["classes"] for row in rows))
    figure = Figure(figsize=(5 * len(sides), 4.5), layout="constrained")
    axes = figure.subplots(1, len(sides), squeeze=False, sharey=True)[0]
    table = Table(title="CPU time of a step over that of the relaxed one")
    for column in ("PPL", "method", *(f"K = {K}" for K in classes)):
        table.add_column(column, justify="right" if column.startswith("K") else "left")
    for side, ax in zip(sides, axes, strict=True):
        ax.plot(classes, classes, color="0.85", lw=4, zorder=0)  # one relaxed step for each class
        for method in METHODS:
            cost = {r["classes"]: r for r in rows if (r["backend"], r["method"]) == (side, method)}
            ratios = [cost[K]["ratio"] for K in classes]
            ax.plot(classes, ratios, "o-")
            shown = [f"{ratio:.1f}" for ratio in ratios]
            if method == "relaxed":
                shown = [f"{cost[K]['ms']:.1f} ms" for K in classes]
            table.add_row(TITLES[side], method, *shown)
        ax.set(title=TITLES[side], xlabel="classes", xscale="log", yscale="log")
        ax.set_xticks(classes, map(str, classes), minor=False)
        ax.set_xticks([], minor=True)
        ax.yaxis.set_major_formatter("{x:.0f}")
        ax.spines[["top", "right"]].set_visible(False)
        name_lines(ax, list(METHODS))
    axes[0].set_ylabel("CPU time over that of the relaxed step")
    figure.supxlabel("grey: as many relaxed steps as there are classes", fontsize="medium")
    figure.savefig(path, dpi=110)
    return table
