"""Cost of a step of the semi-supervised model by its number of classes: the paper's Figure 5."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _report import TITLES
from matplotlib.figure import Figure
from rich.table import Table
from tqdm import tqdm

from gs_ppl.models.training import SemiSupervisedSettings, make_trainer

CLASSES = (5, 10, 20, 50, 100, 200)
STYLE, WIDTH, PIXELS, BATCH = 50, 500, 784, 100
METHODS = {
    "relaxed": "GumbelSoftmax",
    "enumerated": "networks of x and y run for each class",
    "enumerated, shared": "features of x computed once, as the model is shipped",
    "loop": "no PPL: a loop over the classes, features of x computed once",
}
Step = Callable[[int], Any]  # takes that many steps


def measure_step_cost(backends: list[str], quick: bool, seed: int) -> list[dict[str, Any]]:
    """CPU time of a step, median over rounds in which all methods of both sides take turns.

    On one CPU with one thread.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    settings = SemiSupervisedSettings(variables=STYLE, hidden=(WIDTH,), batch=BATCH, seed=seed)
    rounds, classes = 15, CLASSES
    if quick:
        settings = dataclasses.replace(settings, variables=2, hidden=(8,), batch=4)
        rounds, classes = 2, CLASSES[:2]
    rng = np.random.default_rng(seed)
    images = (rng.random((1000, PIXELS)) < 0.2).astype(np.float32)
    rows = []
    for K in tqdm(classes, desc="classes"):
        of_size = dataclasses.replace(settings, classes=K)
        takers = {(b, m): make_step(b, m, of_size, images) for b in backends for m in METHODS}
        seconds = time_in_turns(takers, rounds)
        for backend in backends:
            medians = {m: float(np.median(seconds[backend, m])) for m in METHODS}
            base = medians["relaxed"]
            rows += [
                {"backend": backend, "classes": K, "method": m, "ms": 1e3 * s, "ratio": s / base}
                for m, s in medians.items()
            ]
    return rows


def time_in_turns(steps: dict[Any, Step], rounds: int) -> dict[Any, list[float]]:
    """CPU seconds of one step, by round; as many at a time as take a tenth of a second."""
    repeats = {}
    for key, step in steps.items():
        step(1)  # compiles
        began = time.process_time()
        step(1)
        repeats[key] = max(1, round(0.1 / (time.process_time() - began)))
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
    if method == "loop":
        return {"pyro": loop_in_torch, "numpyro": loop_in_jax}[backend](settings, images)
    family = "GumbelSoftmax" if method == "relaxed" else "enumerated"
    shared = method != "enumerated"
    trainer = make_trainer(
        backend, dataclasses.replace(settings, family=family, shared=shared), images
    )
    return trainer.advance


def loop_in_torch(settings: SemiSupervisedSettings, images: np.ndarray) -> Step:
    import torch
    from torch.distributions import Bernoulli, kl_divergence

    from gs_ppl.models.semi_supervised_pyro import Normal, SemiSupervised, make_normal

    torch.set_num_threads(1)
    network = SemiSupervised(**settings.network(images))
    classifier, encoder, decoder = network.classifier, network.encoder, network.decoder
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    pixels, classes = torch.as_tensor(images), torch.eye(settings.classes)
    prior = Normal(torch.zeros(settings.variables), 1.0).to_event(1)

    def loss(x: torch.Tensor) -> torch.Tensor:
        log_q = classifier(x).log_softmax(-1)
        from_x, elbos = encoder.from_x(encoder.features(x)), []
        for y in classes:
            law = make_normal(encoder.head((from_x + encoder.from_y(y)).relu()))
            log_p = Bernoulli(logits=decoder(law.rsample(), y)).log_prob(x).sum(-1)
            elbos.append(log_p - kl_divergence(law, prior))
        uniform = -np.log(settings.classes)
        return -(log_q.exp() * (torch.stack(elbos, -1) + uniform - log_q)).sum()

    def step(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(pixels[torch.randint(len(pixels), (settings.batch,))]).backward()
            optimizer.step()

    step.loss = loss
    return step


def loop_in_jax(settings: SemiSupervisedSettings, images: np.ndarray) -> Step:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from numpyro.distributions import Bernoulli, kl_divergence

    from gs_ppl.models.semi_supervised_numpyro import Normal, SemiSupervised, make_normal

    network = SemiSupervised(**settings.network(images), rngs=nnx.Rngs(settings.seed))
    graph, params = nnx.split((network.classifier, network.encoder, network.decoder))
    adam = optax.adam(settings.learning_rate)
    pixels, classes = jnp.asarray(images), jnp.eye(settings.classes)
    prior = Normal(jnp.zeros(settings.variables), 1.0).to_event(1)

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        classifier, encoder, decoder = nnx.merge(graph, params)
        log_q = jax.nn.log_softmax(classifier(x))
        from_x = encoder.from_x(encoder.features(x))

        def elbo(y_and_key: tuple[jax.Array, jax.Array]) -> jax.Array:
            y, key = y_and_key
            law = make_normal(encoder.head(jax.nn.relu(from_x + encoder.from_y(y))))
            log_p = Bernoulli(logits=decoder(law.rsample(key), y)).log_prob(x).sum(-1)
            return log_p - kl_divergence(law, prior)

        elbos = jax.lax.map(elbo, (classes, jax.random.split(key, len(classes)))).T
        return -(jnp.exp(log_q) * (elbos - jnp.log(len(classes)) - log_q)).sum()

    @jax.jit
    def update(state: tuple, steps: int) -> tuple:
        def body(_: int, state: tuple) -> tuple:
            params, optimizer, key = state
            key, rows_key, noise = jax.random.split(key, 3)
            rows = jax.random.randint(rows_key, (settings.batch,), 0, len(pixels))
            grads = jax.grad(loss)(params, pixels[rows], noise)
            updates, optimizer = adam.update(grads, optimizer)
            return optax.apply_updates(params, updates), optimizer, key

        return jax.lax.fori_loop(0, steps, body, state)

    state = params, adam.init(params), jax.random.key(settings.seed)

    def step(steps: int) -> None:
        nonlocal state
        state = jax.block_until_ready(update(state, steps))

    step.loss = lambda x, key: loss(params, x, key)
    return step


def draw_step_cost(rows: list[dict[str, Any]], path: Path) -> Table:
    """Ratios to the relaxed step, as a picture and a table."""
    sides = list(dict.fromkeys(row["backend"] for row in rows))
    classes = list(dict.fromkeys(row["classes"] for row in rows))
    figure = Figure(figsize=(5 * len(sides), 4.5), layout="constrained")
    axes = figure.subplots(1, len(sides), squeeze=False, sharey=True)[0]
    table = Table(title="CPU time of a step over that of the relaxed one")
    for column in ("PPL", "method", *(f"K = {K}" for K in classes)):
        table.add_column(column, justify="right" if column.startswith("K") else "left")
    for side, ax in zip(sides, axes, strict=True):
        for method in METHODS:
            cost = {r["classes"]: r for r in rows if (r["backend"], r["method"]) == (side, method)}
            ratios = [cost[K]["ratio"] for K in classes]
            ax.plot(classes, ratios, "o-", label=method)
            shown = [f"{ratio:.1f}" for ratio in ratios]
            if method == "relaxed":
                shown = [f"{cost[K]['ms']:.1f} ms" for K in classes]
            table.add_row(TITLES[side], method, *shown)
        ax.set(title=TITLES[side], xlabel="classes", xscale="log", yscale="log")
        ax.set_xticks(classes, map(str, classes), minor=False)
        ax.set_xticks([], minor=True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("CPU time over that of the relaxed step")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    return table
