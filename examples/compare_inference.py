"""Exact enumeration, Gumbel-Softmax and straight-through Gumbel-Softmax on one mixture model.

Ten components, one categorical latent per image, scikit-learn's 1,797 handwritten digits. Every
method fits the same program (gs_ppl.models.mixture_*) by SVI, from the same start, with the same
optimizer and minibatches; only the treatment of z differs. A mixture can be summed exactly, so that
each result is judged by the exact evidence of the fitted parameters, not by its loss. `compare`
says how far the guide is from the exact posterior, and its gradient from the exact gradient.

    python examples/compare_inference.py --backend both --output results/demo

writes means.png, curves.png and report.json, and prints the table. For one fit it prints the whole
result of `compare`; its last line names the family that is best for this program.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from gs_ppl.models.data import load_digits
from gs_ppl.report import Comparison
from gs_ppl.temperature import Schedule, constant, exponential

COMPONENTS = 10
TOTAL = 16  # points per pixel
BATCH = 256
LEARNING_RATES = 0.07, 0.007  # learning rate of Adam at the first and at the last step
CHUNK = 20  # steps between two points of the curves
SAMPLES = 50  # of compare


@dataclass(frozen=True)
class Method:
    """One row: the law of z in model and guide, and the temperatures."""

    name: str
    color: str
    family: str | None = None  # a class of gs_ppl.pyro and gs_ppl.numpyro; None: enumerate
    schedule: Schedule = field(default_factory=lambda: constant(1.0))
    temperature: str = ""  # as shown in the table
    last: float = 1.0  # temperature of the last step
    guide: str = "guide"
    chooses: bool = False  # whether compare chooses the best family for the guide

    @property
    def label(self) -> str:
        return f"{self.name}, τ = {self.temperature}" if self.temperature else self.name


@dataclass
class Fit:
    """The result of a run; the curve holds (step, nats per image)."""

    backend: str
    method: Method
    curve: list[tuple[int, float]] = field(default_factory=list)
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    agreement: float = math.nan
    steps_per_second: float = math.nan
    comparison: Comparison | None = None

    @property
    def nats(self) -> float:
        return self.curve[-1][1]


def list_methods(steps: int, quick: bool) -> list[Method]:
    to_half = exponential(1 / steps, minimum=0.5, every=CHUNK)
    to_tenth = exponential(3 / steps, minimum=0.1, every=CHUNK)
    soft, hard = "GumbelSoftmax", "STGumbelSoftmax"
    exact = Method("Enumeration", "black", guide="empty_guide")
    annealed_soft = Method(soft, "tab:blue", soft, to_half, "1 → 0.5", 0.5)
    annealed_hard = Method(hard, "tab:red", hard, to_half, "1 → 0.5", 0.5)
    if quick:
        return [exact, annealed_soft, annealed_hard]
    return [
        exact,
        annealed_soft,
        Method(soft, "skyblue", soft, constant(0.2), "0.2", 0.2),
        annealed_hard,
        Method(hard, "tab:pink", hard, constant(1.0), "1"),
        Method(hard, "tab:orange", hard, to_tenth, "1 → 0.1", 0.1),
        Method(hard, "gold", hard, constant(0.1), "0.1", 0.1),
        # the same guide and bound as in the straight-through rows, without noise
        Method("Enumeration of the guide", "darkgray", chooses=True),
    ]


# --- training: one generator per backend ----------------------------------------------------------

# After every chunk of steps: mean loss in nats per image, weights, means. At the end, if there is a
# guide, the Comparison of the fitted programs on all images.
Progress = Iterator[tuple[float, np.ndarray, np.ndarray] | Comparison]


def treat(method: Method, gs: ModuleType, mixture: ModuleType) -> tuple[Callable, Callable]:
    """Model and guide with z treated by the method, from the same source for all methods."""
    model, guide = mixture.model, getattr(mixture, method.guide)
    if method.family is None:
        return gs.config_enumerate(model), gs.config_enumerate(guide)
    family = getattr(gs, method.family)
    return tuple(gs.relax(f, family=family, objective="relaxed") for f in (model, guide))


def options(method: Method, gs: ModuleType) -> dict[str, Any]:
    """Options of compare: the family of the method at its last temperature, or the choice of the
    best family for the guide."""
    if method.chooses:
        families = [gs.GumbelSoftmax, gs.STGumbelSoftmax, gs.RLOO_ELBO()]
        how = {"temperatures": [0.5, 1.0], "objectives": ["categorical"], "num_samples": SAMPLES}
        return {"families": families, "progress_bar": False, **how}
    families = [getattr(gs, method.family)] if method.family else []
    how = {"temperature": method.last, "objectives": ["relaxed"], "num_samples": SAMPLES}
    return {"families": families, "progress_bar": False, **how}


def train_pyro(
    method: Method, counts: np.ndarray, initial_means: np.ndarray, batches: np.ndarray, seed: int
) -> Progress:
    import pyro
    import torch
    from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO

    import gs_ppl.pyro as gs
    from gs_ppl.models import mixture_pyro as mixture

    torch.set_num_threads(1)  # a second thread does not help with steps this small
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    counts = torch.tensor(counts, dtype=torch.float32)
    initial_means = torch.tensor(initial_means, dtype=torch.float32)
    # TraceMeanField takes the KL of guide and prior in closed form, for soft and for hard z
    elbo = TraceMeanField_ELBO() if method.family else TraceEnum_ELBO(max_plate_nesting=1)
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / batches[..., 0].size)
    adam = pyro.optim.ClippedAdam({"lr": first, "lrd": decay, "clip_norm": math.inf})
    svi = gs.AnnealedSVI(*treat(method, gs, mixture), adam, elbo, method.schedule)
    for chunk in batches:
        losses = [svi.step(counts[batch], initial_means) for batch in chunk]
        fitted = (pyro.param(name).detach().numpy() for name in ("weights", "means"))
        yield np.mean(losses) / BATCH, *fitted
    if method.guide == "guide":
        programs = mixture.model, mixture.guide
        yield gs.compare(*programs, counts, initial_means, **options(method, gs))


def train_numpyro(
    method: Method, counts: np.ndarray, initial_means: np.ndarray, batches: np.ndarray, seed: int
) -> Progress:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO

    import gs_ppl.numpyro as gs
    from gs_ppl.models import mixture_numpyro as mixture

    counts = jnp.asarray(counts, jnp.float32)
    initial_means = jnp.asarray(initial_means, jnp.float32)
    elbo = TraceMeanField_ELBO() if method.family else TraceEnum_ELBO(max_plate_nesting=1)
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / batches[..., 0].size)
    adam = numpyro.optim.Adam(lambda step: first * decay**step)
    svi = gs.AnnealedSVI(*treat(method, gs, mixture), adam, elbo, method.schedule)
    state = svi.init(jax.random.key(seed), counts[batches[0, 0]], initial_means)

    @jax.jit  # many steps in one call; SVI.run would compile again at each call
    def advance(state, chunk):
        return jax.lax.scan(lambda s, b: svi.update(s, counts[b], initial_means), state, chunk)

    for chunk in batches:
        state, losses = advance(state, chunk)
        fitted = svi.get_params(state)
        yield losses.mean() / BATCH, *(np.asarray(fitted[name]) for name in ("weights", "means"))
    if method.guide == "guide":
        programs, params = (mixture.model, mixture.guide), svi.get_params(state)
        how = options(method, gs)
        yield gs.compare(*programs, counts, initial_means, params=params, **how)


TRAINERS: dict[str, Callable[..., Progress]] = {"pyro": train_pyro, "numpyro": train_numpyro}


# --- the same for both backends -------------------------------------------------------------------


def start_means(counts: np.ndarray, seed: int) -> np.ndarray:
    """Starting log-odds: half-way between the mean image and k-means centres.

    From random starts, local optima of the mixture itself differ by some percent, more than the
    methods do.
    """
    kmeans = KMeans(COMPONENTS, n_init=10, random_state=seed).fit(counts)
    ink = (kmeans.cluster_centers_ + counts.mean(0)) / 2 / TOTAL
    ink = ink.clip(0.02, 0.98)
    return np.log(ink) - np.log1p(-ink)


def draw_batches(images: int, steps: int, seed: int) -> np.ndarray:
    """Indices of the minibatches, shape (chunks, CHUNK, BATCH): epochs without replacement."""
    rng = np.random.default_rng(seed)
    per_epoch = images // BATCH
    epochs = [
        rng.permutation(images)[: per_epoch * BATCH] for _ in range(math.ceil(steps / per_epoch))
    ]
    return np.concatenate(epochs)[: steps * BATCH].reshape(-1, CHUNK, BATCH)


def log_joint(counts: np.ndarray, weights: np.ndarray, means: np.ndarray) -> np.ndarray:
    """log pi_k + log p(counts | k), exact, in float64, shape (images, components)."""
    weights, means = weights.astype(np.float64), means.astype(np.float64)
    log_choose = np.log([math.comb(TOTAL, count) for count in range(TOTAL + 1)])
    log_pi = weights - np.logaddexp.reduce(weights)
    log_normalizer = TOTAL * np.logaddexp(0, means).sum(-1)
    return log_pi + counts @ means.T - log_normalizer + log_choose[counts].sum(-1, keepdims=True)


def compute_nats(joint: np.ndarray) -> float:
    """Negative log evidence per image."""
    return float(-np.logaddexp.reduce(joint, -1).mean())


def fit(
    backend: str,
    method: Method,
    counts: np.ndarray,
    labels: np.ndarray,
    initial_means: np.ndarray,
    batches: np.ndarray,
    seed: int,
    bar: tqdm,
) -> Fit:
    trainer = TRAINERS[backend](method, counts, initial_means, batches, seed)
    start = log_joint(counts, np.zeros(COMPONENTS), initial_means)
    result = Fit(backend, method, [(0, compute_nats(start))])
    bar.set_description(f"{TITLES[backend]}: {method.label}")
    seconds = []
    for chunk in range(1, len(batches) + 1):
        began = time.perf_counter()
        loss, result.weights, result.means = next(trainer)
        seconds.append(time.perf_counter() - began)
        joint = log_joint(counts, result.weights, result.means)
        result.curve.append((chunk * CHUNK, compute_nats(joint)))
        bar.set_postfix(loss=f"{loss:.1f}", refresh=False)
        bar.update(CHUNK)
    result.agreement = float(adjusted_rand_score(labels, joint.argmax(-1)))
    if len(seconds) > 1:  # the first chunk compiles
        result.steps_per_second = CHUNK * (len(seconds) - 1) / sum(seconds[1:])
    result.comparison = next(trainer, None)
    return result


def compute_gap(result: Fit, fits: list[Fit]) -> float:
    """Difference from enumeration of the same backend, in percent."""
    exact = next(f for f in fits if f.backend == result.backend)
    return 100 * (result.nats / exact.nats - 1)


# --- what is shown --------------------------------------------------------------------------------


def compared(f: Fit, images: int) -> dict[str, float]:
    """KL of guide and posterior, distance of their marginals, bias of the gradient, if known."""
    if f.comparison is None:
        return {}
    figures = {
        "guide_kl_per_image": (f.comparison.evidence.mean - f.comparison.elbo.mean) / images,
        "guide_distance": float(f.comparison.marginals["z"].distance.mean()),
    }
    for estimate in f.comparison.estimates:
        if (estimate.family, estimate.temperature) == (f.method.family, f.method.last):
            figures["gradient_bias"] = estimate.gradient.bias
            figures["gradient_floor"] = estimate.gradient.floor
    return figures


def make_table(fits: list[Fit], counts: np.ndarray) -> Table:
    title = "Mixture of 10 components on 1,797 handwritten digits, exact evaluation"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("z in model and guide", no_wrap=True)
    table.add_column("τ", no_wrap=True)
    for column in ("nats", "gap", "Rand", "KL", "bias", "steps/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for backend in dict.fromkeys(f.backend for f in fits):
        table.add_section()
        table.add_row(f"[bold]{TITLES[backend]}")
        for f in fits:
            if f.backend == backend:
                figures = compared(f, len(counts))
                table.add_row(
                    f.method.name,
                    f.method.temperature,
                    f"{f.nats:.2f}",
                    f"{compute_gap(f, fits):+.2f} %",
                    f"{f.agreement:.2f}",
                    *(
                        f"{figures[name]:.2f}" if name in figures else ""
                        for name in ("guide_kl_per_image", "gradient_bias")
                    ),
                    f"{f.steps_per_second:.0f}",
                )
    table.caption = (
        "nats: exact negative log evidence of the fitted mixture, per image, lower is better; gap:"
        " its excess over enumeration; Rand: adjusted Rand index of the most probable components"
        " against the digits written, 1 is perfect; KL: of guide and exact posterior, nats/image;"
        " bias: of the gradient in the guide's parameters at the end, relative to the exact one"
    )
    return table


def draw_curves(fits: list[Fit], path: Path) -> None:
    """One panel per backend; the distance from the best value is on a logarithmic scale."""
    backends = list(dict.fromkeys(f.backend for f in fits))
    figure = Figure(figsize=(7 * len(backends), 6), layout="constrained")
    axes = figure.subplots(1, len(backends), sharey=True, squeeze=False)[0]
    floor = min(nats for f in fits for _, nats in f.curve) - 0.5
    for ax, backend in zip(axes, backends, strict=True):
        for f in fits:
            if f.backend == backend:
                exact = f.method is fits[0].method
                steps, nats = zip(*f.curve, strict=True)
                label = f.method.label
                if not exact:
                    label += f" ({compute_gap(f, fits):+.1f} %)"
                excess = np.array(nats) - floor
                ax.plot(steps, excess, color=f.method.color, lw=2.5 if exact else 1.5, label=label)
        ticks = math.ceil(floor) + np.array([0, 1, 2, 4, 8, 16, 32])
        ax.set(title=TITLES[backend], xlabel="step", xlim=(0, steps[-1]), yscale="log")
        ax.set_yticks(ticks - floor, labels=ticks)
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.3)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=9)
    axes[0].set_ylabel("exact −log evidence, nats per image")
    figure.savefig(path, dpi=130)


def draw_means(fits: list[Fit], counts: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Ink probabilities of the components; one row per method, in the order of enumeration's."""
    backends = list(dict.fromkeys(f.backend for f in fits))
    rows = len(fits) // len(backends)
    figure = Figure(figsize=(2.2 + 6.5 * len(backends), 0.5 + 0.64 * rows), layout="constrained")
    grid = figure.subplots(rows, len(backends), squeeze=False)
    for column, backend in zip(grid.T, backends, strict=True):
        shown = [f for f in fits if f.backend == backend]
        cluster = log_joint(counts, shown[0].weights, shown[0].means).argmax(-1)
        digit = [
            np.bincount(labels[cluster == k], minlength=10).argmax() for k in range(COMPONENTS)
        ]
        order = np.argsort(digit, kind="stable")
        for ax, f in zip(column, shown, strict=True):
            ink = 1 / (1 + np.exp(-f.means[order].reshape(-1, 8, 8)))
            strip = np.pad(ink, ((0, 0), (0, 0), (0, 2))).transpose(1, 0, 2).reshape(8, -1)
            ax.imshow(strip, cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            gap = "" if f is shown[0] else f"{compute_gap(f, fits):+.1f} %"
            ax.text(1.01, 0.5, gap, transform=ax.transAxes, va="center")
            if backend == backends[0]:
                ax.set_ylabel(f.method.label, rotation=0, ha="right", va="center")
        column[0].set_title(TITLES[backend])
    figure.savefig(path, dpi=130)


def main() -> None:
    arguments = parse(make_parser(__doc__, output="results/demo", steps=1000))
    began, backends = time.perf_counter(), arguments.backends
    steps = 60 if arguments.quick else math.ceil(arguments.steps / CHUNK) * CHUNK
    arguments.steps = steps  # as in the report
    methods = list_methods(steps, arguments.quick)

    counts, labels = load_digits()
    initial_means = start_means(counts, arguments.seed)
    batches = draw_batches(len(counts), steps, arguments.seed)
    with tqdm(total=len(backends) * len(methods) * steps, unit="step") as bar:
        fits = [
            fit(backend, method, counts, labels, initial_means, batches, arguments.seed, bar)
            for backend in backends
            for method in methods
        ]

    console = Console()
    console.print(make_table(fits, counts))
    for f in fits:
        if f.method is methods[-1]:
            console.rule(f"{TITLES[f.backend]}: compare, for the guide of: {f.method.label}")
            print(f.comparison)  # at the width of the terminal
    pictures = [arguments.output / "means.png", arguments.output / "curves.png"]
    draw_means(fits, counts, labels, pictures[0])
    draw_curves(fits, pictures[1])
    rows = [
        {
            "backend": f.backend,
            "method": f.method.name,
            "temperature": f.method.temperature or None,
            "nats_per_image": f.nats,
            "gap_percent": compute_gap(f, fits),
            "adjusted_rand_index": f.agreement,
            **compared(f, len(counts)),
            "steps_per_second": f.steps_per_second,
        }
        for f in fits
    ]
    seconds = round(time.perf_counter() - began, 1)
    target = write_report(arguments, pictures, rows, seconds=seconds)
    console.print(*pictures, target, sep="\n")


if __name__ == "__main__":
    main()
