"""Nodes of the one-dimensional integral in the relaxed KL; only NumPy, for both backends."""

import functools
import math

import numpy as np


@functools.cache
def log_nodes(num_categories: int, *, double: bool) -> tuple[np.ndarray, float]:
    """Trapezoid nodes t = exp(s) and their step in s.

    The integrand decays like K exp(-|s|) on the left and exp(-|s|) on the right, and is analytic in
    a strip of half-width pi / 2, so that the error falls like exp(-pi^2 / step).

    Example:
        >>> t, step = log_nodes(10, double=True)
        >>> t.shape, step
        ((274,), 0.28)
    """
    reach, step = (37.0, 0.28) if double else (18.0, 0.5)
    left, right = math.ceil((reach + math.log(num_categories)) / step), math.ceil(reach / step)
    return np.exp(step * np.arange(-left, right)), step
