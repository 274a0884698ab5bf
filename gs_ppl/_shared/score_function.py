"""The baselines of score-function estimators: a learned one, and running moments."""

from typing import Any

WANTED = {"nn_baseline", "nn_baseline_input"}


def check_decay(estimator: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"{estimator}: decay must be in [0, 1), got {decay}")


def weight_of_step(decay: float, steps: Any) -> Any:
    """The weight of a new value in a running mean of steps + 1 values, 1 for the first one."""
    return (1 - decay) / (1 - decay ** (steps + 1))


def check_baseline(site: str, given: Any) -> None:
    """Refuses the other kinds of baseline that Pyro has, and an incomplete one."""
    if not isinstance(given, dict) or given.keys() != WANTED:
        got = sorted(given) if isinstance(given, dict) else given
        raise ValueError(
            f"site {site!r}: NVIL_ELBO takes only infer={{'baseline': {{'nn_baseline': f,"
            f" 'nn_baseline_input': x}}}}, got {got!r}; it keeps a running mean itself"
        )
