"""Rows of logits with an optimizer each: the cost of a step does not depend on their number."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.optim import Adam

from gs_ppl._shared.sparse import refuse_optimizer
from gs_ppl.pyro.handlers import program_inside

__all__: list[str] = []

PLAIN = ("weight_decay", "amsgrad", "maximize", "centered_variance")  # options that must be off
_by_row: ContextVar[bool] = ContextVar("by_row", default=False)


@contextmanager
def gradients_by_row() -> Iterator[None]:
    """Within it the gradient of a table is sparse; elsewhere (as in compare) it is dense."""
    token = _by_row.set(True)
    try:
        yield
    finally:
        _by_row.reset(token)


class _Taken(torch.autograd.Function):
    """table[rows]; its gradient has only these rows."""

    @staticmethod
    def forward(table: Tensor, rows: Tensor) -> Tensor:
        return table[rows]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.rows, ctx.shape = inputs[1], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.sparse_coo_tensor(ctx.rows[None], grad, ctx.shape, check_invariants=True), None


def rows_of_table(table: Tensor, rows: Tensor) -> Tensor:
    return _Taken.apply(table, rows) if _by_row.get() else table[rows]


def has_sparse(guide: Callable) -> bool:
    """Whether it is an automatic guide with sparse rows, or has one as a part."""
    inside = program_inside(guide)
    parts = inside.modules() if isinstance(inside, nn.Module) else ()
    return any(getattr(part, "sparse", False) for part in parts)


class ByRow(PyroOptim):
    """Each row of a table has its own state of Adam; a step changes only the rows in it.

    Args:
        optim: for all other parameters; its rate and options are those of the rows too.
    """

    def __init__(self, optim: PyroOptim) -> None:
        super().__init__(optim.pt_optim_constructor, optim.pt_optim_args, optim.pt_clip_args)
        self.optim, self.optim_objs = optim, optim.optim_objs
        self.rows: dict[str, dict[str, Tensor]] = {}  # step, m and v by parameter
        self._groups: dict[str, dict[str, Any]] = {}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        others = []
        for p in params:
            if p.grad is None or not p.grad.is_sparse:
                others.append(p)
                continue
            self._step(pyro.get_param_store().param_name(p), p, p.grad.coalesce())
            p.grad = None
        if others:
            self.optim(others, *args, **kwargs)

    @torch.no_grad()
    def _step(self, name: str, p: Tensor, grad: Tensor) -> None:
        """x -= rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), at the rows of the gradient."""
        if name not in self.rows:
            step = torch.zeros(len(p), dtype=torch.int32, device=p.device)
            self.rows[name] = {"step": step, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        state, group = self.rows[name], self._group(name, p)
        at, g, (b1, b2), clip = grad.indices()[0], grad.values(), group["betas"], group["clip_norm"]
        state["step"][at] += 1
        t = state["step"][at].double().view(-1, *[1] * (p.dim() - 1))
        g = g if clip is None else g.clamp(-clip, clip)
        m, v = b1 * state["m"][at] + (1 - b1) * g, b2 * state["v"][at] + (1 - b2) * g * g
        state["m"][at], state["v"][at] = m, v
        root = (1 - b2**t).sqrt().to(p)
        rate = (group["lr"] * group["lrd"] ** t / (1 - b1**t)).to(p)
        eps = group["eps"] if clip is None else group["eps"] / root  # as in Pyro's ClippedAdam
        p[at] -= rate * m / (v.sqrt() / root + eps)

    def _group(self, name: str, p: Tensor) -> dict[str, Any]:
        """The optimizer's options for a parameter."""
        if name not in self._groups:
            optimizer = self.optim._get_optim(p)
            if type(optimizer) not in (Adam, ClippedAdam):
                refuse_optimizer(type(optimizer).__name__, "in Pyro it must be Adam or ClippedAdam")
            groups = [g for g in optimizer.param_groups if any(p is q for q in g["params"])]
            on = [option for option in PLAIN if groups and groups[0].get(option)]
            on += ["clip_args"] * bool(self.optim.pt_clip_args)
            if on or not groups:
                why = f"do not set {', '.join(on)}" if on else f"it lacks the parameter {name}"
                refuse_optimizer(type(optimizer).__name__, why)
            self._groups[name] = groups[0]
        return {"clip_norm": None, "lrd": 1.0, **self._groups[name]}

    def get_state(self) -> dict[str, Any]:
        return {"optim": self.optim.get_state(), "rows": self.rows}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        self.optim.set_state(state_dict["optim"])
        self.rows = state_dict["rows"]
        self._groups.clear()
