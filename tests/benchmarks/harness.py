"""Contenders take turns, so that other load on the machine affects all of them equally."""

import math
import statistics
import time
from collections.abc import Callable


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Process CPU time of one call, all threads; NaN if the contender refuses."""
    start = time.process_time()
    try:
        for _ in range(repeats):
            call()
    except ValueError:  # torch's class rejects some of its own samples and parameters
        return math.nan
    return (time.process_time() - start) / repeats


def interleave(
    contenders: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of a call, one figure for each contender and round; a turn takes about `seconds`."""
    repeats = {}
    for name, call in contenders.items():
        seconds_of(call, 3)  # compiles, and fills the caches
        once = seconds_of(call, 3)
        repeats[name] = 1 if math.isnan(once) else max(1, round(seconds / max(once, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(seconds_of(call, repeats[name]))
    return times


def by_turns(contenders: dict[str, Callable[[], object]], rounds: int, ours: str) -> dict:
    """For calls that take seconds: medians of times, and of ratios to ours."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            seconds[name].append(seconds_of(call, 1))
    ratios = {
        name: median([t / o for t, o in zip(taken, seconds[ours], strict=True)])
        for name, taken in seconds.items()
    }
    return {
        "seconds": {name: _round(median(taken), 1) for name, taken in seconds.items()},
        "times ours": {name: _round(ratio, 1) for name, ratio in ratios.items()},
    }


def median(values: list[float]) -> float | None:
    values = [value for value in values if not math.isnan(value)]
    return statistics.median(values) if values else None


def summary(times: dict[str, list[float]], ours: str) -> dict:
    """Medians in microseconds; medians over the rounds of the ratios to ours.

    "peer, validated" is compared with "ours, validated" if it exists, and that with ours.
    """
    ratios = {}
    for name, values in times.items():
        like = ours + name[len(name.split(",")[0]) :]
        own = times[like if like in times and like != name else ours]
        ratios[name] = median([t / o for t, o in zip(values, own, strict=True)])
    refused = {name: sum(map(math.isnan, values)) / len(values) for name, values in times.items()}
    return {
        "us": {name: _round(median(values), 1e6) for name, values in times.items()},
        "times ours": {name: _round(ratio, 1) for name, ratio in ratios.items()},
        "refused": {name: share for name, share in refused.items() if share},
    }


def _round(value: float | None, factor: float) -> float | None:
    return None if value is None else float(f"{value * factor:.4g}")
