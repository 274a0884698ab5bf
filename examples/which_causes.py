"""Finds the causes in a noisy-or network with too many bits to enumerate, for each case.

As in medical diagnosis, a case shows findings. Each finding may come from any of several causes, or
from none of them (the leak). Of 150 possible causes four or five are present: which ones? Each case
has 2^150 joint states. config_enumerate refuses the vector of bits (to_event). A plate of causes
would not help: a finding depends on all causes, so that they cannot be summed one by one. With
relaxed bits, the same program (gs_ppl.models.noisy_or_*) works with an automatic guide, which has
one logit per case and cause, and with ordinary gradients.

It is compared with the PPLs' score-function gradient of the same guide, with two naive answers, and
with a long run of a Gibbs sampler as the reference.

- Soft bits, annealed to a low temperature, come close to the sampler. At a higher last temperature
  the bits stay too soft: in the mean they are no closer than the answer that judges each cause
  separately, with the others at their prior, but they rank the causes better.
- The straight-through gradient is taken at hard bits, where a noisy-or is steepest: without any
  cause, log p(finding is on) rises by rate / leak per unit of z, about ten times the increase over
  the whole step from 0 to 1. It finds twice as many causes as are present.
- The score function fails without a baseline. With Pyro's decaying average it is about as good as
  straight-through; NumPyro has no such baseline.
- The sampler was written for this network, whose conditionals are simple, and is the better tool
  here; the relaxed program and its guide do not use the structure of the network.

With at most 12 causes, the posterior is also summed over all states, which gives the mean-field
optimum. Independent bits cannot be exact: if one cause explains a finding, the finding is no longer
evidence for another cause, so that the causes are dependent under the posterior. The optimum is
overconfident. The softness that remains at a low temperature offsets a part of this.

    python examples/which_causes.py --output results/which_causes
    python examples/which_causes.py --causes 10

writes cases.png, marginals.png and report.json, and prints the table.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score, f1_score
from tqdm import tqdm, trange

from gs_ppl.temperature import Schedule, constant, exponential

CASES = 200
LINKS = 6  # findings that a cause may bring about, of two per cause in all
LEAK = 0.02
MEAN_PRESENT, MAX_PRIOR = 4.5, 0.3
MAX_SUMMED = 12  # causes of which all joint states are listed
LEARNING_RATES = 0.1, 0.01  # learning rate of Adam at the first and at the last step
CHUNK = 20  # steps between two updates of the progress bar
SWEEPS, BURN_IN = 1000, 0.2
FLOOR = 1e-6  # of probabilities, where their logarithm is taken
MAX_SHOWN = 14  # causes in a panel of cases.png
EDGE = 1e-4  # of the axes of marginals.png
SUM = "Sum of all states"


@dataclass(frozen=True)
class Network:
    """The known network, and the simulated cases; the truth is only for evaluation."""

    rates: np.ndarray  # (causes, findings)
    prior: float
    findings: np.ndarray  # (cases, findings)
    truth: np.ndarray  # (cases, causes)

    @property
    def log_odds(self) -> float:
        return math.log(self.prior) - math.log1p(-self.prior)

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        """log p(findings | z), for z of shape (..., causes); axes ... broadcast with the cases."""
        total = LEAK + z @ self.rates
        return np.where(self.findings, np.log(-np.expm1(-total)), -total).sum(-1)


@dataclass(frozen=True)
class Method:
    """How the bits are treated in SVI."""

    name: str
    color: str
    family: str | None = None  # a class of gs_ppl.pyro and gs_ppl.numpyro; None: score function
    schedule: Schedule = field(default_factory=lambda: constant(1.0))
    temperature: str = ""  # as shown in the table
    baseline: bool = False  # Pyro's decaying average, for the score function

    @property
    def label(self) -> str:
        return f"{self.name}, τ = {self.temperature}" if self.temperature else self.name


@dataclass
class Answer:
    """Probability of each cause in each case, and the time to find it."""

    backend: str | None  # None: NumPy
    name: str
    probs: np.ndarray
    seconds: float
    temperature: str = ""
    color: str = "gray"


def simulate(causes: int, seed: int) -> Network:
    """Sparse random links of known strength: alone, a cause turns a finding on in 20 to 80 %."""
    rng = np.random.default_rng(seed)
    findings = 2 * causes
    strength = rng.uniform(0.2, 0.8, (causes, findings))
    linked = rng.random((causes, findings)).argsort(-1) < LINKS
    rates = -np.log1p(-strength) * linked
    prior = min(MEAN_PRESENT / causes, MAX_PRIOR)
    truth = rng.random((CASES, causes)) < prior
    observed = rng.random((CASES, findings)) < -np.expm1(-LEAK - truth @ rates)
    return Network(rates, prior, observed, truth)


# --- references in NumPy --------------------------------------------------------------------------


def sample_gibbs(network: Network, sweeps: int, seed: int) -> np.ndarray:
    """Posterior marginals of two chains, one that starts without causes, one with all causes.

    They are averages of the conditional probabilities, which have less noise than averages of the
    draws. Returns shape (2, cases, causes).
    """
    rng = np.random.default_rng(seed)
    z = np.stack([np.zeros_like(network.truth), np.ones_like(network.truth)])
    total = LEAK + z @ network.rates
    links = [np.flatnonzero(rates) for rates in network.rates]
    burn_in = int(BURN_IN * sweeps)
    sums = np.zeros(z.shape)
    for sweep in trange(sweeps, unit="sweep", desc="Gibbs"):
        for j, linked in enumerate(links):  # all cases and both chains at once
            rates = network.rates[j, linked]
            absent = total[..., linked] - z[..., j, None] * rates
            gain = np.where(
                network.findings[:, linked],
                np.log(np.expm1(-absent - rates) / np.expm1(-absent)),
                -rates,
            )
            probs = sigmoid(network.log_odds + gain.sum(-1))
            z[..., j] = rng.random(probs.shape) < probs
            total[..., linked] = absent + z[..., j, None] * rates
            if sweep >= burn_in:
                sums[..., j] += probs
    return sums / (sweeps - burn_in)


def judge_alone(network: Network, others: float) -> np.ndarray:
    """Each cause by its findings; the others are independently present with probability `others`.

    The findings count as independent given the cause: naive Bayes, if `others` is the prior.
    """
    log_off = np.log1p(others * np.expm1(-network.rates))  # (causes, findings)
    absent = np.exp(-LEAK + log_off.sum(0) - log_off)
    present = absent * np.exp(-network.rates)
    on = np.log((1 - present) / (1 - absent))
    return sigmoid(network.log_odds + network.findings @ on.T - ~network.findings @ network.rates.T)


def sum_states(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Exact marginals, and those of the mean-field optimum, from all 2^causes states.

    Coordinate ascent on the exact ELBO starts from the exact marginals and from the prior; the
    better result counts for each case.
    """
    states = np.array(list(product([0, 1], repeat=len(network.rates))))  # (states, causes)
    log_likelihood = np.stack([network.log_likelihood(z) for z in states], -1)
    log_joint = network.log_odds * states.sum(-1) + log_likelihood  # up to a constant
    weights = np.exp(log_joint - np.logaddexp.reduce(log_joint, -1, keepdims=True))
    exact = weights @ states

    def expect(factors: np.ndarray) -> np.ndarray:
        """Sum of log_joint over all states, weighted by a product; factors (cases, causes, 2)."""
        table = np.ones((len(factors), 1))
        for j in range(factors.shape[1]):
            table = (table[..., None] * factors[:, j, None]).reshape(len(factors), -1)
        return (table * log_joint).sum(-1)

    def ascend(probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q = np.stack([1 - probs, probs], -1).clip(1e-300)
        for _ in range(30):
            for j in range(q.shape[1]):
                q[:, j] = -1, 1  # makes expect the effect of cause j, under q of the others
                field = expect(q)
                q[:, j] = np.stack([sigmoid(-field), sigmoid(field)], -1)
        return q[..., 1], expect(q) - (q * np.log(q.clip(1e-300))).sum((-1, -2))

    from_exact, from_prior = ascend(exact), ascend(np.full_like(exact, network.prior))
    better = from_exact[1] >= from_prior[1]
    return exact, np.where(better[:, None], from_exact[0], from_prior[0])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def logit(p: np.ndarray) -> np.ndarray:
    p = p.clip(FLOOR, 1 - FLOOR)
    return np.log(p) - np.log1p(-p)


def answer_by_reference(network: Network, sweeps: int, seed: int) -> tuple[list[Answer], dict]:
    """The answers without a PPL, Gibbs first, and the distance of its two chains."""

    def take_time(name: str, infer: Callable, *arguments: object) -> Answer:
        began = time.perf_counter()
        probs = infer(network, *arguments)
        return Answer(None, name, probs, time.perf_counter() - began)

    gibbs = take_time("Gibbs sampler", sample_gibbs, sweeps, seed)
    apart = abs(gibbs.probs[0] - gibbs.probs[1])
    gibbs.probs = gibbs.probs.mean(0)
    answers = [
        gibbs,
        take_time("Alone, others absent", judge_alone, 0.0),
        take_time("Alone, others at prior", judge_alone, network.prior),
    ]
    if len(network.rates) <= MAX_SUMMED:
        summed = take_time(SUM, sum_states)
        exact, mean_field = summed.probs
        answers[1:1] = [
            Answer(None, SUM, exact, summed.seconds),
            Answer(None, "Mean-field optimum", mean_field, summed.seconds),
        ]
    chains = {"sweeps": sweeps, "apart_mean": apart.mean(), "apart_max": apart.max()}
    return answers, chains


# --- inference in the PPLs: one generator per backend ---------------------------------------------

# After every chunk of steps: probability of each cause in each case.
Progress = Iterator[np.ndarray]


def list_methods(steps: int, quick: bool) -> list[Method]:
    to_half = exponential(1 / steps, minimum=0.5)
    to_tenth = exponential(2.5 / steps, minimum=0.1)
    soft, hard = "GumbelSoftmax", "STGumbelSoftmax"
    annealed_soft = Method(soft, "tab:blue", soft, to_tenth, "1 → 0.1")
    annealed_hard = Method(hard, "tab:red", hard, to_tenth, "1 → 0.1")
    score = Method("Score function", "tab:olive")
    if quick:
        return [annealed_soft, annealed_hard, score]
    return [
        annealed_soft,
        Method(soft, "skyblue", soft, to_half, "1 → 0.5"),
        annealed_hard,
        Method(hard, "tab:pink", hard, constant(1.0), "1"),
        score,
        Method("Score function, baseline", "tab:green", baseline=True),
    ]


def treat(method: Method, gs: ModuleType, model: Callable, init_logits: float) -> tuple:
    """Model, guide for SVI, and the automatic guide itself, whose logits are the answer."""
    family = getattr(gs, method.family or "GumbelSoftmax")
    guide = gs.AutoGumbelSoftmax(model, family=family, init_logits=init_logits)
    if method.family:
        return gs.relax(model, family=family), guide, guide
    return model, gs.discretize(guide), guide


def train_pyro(method: Method, network: Network, steps: int, seed: int) -> Progress:
    import pyro
    import torch
    from pyro import poutine
    from pyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO

    import gs_ppl.pyro as gs
    from gs_ppl.models.noisy_or_pyro import model

    torch.set_num_threads(1)  # a second thread does not help with steps this small
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    findings = torch.tensor(network.findings, dtype=torch.float32)
    rates = torch.tensor(network.rates, dtype=torch.float32)
    relaxed, guide, auto = treat(method, gs, model, network.log_odds)
    if method.baseline:
        settings = {"baseline": {"use_decaying_avg_baseline": True}}
        guide = poutine.infer_config(guide, lambda site: settings if site["name"] == "z" else {})
    elbo = TraceMeanField_ELBO() if method.family else TraceGraph_ELBO()
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / steps)
    adam = pyro.optim.ClippedAdam({"lr": first, "lrd": decay, "clip_norm": math.inf})
    svi = gs.AnnealedSVI(relaxed, guide, adam, elbo, method.schedule)
    for _ in range(steps // CHUNK):
        for _ in range(CHUNK):
            svi.step(findings, rates, LEAK, network.prior)
        yield auto.probs()["z"].numpy()


def train_numpyro(method: Method, network: Network, steps: int, seed: int) -> Progress:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import TraceGraph_ELBO, TraceMeanField_ELBO

    import gs_ppl.numpyro as gs
    from gs_ppl.models.noisy_or_numpyro import model

    findings = jnp.asarray(network.findings, jnp.float32)
    rates = jnp.asarray(network.rates, jnp.float32)
    relaxed, guide, auto = treat(method, gs, model, network.log_odds)
    elbo = TraceMeanField_ELBO() if method.family else TraceGraph_ELBO()
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / steps)
    adam = numpyro.optim.Adam(lambda step: first * decay**step)
    svi = gs.AnnealedSVI(relaxed, guide, adam, elbo, method.schedule)
    data = findings, rates, LEAK, network.prior
    state = svi.init(jax.random.key(seed), *data)

    @jax.jit  # many steps in one call; SVI.run would compile again at each call
    def advance(state):
        return jax.lax.scan(lambda s, _: svi.update(s, *data), state, length=CHUNK)

    for _ in range(steps // CHUNK):
        state, _ = advance(state)
        yield np.asarray(auto.probs(svi.get_params(state))["z"])


TRAINERS: dict[str, Callable[..., Progress]] = {"pyro": train_pyro, "numpyro": train_numpyro}


def fit(backend: str, method: Method, network: Network, steps: int, seed: int, bar: tqdm) -> Answer:
    bar.set_description(f"{TITLES[backend]}: {method.label}")
    import_module(f"gs_ppl.models.noisy_or_{backend}")  # else the first method's time includes it
    began = time.perf_counter()
    for probs in TRAINERS[backend](method, network, steps, seed):
        latest = probs.astype(np.float64)
        bar.update(CHUNK)
    seconds = time.perf_counter() - began
    return Answer(backend, method.name, latest, seconds, method.temperature, method.color)


# --- what is shown --------------------------------------------------------------------------------


def estimate_loss(network: Network, probs: np.ndarray, samples: int = 100) -> float:
    """-ELBO per case of independent bits with these probabilities, with the same draws for all."""
    rng = np.random.default_rng(0)
    p = probs.clip(FLOOR, 1 - FLOOR)
    kl = p * (logit(p) - network.log_odds) + np.log1p(-p) - math.log1p(-network.prior)
    draws = (network.log_likelihood(rng.random(p.shape) < p) for _ in range(samples))
    return float((kl.sum(-1) - sum(draws) / samples).mean())


def measure(network: Network, answer: Answer, gibbs: Answer, exact: Answer | None) -> dict:
    p = answer.probs.clip(FLOOR, 1 - FLOOR)
    truth = network.truth
    return {
        "backend": answer.backend,
        "method": answer.name,
        "temperature": answer.temperature or None,
        "log_loss": float(-np.log(np.where(truth, p, 1 - p)).sum(-1).mean()),
        "average_precision": float(average_precision_score(truth.ravel(), p.ravel())),
        "f1": float(f1_score(truth.ravel(), p.ravel() > 0.5)),
        "present": float((p > 0.5).sum(-1).mean()),
        "off_gibbs": float(abs(answer.probs - gibbs.probs).mean()),
        "off_exact": float(abs(answer.probs - exact.probs).mean()) if exact else None,
        "negative_elbo": estimate_loss(network, answer.probs),
        "seconds": round(answer.seconds, 2),
    }


def make_table(network: Network, rows: list[dict]) -> Table:
    cases, causes = network.truth.shape
    table = Table(
        title=f"{cases} cases, {causes} causes (in the mean {network.truth.sum(-1).mean():.1f}"
        f" present), {network.findings.shape[1]} findings"
    )
    summed = rows[0]["off_exact"] is not None
    table.add_column("method, τ", no_wrap=True)
    for column in ("loss", "AP", "F1", "off", "−ELBO", "s"):
        table.add_column(column, justify="right")
    for backend in dict.fromkeys(row["backend"] for row in rows):
        table.add_section()
        table.add_row(f"[bold]{TITLES.get(backend, 'NumPy')}")
        for row in rows:
            if row["backend"] == backend:
                table.add_row(
                    ", ".join(filter(None, (row["method"], row["temperature"]))),
                    f"{row['log_loss']:.2f}",
                    f"{row['average_precision']:.3f}",
                    f"{row['f1']:.3f}",
                    f"{row['off_exact' if summed else 'off_gibbs']:.4f}",
                    f"{row['negative_elbo']:.2f}",
                    f"{row['seconds']:.1f}",
                )
    table.caption = (
        "loss: log-loss against the truth, nats per case; AP: area under the precision-recall"
        " curve; F1: of the causes above one half; off: mean absolute difference of the marginals"
        f" from {'the exact ones' if summed else 'the Gibbs sampler'}; −ELBO: per case, of the"
        " discrete program with independent bits of these probabilities; s: seconds"
    )
    return table


def draw_cases(network: Network, answers: list[Answer], path: Path) -> None:
    """Three cases, from clear to doubtful, by quantiles of the entropy of Gibbs' marginals."""
    gibbs = answers[0].probs
    p = gibbs.clip(FLOOR, 1 - FLOOR)
    by_doubt = (p * np.log(p) + (1 - p) * np.log1p(-p)).sum(-1).argsort()[::-1]
    chosen = by_doubt[[CASES // 4, CASES * 2 // 3, CASES * 9 // 10]]
    backends = list(dict.fromkeys(a.backend for a in answers if a.backend))
    figure = Figure(figsize=(13, 0.6 + 4 * len(backends)), layout="constrained")
    grid = figure.subplots(len(backends), len(chosen), squeeze=False, sharex=True)
    for row, backend in zip(grid, backends, strict=True):
        ours = [a for a in answers if a.backend == backend and a.name.endswith("Softmax")]
        pair = {a.name: a for a in reversed(ours)}  # of each family the first, the coldest one
        for ax, case in zip(row, chosen, strict=True):
            truth = network.truth[case]
            highest = np.max([gibbs[case], *(a.probs[case] for a in pair.values())], 0) + truth
            shown = highest.argsort()[-MAX_SHOWN:]
            shown = sorted(shown[highest[shown] > 0.05], key=lambda j: (truth[j], gibbs[case, j]))
            y = np.arange(len(shown))
            ax.barh(y, gibbs[case, shown], 0.75, color="lightgray", label="Gibbs sampler")
            for (name, answer), marker in zip(sorted(pair.items()), "oX", strict=True):
                ax.plot(answer.probs[case, shown], y, marker, c=answer.color, label=name)
            ax.set_yticks(y, labels=[f"cause {j}" for j in shown])
            for label, j in zip(ax.get_yticklabels(), shown, strict=True):
                label.set_fontweight("bold" if truth[j] else "normal")
            ax.axhline((~truth[shown]).sum() - 0.5, color="black", lw=0.8)  # present causes above
            ax.set(title=f"{TITLES[backend]}, case {case}", xlim=(-0.03, 1.03))
            ax.spines[["top", "right"]].set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("probability that it is present")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    title = "In bold, above the line: the causes that are present in truth"
    figure.legend(handles, labels, loc="outside upper center", ncols=3, title=title)
    figure.savefig(path, dpi=110)


def draw_marginals(answers: list[Answer], path: Path) -> None:
    """Every probability against Gibbs', on a log-odds scale; the last digits are sampling error."""
    gibbs, *others = answers
    backends = list(dict.fromkeys(a.backend for a in others))
    columns = max(sum(a.backend == backend for a in others) for backend in backends)
    size = 2.4 * columns, 2.6 * len(backends)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(backends), columns, squeeze=False, sharex=True, sharey=True)
    for row, backend in zip(grid, backends, strict=True):
        shown = [a for a in others if a.backend == backend]
        for ax in row[len(shown) :]:
            ax.set_axis_off()
        for ax, answer in zip(row, shown, strict=False):
            x, y = (a.probs.ravel().clip(EDGE, 1 - EDGE) for a in (gibbs, answer))
            ax.plot(x, y, ".", ms=2, alpha=0.2, color=answer.color, rasterized=True)
            ax.axline((0.5, 0.5), (0.6, 0.6), color="black", lw=0.8)
            ax.set(xscale="logit", yscale="logit")
            ax.set(xlim=(EDGE / 2, 1 - EDGE / 2), ylim=(EDGE / 2, 1 - EDGE / 2))
            title = f"{TITLES.get(backend, 'NumPy')}\n{answer.name}"
            ax.set_title(f"{title}, {answer.temperature}" if answer.temperature else title, size=9)
    figure.supxlabel("Gibbs sampler", size=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, "results/which_causes", steps=1000)
    parser.add_argument("--causes", type=int, default=150, help="default 150")
    arguments = parse(parser)
    if arguments.causes < LINKS:
        parser.error(f"--causes must be at least {LINKS}, got {arguments.causes}")
    began = time.perf_counter()
    if arguments.quick:
        arguments.steps = min(arguments.steps, 60)
    arguments.steps = math.ceil(arguments.steps / CHUNK) * CHUNK
    network = simulate(arguments.causes, arguments.seed)
    sweeps = SWEEPS // 20 if arguments.quick else SWEEPS
    answers, chains = answer_by_reference(network, sweeps, arguments.seed)

    runs = [
        (backend, method)
        for backend in arguments.backends
        for method in list_methods(arguments.steps, arguments.quick)
        if not (method.baseline and backend == "numpyro")  # its TraceGraph_ELBO has no baseline
    ]
    with tqdm(total=len(runs) * arguments.steps, unit="step") as bar:
        answers += [fit(*run, network, arguments.steps, arguments.seed, bar) for run in runs]

    gibbs, exact = answers[0], answers[1] if answers[1].name == SUM else None
    rows = [measure(network, answer, gibbs, exact) for answer in answers]
    console = Console()
    console.print(make_table(network, rows))
    console.print(
        f"Gibbs: two chains of {sweeps} sweeps, apart by {chains['apart_mean']:.4f} in the mean,"
        f" {chains['apart_max']:.3f} at most"
    )
    pictures = [arguments.output / "cases.png", arguments.output / "marginals.png"]
    draw_cases(network, answers, pictures[0])
    draw_marginals(answers, pictures[1])
    seconds = round(time.perf_counter() - began, 1)
    target = write_report(
        arguments,
        pictures,
        rows,
        causes=arguments.causes,
        present=network.truth.sum(-1).mean(),
        seconds=seconds,
        gibbs=chains,
    )
    console.print(*pictures, target, sep="\n")


if __name__ == "__main__":
    main()
