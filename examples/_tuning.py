"""The small search for the settings of each estimator of Table 1, the same for all of them.

A trial is a shorter form of the long run: the schedules are the same, over fewer steps.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gs_ppl.models.training import Settings

TRIAL = 10_000  # steps
HELD_OUT = 6  # the last sixth of the training images: 10,000 of MNIST
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # learning rates
FIRST = LADDER[4:8]
Trial = dict[str, Any]  # learning_rate, rate, and their nats; None: it diverged


def next_trial(trials: Sequence[Trial], rates: Sequence[float]) -> tuple[float, float] | None:
    """The next learning rate and temperature rate to try; None: the search is complete.

    Four learning rates with the first rate; then more, as long as the best one so far is
    the largest or the smallest; then the best one with the other rates.
    """
    first, *others = rates
    nats = {(trial["learning_rate"], trial["rate"]): worth(trial) for trial in trials}
    tried = [step for step in LADDER if (step, first) in nats]
    if missing := [step for step in FIRST if step not in tried]:
        return missing[0], first
    best = min(tried, key=lambda step: nats[step, first])
    at = LADDER.index(best)
    around = [(step, first) for step in LADDER[max(0, at - 1) : at + 2]]
    wanted = [*around, *((best, rate) for rate in others)]
    return next((settings for settings in wanted if settings not in nats), None)


def worth(trial: Trial) -> float:
    return math.inf if trial["nats"] is None else trial["nats"]


def choose(trials: Sequence[Trial]) -> dict[str, float]:
    """The settings of the best trial."""
    best = min(trials, key=worth)
    return {name: best[name] for name in ("learning_rate", "rate")}


def in_short(settings: Settings, steps: int = TRIAL) -> Settings:
    """The trial of a long run: the temperature falls faster, by the ratio of their lengths.

    Example:
        >>> short = in_short(Settings(steps=200_000, rate=1e-5, every=500))
        >>> short.steps, short.rate, short.every
        (10000, 0.0002, 25)
    """
    times = settings.steps / steps
    every = max(1, round(settings.every / times))
    return replace(settings, steps=steps, rate=settings.rate * times, every=every)
