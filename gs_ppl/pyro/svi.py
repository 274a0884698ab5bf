"""SVI with an annealed temperature."""

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.poutine import unwrap

from gs_ppl import rewriting
from gs_ppl.pyro.handlers import check

__all__ = ["AnnealedSVI"]


def takes_temperature(fn: Callable) -> bool:
    """Whether the program declares an argument called temperature."""
    fn = unwrap(fn)
    return "temperature" in inspect.signature(getattr(fn, "forward", fn)).parameters


def annealed(fn: Callable) -> Callable:
    """`fn` with the temperature as a first positional argument, which handlers and guides see."""
    declared = takes_temperature(fn)

    def program(temperature: Any, *args: Any, **kwargs: Any) -> Any:
        with rewriting.at_temperature(temperature):
            if declared:
                return fn(*args, temperature=temperature, **kwargs)
            return fn(*args, **kwargs)

    return program


class AnnealedSVI(SVI):
    """SVI whose step t runs at the temperature schedule(t).

    The temperature reaches what relax and AutoGumbelSoftmax made without one of their own, and a
    model or guide that declares an argument `temperature`; nothing else sees it. It is a 0-d
    tensor, so that the Jit ELBOs compile once.

    Args:
        model, guide, optim, loss: as in pyro.infer.SVI.
        schedule: step -> temperature, e.g. one of gs_ppl.temperature.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl import temperature
        >>> from gs_ppl.pyro import AnnealedSVI, AutoGumbelSoftmax, OneHotCategorical, relax
        >>> def model():
        ...     z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...     loc = (z * torch.tensor([-2.0, 2.0])).sum(-1)
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=torch.tensor(1.5))
        >>> pyro.clear_param_store()
        >>> guide = AutoGumbelSoftmax(model)
        >>> schedule = temperature.exponential(rate=1e-2, minimum=0.5)
        >>> adam, elbo = pyro.optim.Adam({"lr": 0.05}), pyro.infer.TraceMeanField_ELBO()
        >>> svi = AnnealedSVI(relax(model), guide, adam, elbo, schedule)
        >>> losses = [svi.step() for _ in range(100)]
        >>> guide.mode()["z"]
        tensor([0., 1.])
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: Any,
        loss: Any,
        schedule: Callable[[int], Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(annealed(model), annealed(guide), optim, loss, **kwargs)
        self.schedule = schedule
        self.num_steps = 0
        self._elbo, self._checked = loss, False

    @property
    def temperature(self) -> torch.Tensor:
        """The temperature of the coming step."""
        return torch.as_tensor(self.schedule(self.num_steps), dtype=torch.get_default_dtype())

    def step(self, *args: Any, **kwargs: Any) -> float:
        if not self._checked:
            check(self.model, self.guide, self._elbo, self.temperature, *args, **kwargs)
            self._checked = True
        loss = super().step(self.temperature, *args, **kwargs)
        self.num_steps += 1
        return loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        return super().evaluate_loss(self.temperature, *args, **kwargs)

    def get_state(self) -> dict[str, Any]:
        """Step, parameters and optimizer: what set_state resumes from in mid-schedule."""
        return {
            "num_steps": self.num_steps,
            "params": pyro.get_param_store().get_state(),
            "optim": self.optim.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes the run up where get_state left it.

        Parameters that exist are written in place: those of a torch module must, so run the
        programs once before, by evaluate_loss.
        """
        self.num_steps = state["num_steps"]
        store, saved = pyro.get_param_store(), state["params"]
        current = dict(store.named_parameters())
        if current.keys() == saved["params"].keys():
            for name, parameter in current.items():
                parameter.data.copy_(saved["params"][name])
        else:
            store.set_state(saved)
        self.optim.optim_objs.clear()
        self.optim.set_state(state["optim"])
