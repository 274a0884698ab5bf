"""A hidden Markov model of letters finds vowels and consonants without labels.

Two hidden states, one categorical latent per letter, on the texts that describe scikit-learn's data
sets. Cave and Neuwirth (Hidden Markov models for English, 1980) found that the states become vowels
(with the space) and consonants. Every method fits the same program (gs_ppl.models.hidden_markov_*)
by SVI, from the same start, with the same optimizer; only the treatment of the states differs.
The chain can be summed exactly, so that each result is judged by the exact evidence of its
parameters, on the text and on held-out text, not by its loss. The guide is automatic:
AutoGumbelSoftmax with parents="model" is a chain, like the exact posterior; with parents="none",
mean field, a state does not depend on the previous one.

    python examples/hidden_markov.py --backend both --output results/hidden_markov

writes letters.png, curves.png and report.json, and prints the table.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from tqdm import tqdm

from gs_ppl.temperature import Schedule, constant, exponential

STATES = 2
SYMBOLS = "abcdefghijklmnopqrstuvwxyz␣"
VOWELS = "aeiou␣"  # the space behaves like a vowel
LENGTH = 10  # letters in a sequence; --quick, half as long a chain to compile, has 5
LEARNING_RATES = 0.1, 0.01  # learning rate of Adam at the first and at the last step
STEPS = 1500
CHUNK = 20  # steps between two points of the curves


@dataclass(frozen=True)
class Method:
    """One row: the law of the states in model and guide, and the temperatures."""

    name: str
    color: str
    parents: str | None = None  # of the automatic guide; None: the model is summed out
    family: str | None = None  # a class of gs_ppl.pyro and gs_ppl.numpyro; None: enumerate
    schedule: Schedule = field(default_factory=lambda: constant(1.0))
    temperature: str = ""  # as shown in the table

    @property
    def label(self) -> str:
        return f"{self.name}, τ = {self.temperature}" if self.temperature else self.name


@dataclass
class Fit:
    """The result of a run; the curve holds (step, exact nats per letter of the training text)."""

    backend: str
    method: Method
    curve: list[tuple[int, float]] = field(default_factory=list)
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    held_out: float = float("nan")
    separation: float = float("nan")
    seconds: float = float("nan")

    @property
    def nats(self) -> float:
        return self.curve[-1][1]


def list_methods(steps: int, quick: bool) -> list[Method]:
    to_half = exponential(1 / steps, minimum=0.5)
    to_fifth = exponential(2 / steps, minimum=0.2)
    soft, hard = "GumbelSoftmax", "STGumbelSoftmax"
    exact = Method("Enumeration", "black")
    annealed_soft = Method(soft, "tab:blue", "model", soft, to_half, "1 → 0.5")
    annealed_hard = Method(hard, "tab:red", "model", hard, to_fifth, "1 → 0.2")
    if quick:
        return [exact, annealed_soft, annealed_hard]
    return [
        exact,
        annealed_soft,
        Method(soft, "skyblue", "model", soft, constant(0.2), "0.2"),
        annealed_hard,
        Method(hard, "tab:pink", "model", hard, constant(1.0), "1"),
        Method("ReinMax", "tab:green", "model", "ReinMax", constant(1.0), "1"),
        Method(f"{hard}, mean field", "tab:orange", "none", hard, to_fifth, "1 → 0.2"),
        # the same bounds as with hard samples, without noise: the cost of the guides alone
        Method("Enumeration of the guide", "darkgray", "model"),
        Method("Enumeration, mean field", "tan", "none"),
    ]


# --- text -----------------------------------------------------------------------------------------


def load_text(length: int) -> np.ndarray:
    """Letters as integers (26 is the space), shape (sequences, length)."""
    names = "iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud"
    text = " ".join(getattr(datasets, f"load_{name}")().DESCR for name in names)
    text = re.sub("[^a-z]+", "␣", text.lower())
    letters = np.array([SYMBOLS.index(letter) for letter in text])
    return letters[: len(letters) // length * length].reshape(-1, length)


def draw_start(text: np.ndarray, seed: int) -> np.ndarray:
    """Logits of the letters in each state: their frequencies plus noise, so that states differ."""
    counts = np.bincount(text.ravel(), minlength=len(SYMBOLS)) + 1
    noise = np.random.default_rng(seed).normal(size=(STATES, len(SYMBOLS)))
    return np.log(counts / counts.sum()) + 0.3 * noise


def start_guide(text: np.ndarray, start: np.ndarray, parents: str) -> dict[str, np.ndarray]:
    """Logits of each state: its posterior given its letter only, the same after each state."""
    logits = np.moveaxis(start[:, text], 0, -1)
    after = np.repeat(logits[:, 1:, None], STATES, -2) if parents == "model" else logits[:, 1:]
    return {"z_0": logits[:, 0]} | {f"z_{t}": after[:, t - 1] for t in range(1, text.shape[1])}


# --- training: one generator per backend ----------------------------------------------------------

# After every chunk of steps: mean loss in nats per letter, and the model's parameters.
Progress = Iterator[tuple[float, dict[str, np.ndarray]]]
NAMES = "initial", "transition", "emission"


def treat(
    method: Method, gs: ModuleType, hmm: ModuleType, init_logits: dict | None
) -> tuple[Callable, Callable]:
    """Model and guide with the states treated by the method; all share the model's source."""
    family = None if method.family is None else getattr(gs, method.family)
    guide = hmm.empty_guide
    if method.parents:
        options = {} if family is None else {"family": family}
        guide = gs.AutoGumbelSoftmax(
            hmm.model, init_logits=init_logits, parents=method.parents, **options
        )
    if family is None:
        return gs.config_enumerate(hmm.model), gs.config_enumerate(guide)
    return gs.relax(hmm.model, family=family), guide


def train_pyro(
    method: Method, text: np.ndarray, start: np.ndarray, steps: int, seed: int
) -> Progress:
    import pyro
    import torch
    from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO

    import gs_ppl.pyro as gs
    from gs_ppl.models import hidden_markov_pyro as hmm

    torch.set_num_threads(1)  # a second thread does not help with steps this small
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    logits = start_guide(text, start, method.parents or "none")
    logits = {name: torch.tensor(a, dtype=torch.float32) for name, a in logits.items()}
    data = torch.tensor(text), torch.tensor(start, dtype=torch.float32)
    # TraceMeanField takes the KL of each step in closed form, for soft and for hard states
    elbo = TraceMeanField_ELBO() if method.family else TraceEnum_ELBO(max_plate_nesting=1)
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / steps)
    adam = pyro.optim.ClippedAdam({"lr": first, "lrd": decay, "clip_norm": float("inf")})
    svi = gs.AnnealedSVI(*treat(method, gs, hmm, logits), adam, elbo, method.schedule)
    for _ in range(steps // CHUNK):
        losses = [svi.step(*data) for _ in range(CHUNK)]
        fitted = {name: pyro.param(name).detach().numpy().copy() for name in NAMES}
        yield np.mean(losses) / text.size, fitted


def train_numpyro(
    method: Method, text: np.ndarray, start: np.ndarray, steps: int, seed: int
) -> Progress:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO

    import gs_ppl.numpyro as gs
    from gs_ppl.models import hidden_markov_numpyro as hmm

    logits = start_guide(text, start, method.parents or "none")
    logits = {name: jnp.asarray(a, jnp.float32) for name, a in logits.items()}
    data = jnp.asarray(text), jnp.asarray(start, jnp.float32)
    elbo = TraceMeanField_ELBO() if method.family else TraceEnum_ELBO(max_plate_nesting=1)
    first, last = LEARNING_RATES
    decay = (last / first) ** (1 / steps)
    adam = numpyro.optim.Adam(lambda step: first * decay**step)
    svi = gs.AnnealedSVI(*treat(method, gs, hmm, logits), adam, elbo, method.schedule)
    state = svi.init(jax.random.key(seed), *data)

    @jax.jit  # many steps in one call; SVI.run would compile again at each call
    def advance(state):
        return jax.lax.scan(lambda s, _: svi.update(s, *data), state, length=CHUNK)

    for _ in range(steps // CHUNK):
        state, losses = advance(state)
        params = svi.get_params(state)
        yield losses.mean() / text.size, {name: np.asarray(params[name]) for name in NAMES}


TRAINERS: dict[str, Callable[..., Progress]] = {"pyro": train_pyro, "numpyro": train_numpyro}


# --- exact evaluation, the same for both backends -------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def filter_forward(
    parameters: dict[str, np.ndarray], text: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """p(z_t | x_0 ... x_t) and p(x_t | x_0 ... x_{t-1}), in float64; the time axis comes first."""
    initial, transition, emission = (softmax(parameters[name].astype(float)) for name in NAMES)
    filtered, predicted, p = [], [], initial
    for letters in text.T:
        joint = p * emission[:, letters].T
        predicted.append(joint.sum(-1))
        filtered.append(joint / joint.sum(-1, keepdims=True))
        p = filtered[-1] @ transition
    return np.array(filtered), np.array(predicted)


def compute_nats(parameters: dict[str, np.ndarray], text: np.ndarray) -> float:
    """Exact negative log evidence per letter."""
    return float(-np.log(filter_forward(parameters, text)[1]).mean())


def smooth(parameters: dict[str, np.ndarray], text: np.ndarray) -> np.ndarray:
    """p(z_t | x), shape (length, sequences, states)."""
    filtered, _ = filter_forward(parameters, text)
    transition = softmax(parameters["transition"].astype(float))
    smoothed = [filtered[-1]]
    for now in filtered[-2::-1]:
        smoothed.insert(0, now * (smoothed[0] / (now @ transition) @ transition.T))
    return np.array(smoothed)


def compute_separation(parameters: dict[str, np.ndarray], text: np.ndarray) -> float:
    """Share of the letters assigned to the state of their kind, by the exact posterior.

    The kinds are vowels with the space, and the other letters; a random assignment has 1/2 or more.
    """
    posterior = smooth(parameters, text)
    vowel = np.isin(text.T, [SYMBOLS.index(letter) for letter in VOWELS])
    kinds = np.stack([vowel, ~vowel], -1)
    shares = np.einsum("tnk,tnc->kc", posterior, kinds) / text.size
    return float(max(shares[list(order), [0, 1]].sum() for order in itertools.permutations((0, 1))))


def fit(
    backend: str,
    method: Method,
    text: np.ndarray,
    held_out: np.ndarray,
    steps: int,
    seed: int,
    bar: tqdm,
) -> Fit:
    result = Fit(backend, method)
    bar.set_description(f"{TITLES[backend]}: {method.label}")
    began = time.perf_counter()
    trainer = TRAINERS[backend](method, text, draw_start(text, seed), steps, seed)
    for chunk, (loss, result.parameters) in enumerate(trainer, 1):
        result.curve.append((chunk * CHUNK, compute_nats(result.parameters, text)))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(CHUNK)
    result.seconds = time.perf_counter() - began
    result.held_out = compute_nats(result.parameters, held_out)
    result.separation = compute_separation(result.parameters, text)
    return result


def compute_gain(f: Fit, fits: list[Fit], alone: float) -> float:
    """The gain of the chain over single letters, as a share of the gain of enumeration."""
    exact = next(other for other in fits if other.backend == f.backend)
    return (alone - f.nats) / (alone - exact.nats)


# --- what is shown --------------------------------------------------------------------------------


def make_table(fits: list[Fit], alone: float) -> Table:
    table = Table(title=f"{STATES} hidden states, {fits[0].curve[-1][0]} steps, exact evaluation")
    table.add_column("states", no_wrap=True)
    table.add_column("τ")
    for column in ("nats", "held out", "gain", "apart", "s"):
        table.add_column(column, justify="right")
    for backend in dict.fromkeys(f.backend for f in fits):
        table.add_section()
        table.add_row(f"[bold]{TITLES[backend]}")
        for f in fits:
            if f.backend == backend:
                table.add_row(
                    f.method.name,
                    f.method.temperature,
                    f"{f.nats:.4f}",
                    f"{f.held_out:.4f}",
                    f"{compute_gain(f, fits, alone):.0%}",
                    f"{f.separation:.1%}",
                    f"{f.seconds:.0f}",
                )
    table.caption = (
        "nats: exact negative log evidence of the fitted parameters, per letter, lower is better;"
        f" gain: over letters by themselves ({alone:.4f}), as a share of what enumeration gains;"
        " apart: letters assigned to the state of their kind (vowels and space, or consonants), by"
        " the exact posterior; s: seconds all in all, with compilation"
    )
    return table


def draw_letters(rows: list[dict[str, Any]], path: Path) -> None:
    """How often each letter is in the vowels' state; a panel for each backend."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    order = np.argsort(-np.array(rows[0]["in_vowel_state"]), kind="stable")
    figure = Figure(figsize=(10, 1 + 0.5 * len(backends) + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(backends), 1, sharex=True, squeeze=False)[:, 0]
    for ax, backend in zip(axes, backends, strict=True):
        own = [row for row in rows if row["backend"] == backend]
        shares = np.array([row["in_vowel_state"] for row in own])[:, order]
        image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        labels = [
            f"{row['method']}, τ = {row['temperature']}" if row["temperature"] else row["method"]
            for row in own
        ]
        ax.set_title(TITLES[backend])
        ax.set_yticks(range(len(own)), labels=labels)
        ax.set_yticks(np.arange(1, len(own)) - 0.5, minor=True)
        ax.grid(which="minor", axis="y", color="white", lw=2)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
    axes[-1].set_xticks(range(len(order)), labels=[SYMBOLS[letter] for letter in order])
    axes[-1].set_xlabel("letter; vowels and the space in red")
    for tick, letter in zip(axes[-1].get_xticklabels(), order, strict=True):
        if SYMBOLS[letter] in VOWELS:
            tick.set(color="tab:red", weight="bold")
    figure.colorbar(image, ax=list(axes), label="share in the vowels' state", aspect=30, pad=0.01)
    figure.savefig(path, dpi=120)


def share_in_vowel_state(f: Fit, text: np.ndarray) -> np.ndarray:
    """Share of each symbol's occurrences in the state with most vowels, by the exact posterior."""
    posterior = smooth(f.parameters, text)
    counts = np.array(
        [
            np.bincount(text.T.ravel(), w.ravel(), len(SYMBOLS))
            for w in np.moveaxis(posterior, -1, 0)
        ]
    )
    shares = counts / counts.sum(0).clip(1e-9)
    return max(shares, key=lambda share: share[[SYMBOLS.index(v) for v in VOWELS]].sum())


def draw_curves(fits: list[Fit], alone: float, path: Path) -> None:
    """One panel per backend; the chain's gain over letters without a chain."""
    backends = list(dict.fromkeys(f.backend for f in fits))
    figure = Figure(figsize=(6 * len(backends), 5), layout="constrained")
    axes = figure.subplots(1, len(backends), sharey=True, squeeze=False)[0]
    for ax, backend in zip(axes, backends, strict=True):
        for f in fits:
            if f.backend == backend:
                steps, nats = zip(*f.curve, strict=True)
                width = 2.5 if f.method is fits[0].method else 1.5
                ax.plot(steps, nats, color=f.method.color, lw=width, label=f.method.label)
        ax.axhline(alone, color="gray", ls=":", lw=1)
        ax.annotate(
            "letters by themselves",
            (1, alone),
            (0, 4),
            ("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="gray",
        )
        ax.set(title=TITLES[backend], xlabel="step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=9)
    axes[0].set_ylabel("exact −log evidence, nats per letter")
    figure.savefig(path, dpi=130)


def main() -> None:
    arguments = parse(make_parser(__doc__, "results/hidden_markov", steps=STEPS))
    steps = 40 if arguments.quick else -(-arguments.steps // CHUNK) * CHUNK
    methods = list_methods(steps, arguments.quick)
    rng = np.random.default_rng(arguments.seed)
    text = rng.permutation(load_text(5 if arguments.quick else LENGTH))
    held_out, text = np.split(text, [len(text) // 5])
    frequencies = np.bincount(text.ravel(), minlength=len(SYMBOLS)) / text.size
    alone = float(-np.log(frequencies[text]).mean())
    with tqdm(total=len(arguments.backends) * len(methods) * steps, unit="step") as bar:
        fits = [
            fit(backend, method, text, held_out, steps, arguments.seed, bar)
            for backend in arguments.backends
            for method in methods
        ]

    console = Console()
    console.print(make_table(fits, alone))
    pictures = [arguments.output / "letters.png", arguments.output / "curves.png"]
    rows = [
        {
            "backend": f.backend,
            "method": f.method.name,
            "temperature": f.method.temperature or None,
            "nats_per_letter": f.nats,
            "held_out_nats_per_letter": f.held_out,
            "share_of_gain": compute_gain(f, fits, alone),
            "vowels_apart": f.separation,
            "in_vowel_state": share_in_vowel_state(f, text).round(4).tolist(),
            "seconds": f.seconds,
        }
        for f in fits
    ]
    draw_letters(rows, pictures[0])
    draw_curves(fits, alone, pictures[1])
    target = write_report(arguments, pictures, rows, letters=text.size, nats_of_letters_alone=alone)
    console.print(*pictures, target, sep="\n")


if __name__ == "__main__":
    main()
