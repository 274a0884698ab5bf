"""The small search that finds the settings of each estimator of Table 1: the same for all of them.

A trial is a short form of the long run: learning rate and temperature go through the same values in
fewer steps.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gs_ppl.models.training import Settings

TRIAL = 10_000  # steps
HELD_OUT = 6  # the last 1/6 of the training images is held out: 10,000 of MNIST
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # learning rates
FIRST = LADDER[4:8]
Trial = dict[str, Any]  # learning_rate, rate, and the resulting nats, None if it diverged


def next_trial(trials: Sequence[Trial], rates: Sequence[float]) -> tuple[float, float] | None:
    """Next learning rate and temperature rate to try after these trials; None at the end.

    First come four learning rates with the first temperature rate. While the best one is the
    largest or the smallest that was tried, the next one on the ladder follows. Then comes the best
    one with the other temperature rates.
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
