"""The record of a run of AnnealedSVI: losses, temperatures, ELBOs, and a figure of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gs_ppl._figure import make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Training", "plot_training"]

Callback = Callable[[int, float, float], Any]


@dataclass(frozen=True)
class Training:
    """Arrays of a run.

    Attributes:
        losses: by step. They are not bounds on the evidence, at temperatures above 0.
        temperatures: by step.
        evaluation_steps: steps after which the discrete programs were evaluated.
        elbos: ELBO of the discretized programs, after these steps.
    """

    losses: np.ndarray
    temperatures: np.ndarray
    evaluation_steps: np.ndarray
    elbos: np.ndarray

    def __repr__(self) -> str:
        ways = {"loss": self.losses, "temperature": self.temperatures, "discrete ELBO": self.elbos}
        shown = [f"{name} {x[0]:.4g} to {x[-1]:.4g}" for name, x in ways.items() if len(x)]
        return f"Training({', '.join([f'{len(self.losses)} steps', *shown])})"


def plot_training(training: Any) -> Figure:
    """Draws the loss of each step, the ELBOs of the discrete programs, and the temperature.

    Args:
        training: what AnnealedSVI.run returns.

    Example:
        >>> import numpy as np
        >>> steps = np.arange(3)
        >>> run = Training(np.exp(-steps), 0.9**steps, steps, -np.exp(-steps))
        >>> len(plot_training(run).axes)
        2
    """
    figure = make_figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(len(training.losses))
    left.plot(steps, -np.asarray(training.losses), lw=0.8, label="ELBO as trained")
    if len(training.elbos):
        left.plot(training.evaluation_steps, training.elbos, "k.-", lw=1, label="ELBO, discrete")
    left.set(xlabel="step", ylabel="nats")
    left.legend(fontsize=8, frameon=False)
    right.plot(steps, training.temperatures)
    right.set(xlabel="step", ylabel="temperature")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass
class Watch:
    """The reports of a run while it goes on; `first` is the number of its first step."""

    first: int
    num_steps: int
    progress_bar: bool
    callback: Callback | None
    callback_every: int
    evaluate_every: int | None
    evaluations: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("num_steps", "callback_every", "evaluate_every"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"AnnealedSVI.run: {name} must be at least 1, got {count}")
        self.shown_every = max(self.num_steps // 100, 1) if self.progress_bar else None
        self._bar = tqdm(total=self.num_steps, disable=not self.progress_bar)

    def wants(self, done: int) -> bool:
        """Whether a report follows after this number of steps."""
        return any(n is not None and done % n == 0 for n in self._everies())

    def _everies(self) -> tuple[int | None, ...]:
        called = None if self.callback is None else self.callback_every
        return self.shown_every, called, self.evaluate_every

    def report(self, done: int, loss: float, temperature: float, evaluate: Callable) -> None:
        """Reports after this number of steps of the run."""
        shown, called, evaluated = (n is not None and done % n == 0 for n in self._everies())
        step = self.first + done - 1
        if evaluated:
            self.evaluations.append((step, float(evaluate())))
        if shown:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(f"loss {loss:.4f}, temperature {temperature:.3g}")
        if called and self.callback:
            self.callback(step, loss, temperature)

    def finish(self, losses: Any, temperatures: Any) -> Training:
        """Closes the progress bar and returns the arrays."""
        self._bar.update(self.num_steps - self._bar.n)
        self._bar.close()
        steps, elbos = zip(*self.evaluations, strict=True) if self.evaluations else ((), ())
        return Training(
            np.asarray(losses, float),
            np.asarray(temperatures, float),
            np.asarray(steps, int),
            np.asarray(elbos, float),
        )


def refuse_nan(step: int, loss: float, sites: dict[str, float]) -> None:
    """Names the sites whose log-probability is NaN, in the order of the program."""
    bad = [name for name, score in sites.items() if np.isnan(score)]
    where = f", first at site {bad[0]!r}" if bad else ""
    raise ValueError(
        f"AnnealedSVI: the loss of step {step} is {loss}{where}: try a smaller learning rate or a"
        " higher temperature, and check the logits and scales that the program computes"
    )


def refuse_infinite(sites: dict[str, float]) -> None:
    """Names the sites of density 0 if no step had a finite loss: nothing was learnt."""
    bad = [repr(name) for name, score in sites.items() if np.isinf(score)]
    raise ValueError(
        f"AnnealedSVI: the loss of all steps is infinite, at sites {', '.join(bad)}: the guide"
        " gives weight to values that are impossible in the program. Give such values a small"
        " probability, mask the rows that are known, or draw only the unknown rows"
    )
