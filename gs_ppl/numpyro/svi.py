"""SVI with an annealed temperature."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer import ELBO, SVI

from gs_ppl._shared.annealing import LOSS, SCHEDULE, annealed, check_argument, takes
from gs_ppl._shared.pairings import shapes
from gs_ppl.numpyro.checks import check, check_tails

__all__ = ["AnnealedSVI"]

OPTIONS = ("forward_mode_differentiation",)  # of update, which the programs do not see
RUN_OPTIONS = (*OPTIONS, "progress_bar", "stable_update", "init_state", "init_params")
OPTIMIZER = "an optimizer of NumPyro's, of optax or of jax.example_libraries"


def _truncates(program: Any) -> bool:
    """Whether a handler around the program truncates counts."""
    while program is not None:
        if getattr(program, "truncate", None):
            return True
        program = getattr(program, "fn", None)
    return False


class AnnealedSVI(SVI):
    """SVI whose step t runs at the temperature schedule(t).

    The temperature reaches what relax and AutoGumbelSoftmax made without one of their own, and a
    model or guide that declares an argument `temperature`; nothing else sees it. The step is the
    optimizer's, so that run, update in jit or scan, and restored states anneal without recompiling.

    Args:
        model, guide, optim, loss: as in numpyro.infer.SVI.
        schedule: step -> temperature, for a traced step: one of gs_ppl.temperature, or optax's.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> from gs_ppl import temperature
        >>> from gs_ppl.numpyro import AnnealedSVI, AutoGumbelSoftmax, OneHotCategorical, relax
        >>> def model():
        ...     z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        ...     loc = (z * jnp.array([-2.0, 2.0])).sum(-1)
        ...     numpyro.sample("x", numpyro.distributions.Normal(loc, 1.0), obs=jnp.array(1.5))
        >>> guide = AutoGumbelSoftmax(model)
        >>> schedule = temperature.exponential(rate=1e-2, minimum=0.5)
        >>> adam, elbo = numpyro.optim.Adam(0.05), numpyro.infer.TraceMeanField_ELBO()
        >>> svi = AnnealedSVI(relax(model), guide, adam, elbo, schedule)
        >>> result = svi.run(jax.random.key(0), 100, progress_bar=False)
        >>> guide.mode(result.params)["z"]
        Array([0., 1.], dtype=float32)
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: Any,
        loss: Any,
        schedule: Callable[[Any], Any],
        **kwargs: Any,
    ) -> None:
        # NumPyro's own optimizers, optax's, and those of jax.example_libraries
        kinds = ("init", "update"), ("init_fn", "update_fn")
        is_optim = any(all(hasattr(optim, name) for name in names) for names in kinds)
        check_argument("optim", is_optim and not isinstance(optim, type), OPTIMIZER, optim)
        is_loss = hasattr(loss, "loss") and not isinstance(loss, type)
        check_argument("loss", is_loss, LOSS, loss)
        is_schedule = not isinstance(schedule, ELBO) and takes(schedule, 1)
        check_argument("schedule", is_schedule, SCHEDULE, schedule)
        super().__init__(annealed(model), annealed(guide), optim, loss, **kwargs)
        self.schedule = schedule
        self._truncates = _truncates(model)
        self._checked: set[Any] = set()

    def temperature(self, svi_state: Any) -> Array:
        """The temperature of the coming step."""
        return jnp.asarray(self.schedule(svi_state.optim_state[0]), jnp.result_type(float))

    def _check(self, temperature: Array, *args: Any, **kwargs: Any) -> None:
        """Once for each combination of shapes of the arguments."""
        programs = kwargs | self.static_kwargs
        signature = shapes((args, programs))
        if signature not in self._checked:
            check(self.model, self.guide, self.loss, temperature, *args, **programs)
            self._checked.add(signature)

    def init(self, rng_key: Array, *args: Any, **kwargs: Any) -> Any:
        first = jnp.asarray(self.schedule(0), jnp.result_type(float))
        state = super().init(rng_key, first, *args, **kwargs)
        self._check(first, *args, **{k: v for k, v in kwargs.items() if k != "init_params"})
        return state

    def run(self, rng_key: Array, num_steps: int, *args: Any, **kwargs: Any) -> Any:
        result = super().run(rng_key, num_steps, *args, **kwargs)
        if self._truncates:  # the parameters have moved since the first check
            pair = (handlers.substitute(fn, data=result.params) for fn in (self.model, self.guide))
            programs = {k: v for k, v in kwargs.items() if k not in RUN_OPTIONS}
            temperature = self.temperature(result.state)
            check_tails(*pair, temperature, *args, **programs | self.static_kwargs)
        return result

    def update(self, svi_state: Any, *args: Any, **kwargs: Any) -> tuple:
        temperature = self.temperature(svi_state)
        self._check(temperature, *args, **{k: v for k, v in kwargs.items() if k not in OPTIONS})
        return super().update(svi_state, temperature, *args, **kwargs)

    def stable_update(self, svi_state: Any, *args: Any, **kwargs: Any) -> tuple:
        temperature = self.temperature(svi_state)
        self._check(temperature, *args, **{k: v for k, v in kwargs.items() if k not in OPTIONS})
        return super().stable_update(svi_state, temperature, *args, **kwargs)

    def evaluate(self, svi_state: Any, *args: Any, **kwargs: Any) -> Array:
        temperature = self.temperature(svi_state)
        self._check(temperature, *args, **kwargs)
        return super().evaluate(svi_state, temperature, *args, **kwargs)
