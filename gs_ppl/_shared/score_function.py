"""The learned baseline of NVIL, as a site of the guide gives it."""

from typing import Any

WANTED = {"nn_baseline", "nn_baseline_input"}


def check_baseline(site: str, given: Any) -> None:
    """Refuses Pyro's other kinds of baseline, and one in part."""
    if not isinstance(given, dict) or given.keys() != WANTED:
        got = sorted(given) if isinstance(given, dict) else given
        raise ValueError(
            f"site {site!r}: NVIL_ELBO takes infer={{'baseline': {{'nn_baseline': f,"
            f" 'nn_baseline_input': x}}}}, and keeps a running mean itself, got {got!r}"
        )
