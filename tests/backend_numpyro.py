"""NumPyro's adapter for the parity tests; backend_pyro.py has the same interface."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from gs_ppl._shared.wrappers import innermost, masks

Array = Any


@contextmanager
def _at_the_start() -> Iterator[None]:
    """A guide has its initial values; Pyro's store gives them without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*: params= does not have", UserWarning)
        yield


class NumPyroBackend:
    """JAX and NumPyro."""

    name = "numpyro"
    default_dtype = "float64"
    reinforce = "TraceGraph_ELBO"  # the PPL's score function

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)  # tests compare in float64 too
        self.jnp = self.lib = self.jax.numpy
        self.gs = importlib.import_module("gs_ppl.numpyro")
        self.F = self.gs.functional
        self.ppl = importlib.import_module("numpyro")
        self.native = importlib.import_module("numpyro.distributions")
        self.infer = importlib.import_module("numpyro.infer")

    def array(self, values: Any, dtype: str | None = None) -> Array:
        dtype = dtype or self.default_dtype
        return self.jnp.asarray(np.array(values), dtype=dtype)

    def numpy(self, x: Array) -> np.ndarray:
        x = self.jnp.asarray(x)
        return (
            np.array(x, np.float64)
            if self.jnp.issubdtype(x.dtype, self.jnp.floating)
            else (np.array(x))
        )

    def dtype(self, x: Array) -> str:
        return str(x.dtype)

    def noise(self, kind: str, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
        return getattr(self.F, f"{kind}_noise")(self.jax.random.key(seed), shape, dtype=dtype)

    def own_noise(self, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
        """The noise of a sample of this shape, drawn from this seed."""
        return self.noise("exponential", seed, shape, dtype)

    def sample(self, d: Any, seed: int, shape: tuple[int, ...] = ()) -> Array:
        return d.sample(self.jax.random.key(seed), shape)

    def sample_and_score(self, d: Any, seed: int, shape: tuple[int, ...] = ()) -> tuple:
        value, intermediates = d.sample_with_intermediates(self.jax.random.key(seed), shape)
        return value, d.log_prob(value, intermediates) if intermediates else d.log_prob(value)

    def kl(self, p: Any, q: Any) -> Array:
        return self.native.kl_divergence(p, q)

    def mask(self, d: Any, mask: Any) -> Any:
        return d.mask(self.jnp.asarray(mask))

    def bijection(self, constraint: Any) -> Any:
        return self.native.biject_to(constraint)

    def inverse(self, transform: Any) -> Callable:
        return transform._inverse

    def check(self, constraint: Any, value: Array) -> np.ndarray:
        return np.asarray(constraint(value))

    def grad(self, f: Callable, *xs: Array) -> list[np.ndarray]:
        grads = self.jax.grad(f, argnums=tuple(range(len(xs))))(*xs)
        return [self.numpy(g) for g in grads]

    def value_and_grad(self, f: Callable) -> Callable:
        """For f(*xs) = (scalar, value): the value, and the gradients of the scalar."""

        def value_and_grad(*xs: Array) -> tuple[np.ndarray, list[np.ndarray]]:
            (_, value), gradients = compiled(*xs)
            return self.numpy(value), [self.numpy(g) for g in gradients]

        compiled = self.jax.jit(
            lambda *xs: self.jax.value_and_grad(f, tuple(range(len(xs))), has_aux=True)(*xs)
        )
        return value_and_grad

    def draw(self, tau: Array, logits: Array, noise: Array, finite: Array | None = None) -> tuple:
        """Sample, its log, the residue and the sum of the log in one step."""
        return self.F.gumbel_softmax_draw(tau, logits, noise, finite)

    def functional_grad(self, f: Callable) -> Callable:
        return self.jax.grad(f)

    def jvp(self, f: Callable, x: Array, v: Array) -> tuple[np.ndarray, np.ndarray]:
        return tuple(map(self.numpy, self.jax.jvp(f, (x,), (v,))))

    def vmap(self, f: Callable) -> Callable:
        return self.jax.vmap(f)

    def traced_seed(self, seed: Array | int) -> Array | int:
        return seed

    def stack(self, xs: list) -> Array:
        return self.jnp.stack(xs)

    def jit(self, f: Callable) -> Callable:
        return self.jax.jit(f)

    def uncompiled(self) -> AbstractContextManager:
        """A test may read values inside of a program in this context."""
        return self.jax.disable_jit()

    def trace(self, program: Callable, seed: int) -> dict[str, Any]:
        handlers = self.ppl.handlers
        trace = handlers.trace(handlers.seed(program, self.jax.random.key(seed))).get_trace()
        sites = (site for site in trace.values() if site["type"] == "sample")
        return {site["name"]: site["value"] for site in sites if not site["is_observed"]}

    def loss(self, elbo: str, model: Callable, guide: Callable, particles: int, seed: int) -> float:
        loss = getattr(self.infer, elbo)(num_particles=particles)
        return self.elbo_loss(loss, model, guide, seed)

    def _initial_params(self, guide: Callable) -> dict[str, Array]:
        handlers = self.ppl.handlers
        sites = handlers.trace(handlers.seed(guide, self.jax.random.key(0))).get_trace().values()
        return {site["name"]: site["value"] for site in sites if site["type"] == "param"}

    def losses(self, elbo: Any, model: Callable, guide: Callable, count: int) -> np.ndarray:
        params = self._initial_params(guide)
        loss = self.jax.jit(self.jax.vmap(lambda key: elbo.loss(key, params, model, guide)))
        return self.numpy(loss(self.jax.random.split(self.jax.random.key(0), count)))

    def loss_and_gradient(self, elbo: Any, model: Callable, guide: Callable, seed: int) -> tuple:
        key, params = self.jax.random.key(seed), self._initial_params(guide)
        loss = lambda params, key: elbo.loss(key, params, model, guide)  # noqa: E731
        value, gradient = self.jax.jit(self.jax.value_and_grad(loss))(params, key)
        return float(value), {name: self.numpy(g) for name, g in gradient.items()}

    def fit(self, elbo: str, model: Callable, guide: Callable, steps: int, seed: int) -> tuple:
        svi = self.infer.SVI(model, guide, self.ppl.optim.Adam(0.05), getattr(self.infer, elbo)())
        result = svi.run(self.jax.random.key(seed), steps, progress_bar=False)
        params = {name: self.numpy(value) for name, value in result.params.items()}
        return np.array(result.losses), params

    def sites(self, program: Callable, seed: int) -> dict[str, tuple]:
        handlers = self.ppl.handlers
        trace = handlers.trace(handlers.seed(program, self.jax.random.key(seed))).get_trace()
        return {
            name: (innermost(site["fn"]), site["value"])
            for name, site in trace.items()
            if site["type"] == "sample"
        }

    def markov(self, steps: Iterable) -> Iterable:
        return importlib.import_module("numpyro.contrib.funsor").markov(steps)

    def condition(self, program: Callable, data: dict) -> Callable:
        return self.ppl.handlers.condition(program, data=data)

    def masked(self, program: Callable, mask: np.ndarray) -> Callable:
        return self.ppl.handlers.mask(program, mask=self.jnp.asarray(mask))

    def scaled(self, program: Callable, scale: float) -> Callable:
        return self.ppl.handlers.scale(program, scale=scale)

    def blocked(self, program: Callable, hide: list[str]) -> Callable:
        seeded = self.ppl.handlers.seed(program, self.jax.random.key(0))  # else block hides sites
        return self.ppl.handlers.block(seeded, hide=hide)

    def elbo_loss(self, elbo: Any, model: Callable, guide: Callable, seed: int = 0) -> float:
        """The loss, compiled at once: op by op, each op would be compiled separately."""
        loss = self.jax.jit(lambda key: elbo.loss(key, {}, model, guide))
        return float(loss(self.jax.random.key(seed)))

    def without_observed(self, program: Callable) -> Callable:
        return self.ppl.handlers.block(
            program, hide_fn=lambda m: m["type"] == "sample" and m["is_observed"]
        )

    def enumerated_loss(self, model: Callable, guide: Callable, plates: int) -> float:
        return self.elbo_loss(self.infer.TraceEnum_ELBO(max_plate_nesting=plates), model, guide)

    def infer_config(self, program: Callable, config: dict) -> Callable:
        """The same `infer` entries at each latent site."""
        latent = lambda site: config if not site["is_observed"] else {}  # noqa: E731
        return self.ppl.handlers.infer_config(program, latent)

    def native_config_enumerate(self, program: Callable) -> Callable:
        """The PPL's config_enumerate."""
        return importlib.import_module("numpyro.contrib.funsor").config_enumerate(program)

    @contextmanager
    def single_precision(self) -> Iterator[None]:
        """Within it, arrays are float32 unless they ask for another dtype."""
        self.default_dtype = "float32"
        try:
            yield
        finally:
            self.default_dtype = "float64"

    def predictive(self, program: Callable, samples: int) -> dict[str, np.ndarray]:
        predictive = self.infer.Predictive(program, num_samples=samples, return_sites=["z"])
        draws = predictive(self.jax.random.key(0))
        return {name: self.numpy(value) for name, value in draws.items()}

    def predictive_discrete(self, model: Callable, plates: int, samples: int) -> dict:
        """Posterior draws of the enumerated sites."""
        predictive = self.infer.Predictive(
            model, {}, num_samples=samples, infer_discrete=True, return_sites=["z"]
        )
        draws = predictive(self.jax.random.key(0))
        return {name: self.numpy(value) for name, value in draws.items()}

    def to_inference_data(self, model, guide=None, *args, params=None, seed=0, **options) -> Any:
        key, draw = self.jax.random.key(seed), self.gs.to_inference_data
        with _at_the_start() if params is None else nullcontext():
            return draw(model, guide, *args, params=params, rng_key=key, **options)

    def infer_discrete(self, model: Callable, plates: int, seed: int) -> dict[str, Any]:
        infer = importlib.import_module("numpyro.contrib.funsor").infer_discrete
        sampled = infer(model, first_available_dim=-1 - plates, rng_key=self.jax.random.key(seed))
        return self.trace(sampled, seed)

    def optimizer(self) -> Any:
        return self.ppl.optim.Adam(0.05)

    def _annealed(self, model, guide, elbo, schedule, learning_rate=0.05, decay=1.0) -> Any:
        adam = self.ppl.optim.Adam(lambda step: learning_rate * decay**step)
        return self.gs.AnnealedSVI(model, guide, adam, elbo, schedule)

    def anneal(self, model, guide, elbo, schedule, steps, learning_rate=0.05, decay=1.0) -> tuple:
        svi = self._annealed(model, guide, elbo, schedule, learning_rate, decay)
        result = svi.run(self.jax.random.key(0), steps, progress_bar=False)
        return np.array(result.losses), result.params

    def train_on(self, model, guide, elbo, schedule, batches) -> None:
        svi = self._annealed(model, guide, elbo, schedule)
        state, update = svi.init(self.jax.random.key(0), batches[0]), self.jax.jit(svi.update)
        for batch in batches:
            state, _ = update(state, batch)

    def stepper(self, model, guide, elbo, schedule) -> Callable:
        """A step on a batch, not compiled."""
        svi, state = self._annealed(model, guide, elbo, schedule), []

        def step(batch: Any) -> None:
            state[:] = state or [svi.init(self.jax.random.key(0), batch)]
            state[0], _ = svi.update(state[0], batch)

        return step

    def recorded_temperatures(self, model, schedule, steps, relaxed=False) -> list[float]:
        recorded = []

        class Record(self.ppl.primitives.Messenger):
            def process_message(_, msg):
                if msg["type"] == "sample" and msg["name"] == "z":
                    tau = innermost(msg["fn"]).temperature
                    self.jax.debug.callback(lambda tau: recorded.append(float(tau)), tau)

        guide = self.gs.AutoGumbelSoftmax(model)
        program = Record(model if relaxed else self.gs.relax(model))
        svi = self._annealed(program, guide, self.infer.TraceMeanField_ELBO(), schedule)
        state = svi.init(self.jax.random.key(0))
        self.jax.effects_barrier()
        recorded.clear()  # initialisation has recorded values
        update = self.jax.jit(svi.update)
        for _ in range(steps):
            state, _ = update(state)
            self.jax.effects_barrier()
        return recorded

    def count_traces(self, model, schedule, steps) -> int:
        """How often the model's source runs under update in jit."""
        runs = []

        def counted():
            runs.append(1)
            return model()

        guide = self.gs.AutoGumbelSoftmax(model)
        svi = self._annealed(
            self.gs.relax(counted), guide, self.infer.TraceMeanField_ELBO(), schedule
        )
        state, update = svi.init(self.jax.random.key(0)), self.jax.jit(svi.update)
        for _ in range(steps):
            state, _ = update(state)
        return len(runs)

    def traces_by_mode(self, model, schedule, mode, steps) -> tuple[int, int]:
        """How often the model's source runs in these steps, and in one update that is traced."""
        jax, runs = self.jax, []

        def counted():
            runs.append(1)
            return model()

        guide = self.gs.AutoGumbelSoftmax(model)
        svi = self._annealed(
            self.gs.relax(counted), guide, self.infer.TraceMeanField_ELBO(), schedule
        )
        state = svi.init(jax.random.key(0))
        runs.clear()
        jax.make_jaxpr(svi.update)(state)
        once = len(runs)
        runs.clear()
        if mode == "run":
            svi.run(None, steps, progress_bar=False, init_state=state)
        elif mode == "scan":
            jax.lax.scan(lambda state, _: svi.update(state), state, length=steps)
        else:
            update = jax.jit(getattr(svi, mode))
            for _ in range(steps):
                state, _ = update(state)
        return len(runs), once

    def evaluated_temperature(self, model, schedule, steps) -> float:
        seen = []

        def program(temperature):
            seen.append(temperature)
            return model()

        guide = self.gs.AutoGumbelSoftmax(model)
        elbo = self.infer.TraceMeanField_ELBO()
        svi = self._annealed(self.gs.relax(program), guide, elbo, schedule)
        state, update = svi.init(self.jax.random.key(0)), self.jax.jit(svi.update)
        for _ in range(steps):
            state, _ = update(state)
        svi.evaluate(state)
        return float(seen[-1])

    def anneal_list(self, model, discrete, continuous, schedule, steps, decay) -> tuple:
        block, key = self.ppl.handlers.block, self.jax.random.key(1)
        relaxed = self.gs.relax(self.ppl.handlers.seed(model, key))  # else block hides sites
        guide = self.gs.AutoGuideList(relaxed)
        part = self.gs.AutoGumbelSoftmax(block(relaxed, hide=[continuous]))
        guide.append(self.infer.autoguide.AutoNormal(block(relaxed, hide=[discrete])))
        guide.append(part)
        elbo = self.infer.TraceMeanField_ELBO()
        _, params = self.anneal(self.gs.relax(model), guide, elbo, schedule, steps, decay=decay)
        loc, scale = (float(params[f"{continuous}_auto_{name}"]) for name in ("loc", "scale"))
        return self.numpy(part.probs(params)[discrete]), loc, scale

    def whole_and_resumed(self, model, schedule, steps) -> tuple:
        def run():
            guide = self.gs.AutoGumbelSoftmax(model)
            return self._annealed(
                self.gs.relax(model), guide, self.infer.TraceMeanField_ELBO(), schedule
            )

        def go_on(svi, state):
            losses = []
            for _ in range(steps // 2):
                state, loss = svi.update(state)
                losses.append(float(loss))
            return state, losses

        svi = run()
        state, _ = go_on(svi, svi.init(self.jax.random.key(0)))
        _, whole = go_on(svi, state)
        leaves, tree = self.jax.tree.flatten(state)
        restored = tree.unflatten([leaf.copy() for leaf in leaves])
        svi = run()
        svi.init(self.jax.random.key(1))  # another run, which the restored state replaces
        return whole, go_on(svi, restored)[1]

    def guide_probs(self, guide, params) -> dict[str, np.ndarray]:
        return {name: self.numpy(value) for name, value in guide.probs(params).items()}

    def params_of(self, guide: Callable) -> dict[str, Array]:
        """The parameters that a guide starts with."""
        return self._initial_params(self.gs.discretize(guide))

    def draws_of(self, guide, params, samples: int) -> dict[str, np.ndarray]:
        """Draws of its sample_posterior."""
        draws = guide.sample_posterior(self.jax.random.key(0), params, sample_shape=(samples,))
        return {name: self.numpy(value) for name, value in draws.items()}

    def guide_mode(self, guide, params) -> dict[str, np.ndarray]:
        return {name: self.numpy(value) for name, value in guide.mode(params).items()}

    def rows_of_parts_agree(self) -> bool:
        ppl, handlers = self.ppl, self.ppl.handlers

        def model():
            with ppl.plate("data", 50, subsample_size=5):
                ppl.sample("z", self.gs.OneHotCategorical(logits=self.array(np.zeros(2))))
                ppl.sample("w", self.native.Normal(self.array(0.0), 1.0))

        seeded = handlers.seed(model, self.jax.random.key(1))
        relaxed = self.gs.relax(seeded, 0.5)
        guide = self.gs.AutoGuideList(relaxed)
        guide.append(self.gs.AutoGumbelSoftmax(handlers.block(relaxed, expose=["z", "data"]), 0.5))
        guide.append(self.infer.autoguide.AutoNormal(handlers.block(relaxed, hide=["z"])))
        rows = []

        class Rows(ppl.primitives.Messenger):
            def postprocess_message(_, msg):
                if msg["type"] == "plate":
                    rows.append(tuple(self.numpy(msg["value"]).tolist()))

        with handlers.seed(rng_seed=0):
            guide()
            rows.clear()
            with Rows():
                guide()
        return len(rows) == 3 and len(set(rows)) == 1 and len(set(rows[0])) == 5

    def session(self, model: Callable, guide: Callable) -> Any:
        Session = importlib.import_module("gs_ppl.numpyro.comparison").Session
        loss = self.infer.TraceMeanField_ELBO()
        return Session(model, guide, (), {}, {}, loss, self.jax.random.key(0))

    def compare(self, model, guide, *args, seed: int = 0, **options: Any) -> Any:
        key = self.jax.random.key(seed)
        report = self.gs.compare(model, guide, *args, rng_key=key, progress_bar=False, **options)
        notes = [x for x in report.notes if not x.startswith("params= does not have")]
        return dataclasses.replace(report, notes=tuple(notes))  # Pyro's store is never left out

    def tanh(self, x: Array) -> Array:
        return self.jnp.tanh(x)

    def reparam(self, program: Callable, config: dict[str, str]) -> Callable:
        """`transform` or `noise` by site: TransformReparam or GumbelSoftmaxReparam."""
        kinds = {
            "transform": self.infer.reparam.TransformReparam,
            "noise": self.gs.GumbelSoftmaxReparam,
        }
        config = {site: kinds[kind]() for site, kind in config.items()}
        return self.ppl.handlers.reparam(program, config=config)

    def nuts(self, model: Callable, seed: int, warmup: int, samples: int) -> dict[str, np.ndarray]:
        mcmc = self.infer.MCMC(
            self.infer.NUTS(model), num_samples=samples, num_warmup=warmup, progress_bar=False
        )
        mcmc.run(self.jax.random.key(seed))
        return {name: self.numpy(value) for name, value in mcmc.get_samples().items()}

    def gradients(self, elbo: Any, model: Callable, guide: Callable, seeds: Iterable[int]) -> list:
        """Loss and gradient at the initial parameters, as in loss_and_gradient, for each seed."""
        params = self._initial_params(guide)
        loss = self.jax.jit(
            self.jax.value_and_grad(lambda params, key: elbo.loss(key, params, model, guide)),
            compiler_options={"xla_disable_hlo_passes": "constant_folding"},  # slow for big plates
        )
        pairs = (loss(params, self.jax.random.key(seed)) for seed in seeds)
        return [(float(value), {n: self.numpy(g) for n, g in gs.items()}) for value, gs in pairs]

    def train(self, elbo, model, guide, optim, rate, steps, seed=0, schedule=None) -> tuple:
        """Losses of SVI with an ELBO object, the final parameters, and other state."""
        programs = model, guide, getattr(self.ppl.optim, optim)(rate), elbo
        svi = self.gs.AnnealedSVI(*programs, schedule) if schedule else self.infer.SVI(*programs)
        result = svi.run(self.jax.random.key(seed), steps, progress_bar=False)
        left = result.params | (result.state.mutable_state or {})
        return np.array(result.losses), {name: self.numpy(x) for name, x in left.items()}

    def log_joint(self, program: Callable, values: dict[str, Any]) -> float:
        fixed = self.ppl.handlers.substitute(program, data=values)
        return float(self.seeded_log_joint(fixed, 0))

    def given(self, program: Callable, values: dict[str, Any]) -> Callable:
        return self.ppl.handlers.substitute(program, data=values)

    def at_each(self, f: Callable, batch: dict, tables: dict, argnums: tuple) -> tuple:
        compiled = self.jax.jit(
            self.jax.vmap(self.jax.value_and_grad(f, argnums), in_axes=(0, None))
        )
        return self.jax.tree.map(self.numpy, compiled(batch, tables))

    def seeded_log_joint(self, program: Callable, seed: int) -> Array:
        def score(key):  # in one compilation, where op by op there is one for each
            return self.infer.util.log_density(self.ppl.handlers.seed(program, key), (), {}, {})[0]

        return self.jax.jit(score)(self.jax.random.key(seed))

    def recorded(self, program: Callable, seed: int) -> dict[str, Any]:
        """compiled at once; op by op, each op would be compiled separately"""
        seeded = self.ppl.handlers.seed(program, self.jax.random.key(seed))
        trace = self.ppl.handlers.trace(seeded).get_trace()
        return {name: site["value"] for name, site in trace.items()}

    @property
    def vindex(self) -> Any:
        return importlib.import_module("numpyro.ops.indexing").Vindex

    def totals(self, counts: np.ndarray) -> Any:
        """Counts in the type of the PPL's Binomial."""
        return counts

    def start_anew(self) -> None:
        """Removes global state of the PPL: there is none."""

    # devices

    def why_no_gpu(self) -> str | None:
        """Why tests on a GPU cannot run; None if they can."""
        try:
            self.jax.devices("cuda")
        except RuntimeError as error:
            return f"JAX sees no GPU: {error}"
        return None

    @contextmanager
    def other_place(self, gpu: bool) -> Iterator[Callable]:
        """Puts arrays on a device that is not the default one."""
        device = self.jax.devices("cuda" if gpu else "cpu")[-1]
        yield lambda x: self.jax.device_put(x, device)

    def bound(self, x: Array) -> Array:
        """Commits an array to its device, as device_put does."""
        return self.jax.device_put(x, x.device)

    # the life of a guide

    def saved_of_both(
        self, locs: dict[str, float], logits: dict[str, np.ndarray]
    ) -> dict[str, Array]:
        """Parameters of auto_relaxed from another process's training."""
        return {f"{name}_auto_loc": self.array(x) for name, x in locs.items()} | (
            self.saved_logits(logits)
        )

    @property
    def saved_script(self) -> Any:
        return importlib.import_module("saved_numpyro")

    def saved_logits(self, logits: dict[str, np.ndarray]) -> dict[str, Array]:
        """Parameters of an automatic guide of this process, with logits that another process has
        trained."""
        return {f"{name}_auto_logits": self.array(a) for name, a in logits.items()}

    def predict(self, model, guide, params, samples, *args) -> dict[str, Array]:
        predictive = self.infer.Predictive(model, guide=guide, params=params, num_samples=samples)
        return predictive(self.jax.random.key(0), *args)

    def auto_logits(self, site: str) -> str:
        """Name of a parameter of an automatic guide."""
        return f"{site}_auto_logits"

    def bare_block(self, program: Callable, **options: Any) -> Callable:
        return self.ppl.handlers.block(program, **options)

    def guide_median(self, guide, params) -> dict[str, np.ndarray]:
        return {name: self.numpy(value) for name, value in guide.median(params).items()}

    def guide_quantiles(self, guide, params, quantiles) -> dict[str, np.ndarray]:
        found = guide.quantiles(params, quantiles)
        return {name: self.numpy(value) for name, value in found.items()}

    def plate_of_rows(self, name: str, size: int, rows: Array) -> Any:
        """A plate whose rows are given."""
        with self.ppl.handlers.substitute(data={name: rows}):
            return self.ppl.plate(name, size, subsample_size=len(rows))

    def rows_and_value(self, program: Callable, plate: str, site: str, seed: int) -> tuple:
        seeded = self.ppl.handlers.seed(program, self.jax.random.key(seed))
        trace = self.ppl.handlers.trace(seeded).get_trace()
        return self.numpy(trace[plate]["value"]), self.numpy(trace[site]["value"])

    def trained_on(self, model, guide, elbo, schedule, batches) -> dict[str, Array]:
        """Parameters after a step on each batch."""
        svi = self._annealed(model, guide, elbo, schedule)
        state, update = svi.init(self.jax.random.key(0), batches[0]), self.jax.jit(svi.update)
        for batch in batches:
            state, _ = update(state, batch)
        return svi.get_params(state)

    def trained_by_adam(self, model, guide, elbo, schedule, batches, rate) -> tuple:
        """Logits of the site z, and the other parameters by name, after a step on each batch."""
        svi = self.gs.AnnealedSVI(model, guide, self.adam(rate), elbo, schedule)
        state = svi.init(self.jax.random.key(0), batches[0])
        update = self.jax.jit(svi.update, donate_argnums=0)
        for batch in batches:
            state, _ = update(state, batch)
        found = {name: self.numpy(value) for name, value in svi.get_params(state).items()}
        return found.pop(self.auto_logits("z")), found

    def adam(self, rate: float) -> Any:
        return self.ppl.optim.Adam(rate)

    def run(self, model, guide, elbo, schedule, steps, rate, **options) -> Any:
        """Runs AnnealedSVI.run."""
        svi = self._annealed(model, guide, elbo, schedule, rate)
        return svi.run(self.jax.random.key(0), steps, **options)

    def where(self, condition: Array, x: float, y: float) -> Array:
        return self.jnp.where(condition, x, y)

    def rows_and_mask(self, program: Callable, plate: str, site: str, seed: int) -> tuple:
        seeded = self.ppl.handlers.seed(program, self.jax.random.key(seed))
        trace = self.ppl.handlers.trace(seeded).get_trace()
        return self.numpy(trace[plate]["value"]), self.numpy(masks(trace[site]["fn"])[0])

    def assign(self, model, guide, trained_on, *args, **options) -> tuple[dict, dict]:
        """Runs the guide once on the arguments of its training, then assign."""
        params = {}
        if trained_on is not None:
            params = self._initial_params(lambda: self.gs.discretize(guide)(*trained_on))
        with nullcontext() if params else _at_the_start():
            found = self.gs.assign(model, guide, *args, params=params, **options)
        return tuple({name: self.numpy(x) for name, x in by_site.items()} for by_site in found)

    def init_to(self, **values: Array) -> Callable:
        return self.infer.init_to_value(values=values)

    # where a run starts

    def starts(self, init: Callable, name: str, law: Any, seeds: int) -> np.ndarray:
        """Values of a site by an init_loc_fn, one for each seed."""

        def start(key):
            return init({"name": name, "fn": law, "kwargs": {"rng_key": key, "sample_shape": ()}})

        keys = self.jax.random.split(self.jax.random.key(0), seeds)
        return self.numpy(self.jax.vmap(start)(keys))

    def random_param(self, name: str, values: np.ndarray) -> Array:
        """A parameter that starts at one of these values, at random."""
        pick = self.jax.random.choice
        return self.ppl.param(name, lambda key: pick(key, self.array(values)))

    def best_start(self, make: Callable, name: str, seed: int, **options: Any) -> float:
        """The value of a parameter after best_start."""
        key = self.jax.random.key(seed)
        svi, state = self.gs.best_start(make, rng_key=key, **options)
        return float(svi.get_params(state)[name])
