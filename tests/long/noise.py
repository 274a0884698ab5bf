"""Tests the noise on 1e8 draws: all finite, within the documented bounds, with the right tails.

    python tests/long/noise.py            # writes tests/long/noise.json; some minutes

Counts of E below and above tail thresholds are compared with the exponential law; the truncation
can move a probability by at most 2^-p (p = 24 in float32, 53 in float64).
"""

import argparse
import importlib.metadata
import json
import math
import sys
from pathlib import Path

import numpy as np
from tqdm import trange

sys.path.append(str(Path(__file__).parents[1]))
from backends import BACKENDS

RESULT = Path(__file__).with_suffix(".json")
BITS = {"float32": 24, "float64": 53}
LOWER = [2.0**-k for k in (23, 20, 16, 12, 8, 4)]  # P(E < x) = 1 - exp(-x)
UPPER = [2.0, 5.0, 9.0, 12.0, 15.0]  # P(E > x) = exp(-x)
CHUNK = 1_000_000


def measure(backend, dtype: str, draws: int) -> dict:
    """Extremes and tail counts over all draws, which come a million at a time."""
    below, above = np.zeros(len(LOWER), int), np.zeros(len(UPPER), int)
    low, high, bad = math.inf, -math.inf, 0
    for seed in trange(draws // CHUNK, desc=f"{backend.name} {dtype}"):
        noise = backend.numpy(backend.noise("exponential", seed, (CHUNK,), dtype))
        bad += int((~np.isfinite(noise) | (noise <= 0)).sum())
        low, high = min(low, float(noise.min())), max(high, float(noise.max()))
        ordered = np.sort(noise)
        below += np.searchsorted(ordered, LOWER, side="left")
        above += CHUNK - np.searchsorted(ordered, UPPER, side="right")
    p = np.concatenate([-np.expm1(-np.array(LOWER)), np.exp(-np.array(UPPER))])
    counts = np.concatenate([below, above])
    excess = np.maximum(np.abs(counts - draws * p) - draws * 2.0 ** -BITS[dtype], 0)
    return {
        "draws": draws,
        "not finite or not positive": bad,
        "smallest": low,
        "largest": high,
        "stated smallest": 2.0 ** -BITS[dtype],
        "stated largest": (BITS[dtype] + 1) * math.log(2),
        "largest z-score of the tail counts": float((excess / np.sqrt(draws * p * (1 - p))).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000_000)
    draws = parser.parse_args().draws
    result = {
        "command": f"python tests/long/noise.py --draws {draws}",
        "seeds": f"0 to {draws // CHUNK - 1}, one for each million",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "jax", "numpy")},
        "results": {
            name: {dtype: measure(make(), dtype, draws) for dtype in BITS}
            for name, make in BACKENDS.items()
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["results"], indent=2))


if __name__ == "__main__":
    main()
