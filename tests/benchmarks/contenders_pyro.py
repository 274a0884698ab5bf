"""The contenders in torch: name -> call, for a shape and a task."""

import itertools
from collections.abc import Callable

import torch
from torch.distributions import RelaxedOneHotCategorical
from torch.nn.functional import gumbel_softmax

from gs_ppl.pyro import GumbelSoftmax

OURS, PEER = "GumbelSoftmax", "RelaxedOneHotCategorical"
SWEPT = [OURS, PEER, "floor"]
EXTENTS = ["rsample", "rsample, log_prob", "rsample, log_prob, backward"]
# at 0.5 the validation of the peer refuses nearly every batch of its samples
TEMPERATURE = 1.0


def make(shape: tuple[int, ...], extent: str, compiled: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    backward = extent.endswith("backward")
    a, w = torch.randn(shape).requires_grad_(backward), torch.randn(shape)
    ones, tau = torch.ones(shape[:-1]), torch.tensor(TEMPERATURE)

    def call(law: type, validate_args: bool | None) -> Callable[[], object]:
        """Each call makes the law, as a program does."""

        def run() -> object:
            d = law(tau, logits=a, validate_args=validate_args)
            y = d.rsample()
            if extent == "rsample":
                return y
            score = d.log_prob(y)
            return torch.autograd.grad((y, score), a, (w, ones)) if backward else (y, score)

        return run

    contenders = {
        name + mode: call(law, validate_args)
        for name, law in ((OURS, GumbelSoftmax), (PEER, RelaxedOneHotCategorical))
        for mode, validate_args in (("", False), (", validated", True))
    }
    if compiled:
        torch.compiler.reset()
        for name in (OURS, PEER):
            contenders[f"{name}, compiled"] = torch.compile(contenders[name], dynamic=False)
    if extent == "rsample":
        contenders["F.gumbel_softmax"] = lambda: gumbel_softmax(a, TEMPERATURE)
    # one uniform and two logs, in place
    contenders["floor"] = lambda: torch.rand(shape).log_().neg_().log_()
    return contenders


def peak(call: Callable[[], object]) -> int:
    """Peak of the bytes that the call has asked the allocator for."""
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = call()
    del kept
    events = profile.profiler.kineto_results.events()
    events = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in events))
