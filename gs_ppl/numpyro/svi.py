"""SVI with an annealed temperature."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.infer import ELBO, SVI, TraceEnum_ELBO, TraceGraph_ELBO
from numpyro.infer.svi import SVIRunResult

from gs_ppl._shared.annealing import LOSS, SCHEDULE, STEPS, Annealed, check_argument, takes
from gs_ppl._shared.following import missing_site_named
from gs_ppl._shared.pairings import shapes
from gs_ppl._shared.reprs import call, program_name
from gs_ppl.numpyro.checks import check, check_tails
from gs_ppl.numpyro.handlers import discretize
from gs_ppl.numpyro.sparse import ByRow, automatic, rows_of_step, tables_of
from gs_ppl.training import Callback, Training, Watch, refuse_infinite, refuse_nan

__all__ = ["AnnealedSVI"]

OPTIONS = ("forward_mode_differentiation",)  # arguments of update that the programs do not get
EVALUATION_DRAWS = 10
KEY = "a key, such as jax.random.key(0)"
NOT_KNOWN = (  # what JAX raises where a program needs the number in a traced value
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
STATE = "the state of a run, such as result.state"
OPTIMIZER = "an optimizer of NumPyro, optax or jax.example_libraries"


def _truncates(program: Any) -> bool:
    """Whether a handler around the program truncates counts."""
    while program is not None:
        if getattr(program, "truncate", None):
            return True
        program = getattr(program, "fn", None)
    return False


class AnnealedSVI(SVI):
    """SVI whose step t runs at the temperature schedule(t).

    Handlers and guides (relax, AutoGumbelSoftmax) without a temperature of their own use it, and so
    do programs that have an argument `temperature`. Other programs do not see it. The step is that
    of the optimizer. So run, update inside of jit or scan, and restored states are annealed without
    compiling again.

    Args:
        model, guide, optim, loss: as in numpyro.infer.SVI.
        schedule: step -> temperature, one of gs_ppl.temperature or optax; the step is traced.

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

    optim: Any

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
        _check_traced(schedule)
        super().__init__(Annealed(model), Annealed(guide), optim, loss, **kwargs)
        self.schedule = schedule
        self._sparse = automatic(guide)
        if self._sparse is not None:
            self.optim = ByRow(self.optim, partial(tables_of, self._sparse))
        self._shown = [*map(program_name, (model, guide)), type(loss).__name__, repr(schedule)]
        self._truncates = _truncates(model)
        self._checked: set[Any] = set()

    def __repr__(self) -> str:
        return call(type(self).__name__, *self._shown)

    def temperature(self, svi_state: Any) -> Array:
        """The temperature of the coming step."""
        tau = jnp.asarray(self.schedule(svi_state.optim_state[0]), jnp.result_type(float))
        return jnp.where(tau > 0, tau, jnp.nan)  # jit cannot refuse it: the loss becomes NaN

    def _check(self, state: Any, temperature: Array, *args: Any, **kwargs: Any) -> None:
        """Checks the pairing once for each combination of shapes of the arguments.

        Inside of jit their values are not known: those are checked when they come outside of it. A
        guide that started inside gets its parameters, since it may keep initial values of there.
        """
        programs = {k: v for k, v in kwargs.items() if k not in OPTIONS} | self.static_kwargs
        signature = shapes((args, programs))
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, programs)))
        if (signature, traced) in self._checked:
            return
        pair = self.model, self.guide
        if (signature, True) in self._checked and state is not None:
            params = self.get_params(state)
            pair = tuple(handlers.substitute(program, data=params) for program in pair)
        check(*pair, self.loss, temperature, *args, **programs)
        self._checked |= {(signature, True), (signature, traced)}

    def init(self, rng_key: Array, *args: Any, **kwargs: Any) -> Any:
        check_argument("rng_key", _is_key(rng_key), KEY, rng_key)
        first = jnp.asarray(self.schedule(0), jnp.result_type(float))
        for_programs = {k: v for k, v in kwargs.items() if k != "init_params"}
        try:
            state = super().init(rng_key, first, *args, **kwargs)
        except Exception:
            try:
                self._check(None, first, *args, **for_programs)  # it names the site of a wrong pair
            except (ValueError, TypeError):
                raise
            except Exception:  # it fails like the start, and says less
                pass
            raise
        self._check(None, first, *args, **for_programs)
        return state

    def run(
        self,
        rng_key: Array,
        num_steps: int,
        *args: Any,
        progress_bar: bool = True,
        callback: Callback | None = None,
        callback_every: int = 1,
        evaluate_every: int | None = None,
        **kwargs: Any,
    ) -> "RunResult":
        """Takes steps on the same data; returns what NumPyro's run does, and the arrays of the run.

        Args:
            rng_key: of the start and all draws.
            num_steps: number of steps.
            *args: what the programs take.
            progress_bar: whether to show one, with loss and temperature.
            callback: called with step, loss and temperature.
            callback_every: number of steps from one call to the next.
            evaluate_every: number of steps between evaluations of the discrete ELBO, with ten
                draws.
            **kwargs: what the programs take, and NumPyro's options of run.

        Raises:
            ValueError: if the loss is NaN, naming the step and the first site; not with
                stable_update=True, which skips such steps. If the loss of all steps is infinite,
                naming the sites.
        """
        check_argument("num_steps", isinstance(num_steps, Integral), STEPS, num_steps)
        names = "init_state", "init_params", "stable_update"
        start, init_params, stable = (kwargs.pop(name, None) for name in names)
        for_step = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        if start is None:
            start = self.init(rng_key, *args, init_params=init_params, **kwargs)
        check_argument("init_state", hasattr(start, "optim_state"), STATE, start)
        first = int(start.optim_state[0])
        temperatures = self._temperatures(first, num_steps)
        watch = Watch(first, num_steps, progress_bar, callback, callback_every, evaluate_every)
        update: Any = partial(self.stable_update if stable else self.update, **for_step)

        def step(state: Any, _: None) -> tuple:
            return update(state, *args, **kwargs)

        if progress_bar or callback or evaluate_every:
            state, losses = self._watched(step, start, watch, args, kwargs)
        else:
            state, losses = jax.lax.scan(step, start, None, length=num_steps)
        bad = np.flatnonzero(np.isnan(losses))
        if bad.size and not stable:
            before, _ = jax.lax.scan(step, start, None, length=int(bad[0]))
            refuse_nan(first + int(bad[0]), np.nan, self._scores(before, *args, **kwargs))
        if losses.size and np.isinf(losses).all():
            refuse_infinite(self._scores(start, *args, **kwargs))  # the logits may be NaN here
        training = watch.finish(losses, temperatures)
        if self._truncates:  # the parameters have changed since the first check
            params = self.get_params(state)
            pair = (handlers.substitute(fn, data=params) for fn in (self.model, self.guide))
            check_tails(*pair, self.temperature(state), *args, **kwargs | self.static_kwargs)
        result = RunResult(self.get_params(state), state, losses)
        result.training = training
        return result

    def _temperatures(self, first: int, num_steps: int) -> np.ndarray:
        """Those of the coming steps."""
        found = np.asarray(jax.vmap(self.schedule)(jnp.arange(first, first + num_steps)))
        bad = np.flatnonzero(~(np.isfinite(found) & (found > 0)))
        if bad.size:
            raise ValueError(
                "AnnealedSVI: temperature must be positive and finite, but the schedule gives"
                f" {found[bad[0]]:.3g} at step {first + bad[0]}"
            )
        return found

    def _watched(
        self, step: Callable, state: Any, watch: Watch, args: tuple, kwargs: dict
    ) -> tuple[Any, Array]:
        """The same steps, one by one."""
        losses: list[Array] = []
        if self._sparse is None:
            step = jax.jit(step)
        else:  # the compiled step reuses its memory; the caller's state must stay valid
            step, state = jax.jit(step, donate_argnums=0), jax.tree.map(jnp.copy, state)
        evaluate = jax.jit(lambda state: self._discrete_elbo(state, *args, **kwargs))
        for done in range(1, watch.num_steps + 1):
            temperature = self.temperature(state)
            state, loss = step(state, None)
            losses.append(loss)
            if watch.wants(done):
                now = partial(evaluate, state)
                watch.report(done, float(loss), float(temperature), now)
        return state, jnp.stack(losses)

    def _discrete_elbo(self, state: Any, *args: Any, **kwargs: Any) -> Array:
        """The ELBO of the discretized pair; the key of the state does not change."""
        enumerates = isinstance(self.loss, TraceEnum_ELBO)
        elbo = self.loss if enumerates else TraceGraph_ELBO(num_particles=EVALUATION_DRAWS)
        programs = discretize(self.model), discretize(self.guide)
        temperature, kwargs = self.temperature(state), kwargs | self.static_kwargs
        key = jax.random.fold_in(state.rng_key, 1)
        return -elbo.loss(key, self.get_params(state), *programs, temperature, *args, **kwargs)

    def _scores(self, state: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The score of each site, the guide's first."""
        args, kwargs = (self.temperature(state), *args), kwargs | self.static_kwargs
        params, (_, key) = self.get_params(state), jax.random.split(state.rng_key)
        keys = jax.random.split(key)
        guide = handlers.substitute(handlers.seed(self.guide, keys[1]), data=params)
        model = handlers.substitute(handlers.seed(self.model, keys[0]), data=params)
        traces = [handlers.trace(guide).get_trace(*args, **kwargs)]
        replayed = handlers.replay(model, trace=traces[0])
        traces.append(handlers.trace(replayed).get_trace(*args, **kwargs))
        sites = [s for trace in traces for s in trace.values() if s["type"] == "sample"]
        return {s["name"]: float(jnp.sum(s["fn"].log_prob(s["value"]))) for s in sites}

    def _rows(self, svi_state: Any, args: tuple, kwargs: dict) -> AbstractContextManager:
        """The rows of this step, for a sparse guide."""
        if self._sparse is None:
            return nullcontext()
        key = jax.random.fold_in(svi_state.rng_key, 2)
        for_programs = {k: v for k, v in kwargs.items() if k not in OPTIONS} | self.static_kwargs
        return rows_of_step(self._sparse, key, args, for_programs)

    def update(self, svi_state: Any, *args: Any, **kwargs: Any) -> tuple:
        temperature = self.temperature(svi_state)
        self._check(svi_state, temperature, *args, **kwargs)
        with missing_site_named("numpyro"), self._rows(svi_state, args, kwargs):
            return super().update(svi_state, temperature, *args, **kwargs)

    def stable_update(self, svi_state: Any, *args: Any, **kwargs: Any) -> tuple:
        temperature = self.temperature(svi_state)
        self._check(svi_state, temperature, *args, **kwargs)
        with missing_site_named("numpyro"), self._rows(svi_state, args, kwargs):
            return super().stable_update(svi_state, temperature, *args, **kwargs)

    def evaluate(self, svi_state: Any, *args: Any, **kwargs: Any) -> Array:
        temperature = self.temperature(svi_state)
        self._check(svi_state, temperature, *args, **kwargs)
        with missing_site_named("numpyro"):
            return super().evaluate(svi_state, temperature, *args, **kwargs)


def _is_key(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32)


def _check_traced(schedule: Callable[[Any], Any]) -> None:
    """Refuses a schedule that needs the number of the step: in a compiled run it is not known."""
    try:
        jax.eval_shape(schedule, 0)
    except NOT_KNOWN as error:
        raise TypeError(
            f"AnnealedSVI: schedule must be a function that JAX can trace, but {schedule!r} needs"
            " the number of the step, for example in `if` or math.exp: use jnp.where, jnp.exp, or a"
            " schedule of gs_ppl.temperature"
        ) from error


class RunResult(SVIRunResult):
    """Parameters, state and losses, as NumPyro's result; and the other records by step."""

    training: Training

    def __repr__(self) -> str:
        return f"RunResult({self.training!r}, params: {', '.join(self.params)})"

    @property
    def temperatures(self) -> np.ndarray:
        return self.training.temperatures

    @property
    def evaluation_steps(self) -> np.ndarray:
        return self.training.evaluation_steps

    @property
    def elbos(self) -> np.ndarray:
        return self.training.elbos
