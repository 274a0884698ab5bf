"""Gumbel-Softmax and straight-through Gumbel-Softmax for Pyro.

Example:
    >>> import pyro, torch
    >>> import gs_ppl.pyro as gs
    >>> with pyro.plate("data", 4):
    ...     z = pyro.sample("z", gs.GumbelSoftmax(0.5, logits=torch.zeros(3)))
    >>> z.shape
    torch.Size([4, 3])
"""

from gs_ppl._shared.annealing import at_temperature
from gs_ppl.pyro import constraints, functional, kl
from gs_ppl.pyro.assignment import assign
from gs_ppl.pyro.autoguide import AutoGuideList, AutoGumbelSoftmax, auto_relaxed
from gs_ppl.pyro.checks import check
from gs_ppl.pyro.comparison import compare
from gs_ppl.pyro.distributions import (
    ExpGumbelSoftmax,
    GumbelSigmoid,
    GumbelSoftmax,
    OneHotCategorical,
    SoftBernoulli,
    SoftOneHotCategorical,
)
from gs_ppl.pyro.enumeration import config_enumerate
from gs_ppl.pyro.handlers import discretize, relax
from gs_ppl.pyro.inference_data import to_inference_data
from gs_ppl.pyro.reparam import GumbelSoftmaxReparam
from gs_ppl.pyro.score_function import NVIL_ELBO, RLOO_ELBO
from gs_ppl.pyro.selection import select
from gs_ppl.pyro.starting import best_start, init_to_rows
from gs_ppl.pyro.straight_through import (
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
from gs_ppl.pyro.substitution import DARN_ELBO, REBAR_ELBO, DisARM_ELBO, MuProp_ELBO
from gs_ppl.pyro.svi import AnnealedSVI
from gs_ppl.pyro.trace_enum import TraceEnum_ELBO

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
