"""The learned baseline of NVIL at a site of the guide."""

from typing import Any

WANTED = {"nn_baseline", "nn_baseline_input"}


def check_baseline(site: str, given: Any) -> None:
    """Refuses the other kinds of baseline that Pyro has, and an incomplete one."""
    if not isinstance(given, dict) or given.keys() != WANTED:
        got = sorted(given) if isinstance(given, dict) else given
        raise ValueError(
            f"site {site!r}: NVIL_ELBO takes only infer={{'baseline': {{'nn_baseline': f,"
            f" 'nn_baseline_input': x}}}}, got {got!r}; it keeps a running mean itself"
        )
