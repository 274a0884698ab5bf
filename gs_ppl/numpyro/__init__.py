"""Gumbel-Softmax and straight-through Gumbel-Softmax for NumPyro.

Example:
    >>> import jax.numpy as jnp, numpyro
    >>> import gs_ppl.numpyro as gs
    >>> with numpyro.handlers.seed(rng_seed=0), numpyro.plate("data", 4):
    ...     z = numpyro.sample("z", gs.GumbelSoftmax(0.5, logits=jnp.zeros(3)))
    >>> z.shape
    (4, 3)
"""

from gs_ppl._shared.annealing import at_temperature
from gs_ppl.numpyro import constraints, functional, kl
from gs_ppl.numpyro.assignment import assign
from gs_ppl.numpyro.autoguide import AutoGuideList, AutoGumbelSoftmax, auto_relaxed
from gs_ppl.numpyro.checks import check
from gs_ppl.numpyro.comparison import compare
from gs_ppl.numpyro.distributions import (
    ExpGumbelSoftmax,
    GumbelSigmoid,
    GumbelSoftmax,
    OneHotCategorical,
    SoftBernoulli,
    SoftOneHotCategorical,
)
from gs_ppl.numpyro.enumeration import config_enumerate
from gs_ppl.numpyro.handlers import discretize, relax
from gs_ppl.numpyro.inference_data import to_inference_data
from gs_ppl.numpyro.reparam import GumbelSoftmaxReparam
from gs_ppl.numpyro.score_function import NVIL_ELBO, RLOO_ELBO
from gs_ppl.numpyro.selection import select
from gs_ppl.numpyro.starting import best_start, init_to_rows
from gs_ppl.numpyro.straight_through import (
    GappedST,
    GappedSTBernoulli,
    GumbelRao,
    GumbelRaoBernoulli,
    ReinMax,
    ReinMaxBernoulli,
    STBernoulli,
    STGumbelSigmoid,
    STGumbelSoftmax,
    StraightThrough,
)
from gs_ppl.numpyro.substitution import DARN_ELBO, REBAR_ELBO, DisARM_ELBO, MuProp_ELBO
from gs_ppl.numpyro.svi import AnnealedSVI
from gs_ppl.numpyro.trace_enum import TraceEnum_ELBO

__all__ = [
    "DARN_ELBO",
    "NVIL_ELBO",
    "REBAR_ELBO",
    "RLOO_ELBO",
    "AnnealedSVI",
    "AutoGuideList",
    "AutoGumbelSoftmax",
    "DisARM_ELBO",
    "ExpGumbelSoftmax",
    "GappedST",
    "GappedSTBernoulli",
    "GumbelRao",
    "GumbelRaoBernoulli",
    "GumbelSigmoid",
    "GumbelSoftmax",
    "GumbelSoftmaxReparam",
    "MuProp_ELBO",
    "OneHotCategorical",
    "ReinMax",
    "ReinMaxBernoulli",
    "STBernoulli",
    "STGumbelSigmoid",
    "STGumbelSoftmax",
    "SoftBernoulli",
    "SoftOneHotCategorical",
    "StraightThrough",
    "TraceEnum_ELBO",
    "assign",
    "at_temperature",
    "auto_relaxed",
    "best_start",
    "check",
    "compare",
    "config_enumerate",
    "constraints",
    "discretize",
    "functional",
    "init_to_rows",
    "kl",
    "relax",
    "select",
    "to_inference_data",
]
