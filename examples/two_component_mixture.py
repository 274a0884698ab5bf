"""Two overlapping Gaussians, one bit for each point: pyro's issue 3127, relaxed by `relax`.

A user relaxed such a mixture by hand, with RelaxedBernoulli for the bits. This assigned 82 % of the
points to the right component, while exact enumeration assigned 98 %. The data are as in the issue:
500 points, three quarters of them around 8, the others around 4, standard deviation 1; means, scale
and weight are unknown. Every method fits the same program (gs_ppl.models.two_components_*), from
the same start with the same optimizer, on several simulated data sets; only the treatment of the
bits differs. A point is right if the fitted guide (for enumeration, the exact posterior) gives its
true component more than one half.

    python examples/two_component_mixture.py --backend both --output results/two_component_mixture

writes points.png and report.json, and prints the table.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.temperature import Schedule, constant, exponential

POINTS, WEIGHT, LOCS, SCALE = 500, 0.75, np.array([4.0, 8.0]), 1.0
LEARNING_RATES = 0.1, 0.01  # learning rate of Adam at the first and at the last step


@dataclass(frozen=True)
class Method:
    """One row. `family`: a class of gs_ppl.pyro and gs_ppl.numpyro, or of the PPL by hand."""

    name: str
    family: str | None = None  # None: enumerate
    schedule: Schedule = field(default_factory=lambda: constant(1.0))
    temperature: str = ""  # as shown in the table
    by_hand: str | None = None  # "same": the guide is relaxed alike; "normal": AutoNormal
    backends: tuple[str, ...] = ("pyro", "numpyro")


@dataclass(frozen=True)
class Fitted:
    """The result of a run: the parameters, and q(z = 1) of each point."""

    weight: float
    locs: np.ndarray
    scale: float
    probs: np.ndarray | None  # None where the guide is empty


@dataclass(frozen=True)
class Fit:
    """The shares of right points of a run, by the guide and by the exact posterior."""

    backend: str
    method: Method
    seed: int
    fitted: Fitted
    probs: np.ndarray
    by_guide: float
    by_posterior: float
    seconds: float


def list_methods(steps: int, quick: bool) -> list[Method]:
    to_half = exponential(1 / steps, minimum=0.5)
    to_tenth = exponential(1 / steps, minimum=0.1, start=0.3)
    soft, hard, hand = "GumbelSoftmax", "STGumbelSoftmax", "RelaxedBernoulli"
    methods = [
        Method("Enumeration"),
        Method(soft, soft, to_half, "1 → 0.5"),
        Method(hard, hard, to_tenth, "0.3 → 0.1"),
    ]
    for tau in (0.5,) if quick else (0.5, 0.1):  # all at the same temperature
        fixed, shown = constant(tau), str(tau)
        through = f"{hand}StraightThrough"  # NumPyro has no such law
        methods += [
            Method(soft, soft, fixed, shown),
            Method(hard, hard, fixed, shown),
            Method(f"by hand: {hand}", hand, fixed, shown, "same"),
            Method(f"by hand: {through}", through, fixed, shown, "same", ("pyro",)),
        ]
    issue = constant(0.001), "0.001"  # as in the issue's notebook
    return [*methods, Method(f"by hand: {hand}, AutoNormal", hand, *issue, "normal")]


# --- training -------------------------------------------------------------------------------------


def start_logits(x: np.ndarray) -> np.ndarray:
    """Logits of the posterior at the model's start; the guides start there."""
    return 2 * (x - x.mean()) / x.std()


def train_pyro(method: Method, x: np.ndarray, steps: int, seed: int) -> Fitted:
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
    from pyro.infer.autoguide import AutoNormal

    import gs_ppl.pyro as gs
    from gs_ppl.models import two_components_pyro as mixture

    torch.set_num_threads(1)  # a second thread does not help with steps this small
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    points = torch.tensor(x, dtype=torch.float32)
    init = {"z": torch.tensor(start_logits(x), dtype=torch.float32)}
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / steps)
    adam = pyro.optim.ClippedAdam({"lr": first, "lrd": decay, "clip_norm": float("inf")})
    if method.family is None:
        model, guide = gs.config_enumerate(mixture.model), mixture.empty_guide
        svi = SVI(model, guide, adam, TraceEnum_ELBO(max_plate_nesting=1))
    elif method.by_hand:
        tau = torch.tensor(method.schedule(0))
        bit = partial(getattr(pyro.distributions, method.family), tau)
        model, guide = partial(mixture.model, bit=bit), partial(mixture.guide, bit=bit)
        if method.by_hand == "normal":
            guide = AutoNormal(model)
        svi = SVI(model, guide, adam, Trace_ELBO())
    else:
        family = getattr(gs, method.family)
        model = gs.relax(mixture.model, family=family)
        guide = gs.AutoGumbelSoftmax(mixture.model, family=family, init_logits=init)
        svi = gs.AnnealedSVI(model, guide, adam, TraceMeanField_ELBO(), method.schedule)
    for _ in range(steps):
        svi.step(points)

    with torch.no_grad():
        weight, locs, log_scale = (pyro.param(name) for name in ("weight", "locs", "log_scale"))
        if method.family is None:
            probs = None
        elif method.by_hand == "same":
            probs = pyro.param("logits").sigmoid().numpy()
        else:
            probs = (guide.median() if method.by_hand else guide.probs())["z"].numpy()
        return Fitted(weight.sigmoid().item(), locs.numpy().copy(), log_scale.exp().item(), probs)


def train_numpyro(method: Method, x: np.ndarray, steps: int, seed: int) -> Fitted:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
    from numpyro.infer.autoguide import AutoNormal

    import gs_ppl.numpyro as gs
    from gs_ppl.models import two_components_numpyro as mixture

    points = jnp.asarray(x, jnp.float32)
    init = {"z": jnp.asarray(start_logits(x), jnp.float32)}
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / steps)
    adam = numpyro.optim.Adam(lambda step: first * decay**step)
    if method.family is None:
        model, guide = gs.config_enumerate(mixture.model), mixture.empty_guide
        svi = SVI(model, guide, adam, TraceEnum_ELBO(max_plate_nesting=1))
    elif method.by_hand:
        tau = method.schedule(0)
        bit = partial(getattr(numpyro.distributions, method.family), tau)
        model, guide = partial(mixture.model, bit=bit), partial(mixture.guide, bit=bit)
        if method.by_hand == "normal":
            guide = AutoNormal(model)
        svi = SVI(model, guide, adam, Trace_ELBO())
    else:
        family = getattr(gs, method.family)
        model = gs.relax(mixture.model, family=family)
        guide = gs.AutoGumbelSoftmax(mixture.model, family=family, init_logits=init)
        svi = gs.AnnealedSVI(model, guide, adam, TraceMeanField_ELBO(), method.schedule)
    params = svi.run(jax.random.key(seed), steps, points, progress_bar=False).params

    if method.family is None:
        probs = None
    elif method.by_hand == "same":
        probs = jax.nn.sigmoid(params["logits"])
    else:
        probs = (guide.median(params) if method.by_hand else guide.probs(params))["z"]
    weight, scale = jax.nn.sigmoid(params["weight"]), jnp.exp(params["log_scale"])
    locs = np.asarray(params["locs"])
    return Fitted(float(weight), locs, float(scale), None if probs is None else np.asarray(probs))


TRAINERS: dict[str, Callable[..., Fitted]] = {"pyro": train_pyro, "numpyro": train_numpyro}


# --- the same for both backends -------------------------------------------------------------------


def simulate(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points, and the true component of each."""
    rng = np.random.default_rng(seed)
    z = (rng.random(POINTS) < WEIGHT).astype(int)
    return rng.normal(LOCS[z], SCALE), z


def compute_posterior(x: np.ndarray, weight: float, locs: np.ndarray, scale: float) -> np.ndarray:
    """p(z = 1 | x), in float64."""
    low, high = (((x - loc) / scale) ** 2 / 2 for loc in locs.astype(float))
    return 1 / (1 + np.exp(high - low + np.log1p(-weight) - np.log(weight)))


def count_right(probs: np.ndarray, z: np.ndarray) -> float:
    """Share of right points, for the better of the two names of the components."""
    right = float(((probs > 0.5) == z).mean())
    return max(right, 1 - right)


def fit(backend: str, method: Method, steps: int, seed: int) -> Fit:
    x, z = simulate(seed)
    began = time.perf_counter()
    fitted = TRAINERS[backend](method, x, steps, seed)
    seconds = time.perf_counter() - began
    posterior = compute_posterior(x, fitted.weight, fitted.locs, fitted.scale)
    probs = posterior if fitted.probs is None else fitted.probs
    by_guide, by_posterior = count_right(probs, z), count_right(posterior, z)
    return Fit(backend, method, seed, fitted, probs, by_guide, by_posterior, seconds)


# --- what is shown --------------------------------------------------------------------------------


def span(values: list[float], form: str) -> str:
    low, high = (format(f(values), form) for f in (min, max))
    return low if low == high else f"{low} … {high}"


def make_table(fits: list[Fit], best: list[float]) -> Table:
    table = Table(title=f"{POINTS} points of two Gaussians; {span(best, '.1%')} can be told right")
    table.add_column("bits", no_wrap=True)
    table.add_column("τ")
    for column in ("right", "by posterior", "means", "scale", "s"):
        table.add_column(column, justify="right")
    for backend in dict.fromkeys(f.backend for f in fits):
        table.add_section()
        table.add_row(f"[bold]{TITLES[backend]}")
        for method in dict.fromkeys(f.method for f in fits if f.backend == backend):
            runs = [f for f in fits if f.backend == backend and f.method is method]
            locs = np.mean([np.sort(f.fitted.locs) for f in runs], 0)
            table.add_row(
                method.name,
                method.temperature,
                span([f.by_guide for f in runs], ".1%"),
                span([f.by_posterior for f in runs], ".1%"),
                f"{locs[0]:.1f}, {locs[1]:.1f}",
                f"{np.mean([f.fitted.scale for f in runs]):.2f}",
                f"{np.mean([f.seconds for f in runs]):.1f}",
            )
    seeds = len({f.seed for f in fits})
    table.caption = (
        f"{seeds} data sets each, worst … best; right: points in their own component by the fitted"
        " guide; by posterior: by the exact posterior of the fitted parameters; truth: means 4 and"
        " 8, scale 1; s: seconds all in all, with compilation"
    )
    return table


def draw_points(fits: list[Fit], path: Path) -> None:
    """The first data set: q(z = 1) over the points, and the fitted components below."""
    backends = list(dict.fromkeys(f.backend for f in fits))
    fits = [f for f in fits if f.seed == fits[0].seed]
    x, z = simulate(fits[0].seed)
    methods = list(dict.fromkeys(f.method for f in fits))
    figure = Figure(figsize=(6.5 * len(backends), 1.5 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), len(backends), squeeze=False, sharex=True, sharey=True)
    for ax in grid.flat:
        ax.set_visible(False)
    line = np.linspace(x.min() - 0.5, x.max() + 0.5, 200)
    truth = compute_posterior(line, WEIGHT, LOCS, SCALE)
    for f in fits:
        ax = grid[methods.index(f.method), backends.index(f.backend)]
        probs = f.probs if f.fitted.locs[1] >= f.fitted.locs[0] else 1 - f.probs
        ax.plot(line, truth, color="lightgray", lw=4)
        for k, color in enumerate(("tab:blue", "tab:red")):
            ax.plot(x[z == k], probs[z == k], ".", color=color, ms=4)
            ax.axvline(np.sort(f.fitted.locs)[k], color=color, ls=":", lw=1)
        tau = f", τ = {f.method.temperature}" if f.method.temperature else ""
        title = f"{TITLES[f.backend]}: {f.method.name}{tau}: {f.by_guide:.1%} right"
        ax.set_title(title, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_visible(True)
    for ax in grid[-1]:
        ax.set_xlabel("point; dotted: the fitted means")
    figure.supylabel("q(z = 1); gray: the posterior of the truth")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, "results/two_component_mixture", steps=1500)
    parser.add_argument("--data-sets", type=int, default=3, help="default 3")
    arguments = parse(parser)
    steps = 30 if arguments.quick else arguments.steps
    data_sets = 1 if arguments.quick else arguments.data_sets
    seeds = range(arguments.seed, arguments.seed + data_sets)
    methods = list_methods(steps, arguments.quick)
    runs = [
        (backend, method, steps, seed)
        for backend in arguments.backends
        for method in methods
        if backend in method.backends
        for seed in seeds
    ]
    fits = [fit(*run) for run in tqdm(runs, unit="run")]

    console = Console()
    best = [
        count_right(compute_posterior(x, WEIGHT, LOCS, SCALE), z) for x, z in map(simulate, seeds)
    ]
    console.print(make_table(fits, best))
    picture = arguments.output / "points.png"
    draw_points(fits, picture)
    rows = [
        {
            "backend": f.backend,
            "method": f.method.name,
            "temperature": f.method.temperature or None,
            "data_seed": f.seed,
            "right_by_guide": f.by_guide,
            "right_by_posterior": f.by_posterior,
            "weight": f.fitted.weight,
            "locs": f.fitted.locs.tolist(),
            "scale": f.fitted.scale,
            "seconds": f.seconds,
        }
        for f in fits
    ]
    target = write_report(arguments, [picture], rows, right_at_most=best)
    console.print(picture, target, sep="\n")


if __name__ == "__main__":
    main()
