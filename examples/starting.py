"""The start of a mixture: right answers of 20 seeds, and of enumeration from the same starts.

Two mixtures: the five points of Pyro's tutorial with one scale, and 600 points of three classes
with unequal scales. Their globals are AutoDelta, their classes enumerated or relaxed. Each seed
starts from rows of the data (init_to_rows), with the best of several short runs (best_start), and
trains with Adam. The right answer is the partition at enumeration's best optimum over all seeds.

- The logits learn ten times as fast as the globals. At the start each component has an equal share
  of every row. With slower logits, the components would meet in the middle before the classes
  settle.
- The straight-through gradient is taken at hard classes, where Normal(locs[z], scales[z]) is far
  from linear. "densities" indexes the log densities instead, log_prob(x)[z], linear in the class.

    python examples/starting.py --mixture five --output results/starting

writes report.json, and prints the table.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from gs_ppl.temperature import exponential

SEEDS, STARTS, TRIED = 20, 5, 20  # number of runs; of starts of each; of steps of a start
RATE, TIMES = 0.1, 10  # of Adam; factor of the logits' rate
SCHEDULE = exponential(rate=0.01, minimum=0.3)
AGREE = 0.97  # share of the rows on which equal partitions must agree
METHODS = "Enumeration", "GumbelSoftmax", "STGumbelSoftmax"


def simulate(seed: int) -> np.ndarray:
    """600 points of three classes, whose scales are unequal."""
    rng = np.random.default_rng(seed)
    z = rng.choice(3, 600, p=[0.5, 0.3, 0.2])
    return np.array([-6.0, 0.0, 8.0])[z] + np.array([0.5, 1.0, 2.0])[z] * rng.normal(size=600)


# Data, number of classes, whether each class has a scale, and whether log densities are indexed.
Mixture = tuple[np.ndarray, int, bool, bool]


def list_mixtures(seed: int) -> dict[str, Mixture]:
    five = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
    return {
        "five": (five, 2, False, False),
        "unequal": (simulate(seed), 3, True, False),
        "densities": (simulate(seed), 3, True, True),
    }


def responsibilities(values: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """log p(x, z) by row and class, at these globals."""
    w, loc, s = (np.asarray(values[name], float) for name in ("weights", "locs", "scale"))
    with np.errstate(all="ignore"):  # failed runs have NaN
        return np.log(w) - ((x[:, None] - loc) / s) ** 2 / 2 - np.log(s)


def fit_pyro(method: str, mixture: Mixture, steps: int, seed: int, bar: tqdm) -> list[tuple]:
    """Globals and the guide's classes by seed: all starts run together, in a plate.

    Adam treats each parameter separately, so that the starts are independent. The best start
    is chosen as by best_start, by the loss of its first steps.
    """
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro import poutine
    from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
    from pyro.infer.autoguide import AutoDelta, init_to_median, init_to_value
    from torch.distributions import kl_divergence

    import gs_ppl.pyro as gs

    values, K, own_scales, of_densities = mixture
    x, runs = torch.tensor(values, dtype=torch.float32), SEEDS * STARTS

    def model() -> None:
        with pyro.plate("runs", runs, dim=-2):
            weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(K)))
            with pyro.plate("scales", K if own_scales else 1, dim=-1):
                scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
            with pyro.plate("components", K, dim=-1):
                locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
            parts = dist.Normal(locs.unsqueeze(-2), scale.unsqueeze(-2).expand(-1, 1, K))
            with pyro.plate("data", len(x), dim=-1):
                if method == "Enumeration":
                    mixed = dist.MixtureSameFamily(dist.Categorical(weights), parts)
                    pyro.sample("x", mixed, obs=x)
                    return
                z = pyro.sample("z", gs.OneHotCategorical(weights))
                if of_densities:
                    pyro.factor("x", gs.select(parts.log_prob(x[:, None]), z))
                else:
                    loc, own = gs.select(parts.loc, z), gs.select(parts.scale, z)
                    pyro.sample("x", dist.Normal(loc, own), obs=x)

    def start(init: Callable, name: str, law: Any) -> torch.Tensor:
        return torch.stack([init({"name": name, "fn": law}) for _ in range(runs)])

    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    scales = torch.zeros(K if own_scales else 1)
    starts = {
        "locs": start(gs.init_to_rows(rows={"locs": x}), "locs", dist.Normal(torch.zeros(K), 10.0)),
        "weights": start(init_to_median, "weights", dist.Dirichlet(0.5 * torch.ones(K)))[:, None],
        "scale": start(init_to_median, "scale", dist.LogNormal(scales, 2.0)),
    }
    part = partial(AutoDelta, init_loc_fn=init_to_value(values=starts))
    adam = pyro.optim.Adam(lambda name: {"lr": RATE * TIMES if "logits" in name else RATE})
    if method == "Enumeration":
        guide = part(model)
        svi = SVI(model, guide, adam, Trace_ELBO())
    else:
        family = getattr(gs, method)
        guide, relaxed = gs.auto_relaxed(model, part, family=family), gs.relax(model, family=family)
        svi = gs.AnnealedSVI(relaxed, guide, adam, TraceMeanField_ELBO(), SCHEDULE)

    @torch.no_grad()
    def losses() -> torch.Tensor:
        """The loss of each run."""
        args = () if method == "Enumeration" else (svi.temperature(),)
        drawn = poutine.trace(svi.guide).get_trace(*args)
        trace = poutine.trace(poutine.replay(svi.model, trace=drawn)).get_trace(*args)
        trace.compute_log_prob()
        terms = [-trace.nodes[name]["log_prob"] for name in (*starts, "x")]
        if method != "Enumeration":
            terms.append(kl_divergence(drawn.nodes["z"]["fn"], trace.nodes["z"]["fn"]))
        return sum(term.reshape(runs, -1).sum(-1) for term in terms)

    scores = torch.zeros(runs)
    for step in range(TRIED + steps):
        svi.step()
        if TRIED // 2 <= step < TRIED:
            scores += losses()
    scores = scores.nan_to_num(torch.inf).reshape(SEEDS, STARTS)
    chosen = scores.argmin(-1) + STARTS * torch.arange(SEEDS)
    bar.update(SEEDS)
    median = {name: value.detach()[chosen].numpy() for name, value in guide.median().items()}
    globals_ = {name: median[name].reshape(SEEDS, -1) for name in starts}
    classes = median["z"].argmax(-1) if "z" in median else SEEDS * [None]
    return [({n: v[i] for n, v in globals_.items()}, classes[i]) for i in range(SEEDS)]


def fit_numpyro(method: str, mixture: Mixture, steps: int, seed: int, bar: tqdm) -> list[tuple]:
    """Globals and the guide's classes by seed: all seeds run together."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax
    from jax import Array
    from numpyro.infer import SVI, TraceMeanField_ELBO
    from numpyro.infer.autoguide import AutoDelta

    import gs_ppl.numpyro as gs

    values, K, own_scales, of_densities = mixture
    x = jnp.asarray(values, jnp.float32)

    def model() -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(K)))
        scale = None if own_scales else numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with numpyro.plate("components", K):
            locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
            if own_scales:
                scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            if of_densities:
                scores = dist.Normal(locs, scale).log_prob(x[:, None])
                numpyro.factor("x", gs.select(scores, z))
            else:
                own = scale[z] if own_scales else scale
                numpyro.sample("x", dist.Normal(locs[z], own), obs=x)

    def kinds(params: dict) -> dict:
        return {name: "logits" if "logits" in name else "globals" for name in params}

    guide: Any = None

    def make() -> SVI:
        nonlocal guide
        start = partial(AutoDelta, init_loc_fn=gs.init_to_rows(rows={"locs": x}))
        rates = {"logits": optax.adam(RATE * TIMES), "globals": optax.adam(RATE)}
        adam = optax.multi_transform(rates, kinds)
        if method == "Enumeration":
            guide = start(numpyro.handlers.block(model, hide=["z", "x"]))
            return SVI(gs.config_enumerate(model), guide, adam, gs.TraceEnum_ELBO())
        family = getattr(gs, method)
        guide = gs.auto_relaxed(model, start, family=family)
        relaxed = gs.relax(model, family=family)
        return gs.AnnealedSVI(relaxed, guide, adam, TraceMeanField_ELBO(), SCHEDULE)

    def fit(key: Array) -> dict:
        svi, state = gs.best_start(make, rng_key=key, num_starts=STARTS, num_steps=TRIED)
        state, _ = jax.lax.scan(lambda state, _: svi.update(state), state, None, length=steps)
        return svi.get_params(state)

    params = jax.jit(jax.vmap(fit))(jax.random.split(jax.random.key(seed), SEEDS))
    bar.update(SEEDS)
    read = {name: np.asarray(params[f"{name}_auto_loc"]) for name in ("weights", "locs", "scale")}
    logits = params.get("z_auto_logits")
    classes = SEEDS * [None] if logits is None else np.asarray(logits.argmax(-1))
    return [({n: value[i] for n, value in read.items()}, classes[i]) for i in range(SEEDS)]


FIT: dict[str, Callable] = {"pyro": fit_pyro, "numpyro": fit_numpyro}


def agreement(a: np.ndarray, b: np.ndarray, classes: int) -> float:
    """Share of the rows on which two partitions agree, for the best matching of their classes."""
    common = np.zeros((classes, classes))
    np.add.at(common, (a, b), 1)
    return common[linear_sum_assignment(-common)].sum() / len(a)


def main() -> None:
    parser = make_parser(__doc__, output="results/starting", steps=400)
    parser.add_argument("--mixture", choices=("five", "unequal", "densities"), default="five")
    arguments = parse(parser)
    mixture, methods = list_mixtures(arguments.seed)[arguments.mixture], METHODS
    if arguments.quick:
        global SEEDS
        SEEDS, arguments.steps = 2, min(arguments.steps, 5)
        methods = METHODS[:2]
    began, rows = time.perf_counter(), []
    x, K = mixture[:2]
    with tqdm(total=len(arguments.backends) * len(methods) * SEEDS, unit="fit") as bar:
        for backend in arguments.backends:
            right: dict[str, np.ndarray] = {}
            for method in methods:
                fits = FIT[backend](method, mixture, arguments.steps, arguments.seed, bar)
                scores = [responsibilities(values, x) for values, _ in fits]
                if method == "Enumeration":
                    evidence = [np.logaddexp.reduce(s, -1).sum() for s in scores]
                    target = scores[int(np.nanargmax(evidence))].argmax(-1)
                parts = [
                    s.argmax(-1) if z is None else z for s, (_, z) in zip(scores, fits, strict=True)
                ]
                right[method] = np.array([agreement(z, target, K) >= AGREE for z in parts])
                both = right[method] & right["Enumeration"]
                rows.append(
                    {
                        "backend": backend,
                        "mixture": arguments.mixture,
                        "method": method,
                        "seeds": SEEDS,
                        "right": int(right[method].sum()),
                        "enumeration_right": int(right["Enumeration"].sum()),
                        "right_where_enumeration_is": int(both.sum()),
                        "not_finite": sum(not np.isfinite(s).all() for s in scores),
                    }
                )
    table = Table(title=f"right of {SEEDS} seeds, {arguments.steps} steps")
    for column in ("PPL", "mixture", "classes", "right", "where enumeration is", "not finite"):
        table.add_column(column)
    for row in rows:
        where = f"{row['right_where_enumeration_is']} of {row['enumeration_right']}"
        shown = TITLES[row["backend"]], row["mixture"], row["method"], row["right"], where
        table.add_row(*map(str, (*shown, row["not_finite"])))
    settings = {"starts": STARTS, "tried": TRIED, "rate": RATE, "times": TIMES, "agree": AGREE}
    seconds = round(time.perf_counter() - began, 1)
    target_path = write_report(arguments, [], rows, seconds=seconds, settings=settings)
    console = Console()
    console.print(table)
    console.print(target_path)


if __name__ == "__main__":
    main()
