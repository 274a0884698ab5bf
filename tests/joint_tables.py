"""ELBOs of q1 x ... x qn from the table of a log joint, which has an axis for each draw."""

import numpy as np


def mean(table, q, without=None):
    """Mean over all draws, or over all draws but one."""
    for j in reversed([j for j in range(len(q)) if j != without]):
        table = np.tensordot(table, q[j], ([j], [0]))
    return table


def elbo(table, q):
    return mean(table, q) - sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in q)


def best_mean_field(table):
    """Best ELBO of q1 x ... x qn, by coordinate ascent from twenty starts."""
    best = -np.inf
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q = [rng.dirichlet(np.ones(k)) for k in table.shape]
        for _ in range(200):
            for i in range(len(q)):
                log = mean(table, q, without=i)
                q[i] = np.exp(log - log.max())
                q[i] /= q[i].sum()
        best = max(best, elbo(table, q))
    return best
