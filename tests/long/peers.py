"""Counts the cells of a grid dtype x tau x K x logits in which a class has non-finite values.

    python tests/long/peers.py            # writes tests/long/peers.json; about a minute

A cell fails if a sample, its score or a gradient of the score is NaN or infinite, or if the class
rejects its own sample with validation on. The test suite requires that gs_ppl has no such cell.
"""

import importlib.metadata
import json
from pathlib import Path

import torch
from torch.distributions import RelaxedBernoulli, RelaxedOneHotCategorical
from tqdm import tqdm

import gs_ppl.pyro as gs

RESULT = Path(__file__).with_suffix(".json")
TEMPERATURES = [0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 10.0, 100.0]
CATEGORIES, SCALES = (2, 10, 100, 10_000), (1.0, 10.0, 100.0)
CLASSES = {
    "torch RelaxedOneHotCategorical": (RelaxedOneHotCategorical, CATEGORIES),
    "GumbelSoftmax": (gs.GumbelSoftmax, CATEGORIES),
    "torch RelaxedBernoulli": (RelaxedBernoulli, (None,)),
    "GumbelSigmoid": (gs.GumbelSigmoid, (None,)),
}


def fails(make, tau: float, logits: torch.Tensor) -> tuple[bool, bool]:
    """Whether a result is not finite, and whether the class rejects its own sample."""
    a, t = logits.clone().requires_grad_(), torch.tensor(tau).requires_grad_()
    d = make(t, logits=a, validate_args=False)
    value = d.rsample()
    score = d.log_prob(value)
    gradients = torch.autograd.grad(score.sum() + value.square().sum(), (a, t))
    finite = all(x.isfinite().all() for x in (value, score, *gradients))
    try:
        make(torch.tensor(tau), logits=logits, validate_args=True).log_prob(value.detach())
    except ValueError:
        return not finite, True
    return not finite, False


def main() -> None:
    results = {}
    for name, (make, categories) in CLASSES.items():
        cells = [(t, K, s) for t in TEMPERATURES for K in categories for s in SCALES]
        counts = {"cells": len(cells), "not finite": 0, "own sample rejected": 0}
        for tau, K, scale in tqdm(cells, desc=name):
            torch.manual_seed(0)
            shape = (1000,) if K is None else (64 if K <= 100 else 4, K)
            bad, rejected = fails(make, tau, torch.randn(shape) * scale)
            counts["not finite"] += bad
            counts["own sample rejected"] += rejected
        results[name] = counts
    record = {
        "command": "python tests/long/peers.py",
        "seed": 0,
        "dtype": "float32",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "pyro-ppl")},
        "results": results,
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
