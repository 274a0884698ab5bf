"""Pyro's adapter for the parity tests; backend_numpyro.py has the same interface."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from gs_ppl._shared.wrappers import innermost, masks

Array = Any


class PyroBackend:
    """torch and Pyro."""

    name = "pyro"
    default_dtype = "float64"
    reinforce = "Trace_ELBO"  # the PPL's score function

    def __init__(self) -> None:
        self.torch = self.lib = importlib.import_module("torch")
        self.gs = importlib.import_module("gs_ppl.pyro")
        self.F = self.gs.functional
        self.ppl = importlib.import_module("pyro")
        self.native = importlib.import_module("pyro.distributions")
        self.infer = importlib.import_module("pyro.infer")

    def array(self, values: Any, dtype: str | None = None) -> Array:
        dtype = dtype or self.default_dtype
        return self.torch.as_tensor(np.array(values), dtype=getattr(self.torch, dtype))

    def numpy(self, x: Array) -> np.ndarray:
        x = self.torch.as_tensor(x).detach()
        x = x.double() if x.is_floating_point() else x
        return x.resolve_conj().cpu().numpy().copy()

    def dtype(self, x: Array) -> str:
        return str(x.dtype).removeprefix("torch.")

    def noise(self, kind: str, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
        self.torch.manual_seed(seed)
        return getattr(self.F, f"{kind}_noise")(shape, dtype=getattr(self.torch, dtype))

    def own_noise(self, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
        """The noise of a sample of this shape, drawn from this seed."""
        self.torch.manual_seed(seed)
        return self.F.noise_to_draw_from(shape, dtype=getattr(self.torch, dtype), device=None)

    def sample(self, d: Any, seed: int | None, shape: tuple[int, ...] = ()) -> Array:
        if seed is not None:
            self.torch.manual_seed(seed)
        return d.rsample(shape) if d.has_rsample else d.sample(shape)

    def sample_and_score(self, d: Any, seed: int | None, shape: tuple[int, ...] = ()) -> tuple:
        """A sample and its score by the same object, as an ELBO computes them."""
        value = self.sample(d, seed, shape)
        return value, d.log_prob(value)

    def kl(self, p: Any, q: Any) -> Array:
        return self.torch.distributions.kl_divergence(p, q)

    def mask(self, d: Any, mask: Any) -> Any:
        return d.mask(self.torch.as_tensor(mask))

    def bijection(self, constraint: Any) -> Any:
        return self.torch.distributions.biject_to(constraint)

    def inverse(self, transform: Any) -> Callable:
        return transform.inv

    def check(self, constraint: Any, value: Array) -> np.ndarray:
        return constraint.check(value).cpu().numpy()

    def grad(self, f: Callable, *xs: Array) -> list[np.ndarray]:
        """Gradients of the scalar f(*xs)."""
        xs = [x.detach().clone().requires_grad_() for x in xs]
        return [self.numpy(g) for g in self.torch.autograd.grad(f(*xs), xs)]

    def value_and_grad(self, f: Callable) -> Callable:
        """For f(*xs) = (scalar, value): the value, and the gradients of the scalar."""

        def value_and_grad(*xs: Array) -> tuple[np.ndarray, list[np.ndarray]]:
            xs = [x.detach().clone().requires_grad_() for x in xs]
            scalar, value = f(*xs)
            return self.numpy(value), [self.numpy(g) for g in self.torch.autograd.grad(scalar, xs)]

        return value_and_grad

    def draw(self, tau: Array, logits: Array, noise: Array, finite: Array | None = None) -> tuple:
        """Sample, its log and the residue in one step; in torch the step overwrites the noise."""
        return self.F.gumbel_softmax_draw_(tau, logits, noise.clone(), finite)

    def functional_grad(self, f: Callable) -> Callable:
        return self.torch.func.grad(f)

    def jvp(self, f: Callable, x: Array, v: Array) -> tuple[np.ndarray, np.ndarray]:
        return tuple(map(self.numpy, self.torch.func.jvp(f, (x,), (v,))))

    def vmap(self, f: Callable) -> Callable:
        return self.torch.func.vmap(f, randomness="different")

    def traced_seed(self, seed: Array | int) -> None:
        """torch cannot seed inside of compile and vmap, where each lane has new draws."""

    def stack(self, xs: list) -> Array:
        return self.torch.stack(xs)

    def jit(self, f: Callable) -> Callable:
        self.torch.compiler.reset()  # else all laws together exceed the limit of one function
        return self.torch.compile(f, backend="eager", fullgraph=True)

    # programs: `ppl` has sample, plate, param on both sides

    def uncompiled(self) -> AbstractContextManager:
        """A test may read values inside of a program in this context."""
        return nullcontext()

    def trace(self, program: Callable, seed: int) -> dict[str, Any]:
        """Values of the latent sites."""
        self.ppl.set_rng_seed(seed)
        trace = self.ppl.poutine.trace(program).get_trace()
        return {
            name: trace.nodes[name]["value"]
            for name in trace.stochastic_nodes
            if type(trace.nodes[name]["fn"]).__name__ != "_Subsample"
        }

    def loss(self, elbo: str, model: Callable, guide: Callable, particles: int, seed: int) -> float:
        """Negative ELBO; the guide's parameters are constants."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(seed)
        vectorize = elbo == "Trace_ELBO" and particles > 1  # Pyro's mean-field ELBO cannot
        loss = getattr(self.infer, elbo)(num_particles=particles, vectorize_particles=vectorize)
        return float(loss.loss(model, guide))

    def losses(self, elbo: Any, model: Callable, guide: Callable, count: int) -> np.ndarray:
        """Losses for this many seeds, at the initial parameters; equal seeds have equal noise."""
        result = []
        for seed in range(count):
            self.ppl.clear_param_store()
            self.ppl.set_rng_seed(seed)
            result.append(float(elbo.loss(model, guide)))
        return np.array(result)

    def loss_and_gradient(self, elbo: Any, model: Callable, guide: Callable, seed: int) -> tuple:
        """Loss, and its gradient in each parameter at its initial value."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(seed)
        loss = elbo.loss_and_grads(model, guide)
        gradient = {}
        for name, value in self.ppl.get_param_store().named_parameters():
            if value.grad is not None:  # NVIL_ELBO's state has none
                gradient[name] = self.numpy(value.grad)
            value.grad = None  # the tensor may belong to the user
        return float(loss), gradient

    def fit(self, elbo: str, model: Callable, guide: Callable, steps: int, seed: int) -> tuple:
        """Losses and fitted parameters after `steps` of Adam(0.05)."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(seed)
        svi = self.infer.SVI(
            model, guide, self.ppl.optim.Adam({"lr": 0.05}), getattr(self.infer, elbo)()
        )
        losses = np.array([svi.step() for _ in range(steps)])
        store = self.ppl.get_param_store()
        return losses, {name: self.numpy(value) for name, value in store.items()}

    def sites(self, program: Callable, seed: int) -> dict[str, tuple]:
        """Innermost law and value of each sample site."""
        self.ppl.set_rng_seed(seed)
        nodes = self.ppl.poutine.trace(program).get_trace().nodes
        return {
            name: (innermost(node["fn"]), node["value"])
            for name, node in nodes.items()
            if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample"
        }

    def markov(self, steps: Iterable) -> Iterable:
        return self.ppl.markov(steps)

    def condition(self, program: Callable, data: dict) -> Callable:
        return self.ppl.condition(program, data=data)

    def masked(self, program: Callable, mask: np.ndarray) -> Callable:
        return self.ppl.poutine.mask(program, mask=self.torch.as_tensor(mask))

    def scaled(self, program: Callable, scale: float) -> Callable:
        return self.ppl.poutine.scale(program, scale=scale)

    def blocked(self, program: Callable, hide: list[str]) -> Callable:
        return self.ppl.poutine.block(program, hide=hide)

    def elbo_loss(self, elbo: Any, model: Callable, guide: Callable) -> float:
        return float(elbo.loss(model, guide))

    def without_observed(self, program: Callable) -> Callable:
        """The prior over the latent sites, as a guide."""
        return self.ppl.poutine.block(
            program, hide_fn=lambda m: m["type"] == "sample" and m["is_observed"]
        )

    def enumerated_loss(self, model: Callable, guide: Callable, plates: int) -> float:
        self.ppl.clear_param_store()
        elbo = self.infer.TraceEnum_ELBO(max_plate_nesting=plates)
        return float(elbo.loss(model, guide))

    def infer_config(self, program: Callable, config: dict) -> Callable:
        """The same `infer` entries at each latent site."""
        latent = lambda site: config if not site["is_observed"] else {}  # noqa: E731
        return self.ppl.poutine.infer_config(program, latent)

    def native_config_enumerate(self, program: Callable) -> Callable:
        """The PPL's config_enumerate."""
        return self.infer.config_enumerate(program)

    @contextmanager
    def single_precision(self) -> Iterator[None]:
        """Within it, arrays are float32 unless they ask for another dtype."""
        self.default_dtype = "float32"
        try:
            yield
        finally:
            self.default_dtype = "float64"

    def predictive(self, program: Callable, samples: int) -> dict[str, np.ndarray]:
        self.ppl.set_rng_seed(0)
        draws = self.infer.Predictive(program, num_samples=samples, return_sites=["z"])()
        return {name: self.numpy(value) for name, value in draws.items()}

    def predictive_discrete(self, model: Callable, plates: int, samples: int) -> dict:
        """Posterior draws of the enumerated sites."""
        serving = self.infer.infer_discrete(model, first_available_dim=-1 - plates)
        return self.predictive(serving, samples)

    def to_inference_data(self, model, guide=None, *args, params=None, seed=0, **options) -> Any:
        """With these values of the parameters; parameters that the programs make are removed
        afterwards."""
        self.ppl.clear_param_store()
        for name, value in (params or {}).items():
            self.ppl.param(name, value)
        data = self.gs.to_inference_data(model, guide, *args, seed=seed, **options)
        assert set(self.ppl.get_param_store()) == set(params or {})
        return data

    def infer_discrete(self, model: Callable, plates: int, seed: int) -> dict[str, Any]:
        self.ppl.set_rng_seed(seed)
        sampled = self.infer.infer_discrete(model, first_available_dim=-1 - plates)
        trace = self.ppl.poutine.trace(sampled).get_trace()
        return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}

    def optimizer(self) -> Any:
        return self.ppl.optim.Adam({"lr": 0.05})

    def _annealed(self, model, guide, elbo, schedule, learning_rate=0.05, decay=1.0) -> Any:
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(0)
        options = {"lr": learning_rate, "lrd": decay, "clip_norm": float("inf")}
        adam = self.ppl.optim.ClippedAdam(options)
        return self.gs.AnnealedSVI(model, guide, adam, elbo, schedule)

    def anneal(self, model, guide, elbo, schedule, steps, learning_rate=0.05, decay=1.0) -> tuple:
        """Losses of an annealed run, and its parameters; the learning rate may decay too."""
        svi = self._annealed(model, guide, elbo, schedule, learning_rate, decay)
        return np.array([svi.step() for _ in range(steps)]), None

    def train_on(self, model, guide, elbo, schedule, batches) -> None:
        """A step on each batch."""
        svi = self._annealed(model, guide, elbo, schedule)
        for batch in batches:
            svi.step(batch)

    def stepper(self, model, guide, elbo, schedule) -> Callable:
        """A step on a batch."""
        return self._annealed(model, guide, elbo, schedule).step

    def recorded_temperatures(self, model, schedule, steps, relaxed=False) -> list[float]:
        """The temperature of the site z at each step."""
        recorded = []

        class Record(self.ppl.poutine.messenger.Messenger):
            def _pyro_post_sample(self, msg):
                if msg["name"] == "z":
                    recorded.append(float(innermost(msg["fn"]).temperature))

        guide = self.gs.AutoGumbelSoftmax(model)
        program = Record()(model if relaxed else self.gs.relax(model))
        svi = self._annealed(program, guide, self.infer.TraceMeanField_ELBO(), schedule)
        for _ in range(steps):
            svi.step()
        return recorded[-steps:]  # the check before the first step has recorded one too

    def count_traces(self, model, schedule, steps, elbo=None) -> int:
        """How often the model's source runs under a Jit ELBO after the first step."""
        runs = []

        def counted(*args, **kwargs):
            runs.append(1)
            return model(*args, **kwargs)

        family = self.gs.STGumbelSoftmax  # every ELBO takes it
        guide = self.gs.AutoGumbelSoftmax(model, family=family)
        elbo = elbo or self.infer.JitTrace_ELBO(ignore_jit_warnings=True)
        svi = self._annealed(self.gs.relax(counted, family=family), guide, elbo, schedule)
        svi.step()
        runs.clear()
        for _ in range(steps - 1):
            svi.step()
        return len(runs)

    def compiled_and_plain_losses(self, model, compiled, elbo, schedule, steps) -> tuple:
        """Losses of a run under a Jit ELBO, and of the plain ELBO at the same state and seed."""
        family = self.gs.STGumbelSoftmax
        guide = self.gs.AutoGumbelSoftmax(model, family=family)
        svi = self._annealed(self.gs.relax(model, family=family), guide, compiled, schedule)
        svi.step()  # compiles, which draws random numbers too
        losses = []
        for step in range(steps):
            self.ppl.set_rng_seed(step)
            expected = elbo.loss(svi.model, svi.guide, svi.temperature())
            self.ppl.set_rng_seed(step)
            losses.append((svi.step(), expected))
        return tuple(np.array(losses).T)

    def evaluated_temperature(self, model, schedule, steps) -> float:
        """The temperature of an evaluation after this many steps."""
        seen = []

        def program(temperature):
            seen.append(temperature)
            return model()

        guide = self.gs.AutoGumbelSoftmax(model)
        elbo = self.infer.TraceMeanField_ELBO()
        svi = self._annealed(self.gs.relax(program), guide, elbo, schedule)
        for _ in range(steps):
            svi.step()
        svi.evaluate_loss()
        return float(seen[-1])

    def anneal_list(self, model, discrete, continuous, schedule, steps, decay) -> tuple:
        """AutoGumbelSoftmax and AutoNormal side by side: class probabilities of one site, mean
        and standard deviation of the other."""
        block = self.ppl.poutine.block
        guide = self.gs.AutoGuideList(model)
        guide.append(self.infer.autoguide.AutoNormal(block(model, hide=[discrete])))
        guide.append(self.gs.AutoGumbelSoftmax(block(model, expose=[discrete])))
        elbo = self.infer.TraceMeanField_ELBO()
        self.anneal(self.gs.relax(model), guide, elbo, schedule, steps, decay=decay)
        loc, scale = map(self.numpy, guide[0]._get_loc_and_scale(continuous))
        return self.numpy(guide[1].probs()[discrete]), float(loc), float(scale)

    def whole_and_resumed(self, model, schedule, steps) -> tuple:
        """Losses of the second half, in one run and after the state was restored."""

        def run():
            guide = self.gs.AutoGumbelSoftmax(model)
            return self._annealed(
                self.gs.relax(model), guide, self.infer.TraceMeanField_ELBO(), schedule
            )

        svi = run()
        for _ in range(steps // 2):
            svi.step()
        state = copy.deepcopy(svi.get_state())
        random_state = self.ppl.util.get_rng_state()
        whole = [svi.step() for _ in range(steps // 2)]
        svi = run()
        svi.step()  # another run, whose state the restored one replaces
        svi.set_state(state)
        self.ppl.util.set_rng_state(random_state)
        return whole, [svi.step() for _ in range(steps // 2)]

    def guide_probs(self, guide, params) -> dict[str, np.ndarray]:
        return {name: self.numpy(value) for name, value in guide.probs().items()}

    def params_of(self, guide: Callable) -> None:
        """The parameters that a guide starts with; the store keeps them."""
        self.ppl.clear_param_store()
        self.gs.discretize(guide)()

    def draws_of(self, guide, params, samples: int) -> dict[str, np.ndarray]:
        """Draws of its sample_posterior."""
        self.ppl.set_rng_seed(0)
        draws = guide.sample_posterior(sample_shape=self.torch.Size((samples,)))
        return {name: self.numpy(value) for name, value in draws.items()}

    def guide_mode(self, guide, params) -> dict[str, np.ndarray]:
        return {name: self.numpy(value) for name, value in guide.mode().items()}

    def rows_of_parts_agree(self) -> bool:
        ppl, seen = self.ppl, []

        def model():
            with ppl.plate("data", 50, subsample_size=5) as rows:
                seen.append(self.numpy(rows))
                ppl.sample("z", self.gs.OneHotCategorical(logits=self.array(np.zeros(2))))
                ppl.sample("w", self.native.Normal(self.array(0.0), 1.0))

        guide = self.gs.AutoGuideList(model)
        guide.append(self.gs.AutoGumbelSoftmax(ppl.poutine.block(model, expose=["z"]), 0.5))
        guide.append(self.infer.autoguide.AutoNormal(ppl.poutine.block(model, hide=["z"])))
        guide()
        trace = ppl.poutine.trace(guide).get_trace()
        frames = [trace.nodes[name]["cond_indep_stack"] for name in ("z", "w")]
        rows = self.numpy(guide.plates["data"].indices)
        return frames[0] == frames[1] and len(set(rows.tolist())) == 5

    def session(self, model: Callable, guide: Callable) -> Any:
        """The session from which compare gets its numbers."""
        self.ppl.clear_param_store()
        Session = importlib.import_module("gs_ppl.pyro.comparison").Session
        return Session(model, guide, (), {}, self.infer.TraceMeanField_ELBO(), 0)

    def compare(self, model: Callable, guide: Callable, *args: Any, **options: Any) -> Any:
        self.ppl.clear_param_store()
        return self.gs.compare(model, guide, *args, progress_bar=False, **options)

    def tanh(self, x: Array) -> Array:
        return self.torch.tanh(x)

    def reparam(self, program: Callable, config: dict[str, str]) -> Callable:
        """`transform` or `noise` by site: TransformReparam or GumbelSoftmaxReparam."""
        kinds = {
            "transform": self.infer.reparam.TransformReparam,
            "noise": self.gs.GumbelSoftmaxReparam,
        }
        config = {site: kinds[kind]() for site, kind in config.items()}
        return self.ppl.poutine.reparam(program, config=config)

    def nuts(self, model: Callable, seed: int, warmup: int, samples: int) -> dict[str, np.ndarray]:
        self.ppl.set_rng_seed(seed)
        mcmc = self.infer.MCMC(
            self.infer.NUTS(model), num_samples=samples, warmup_steps=warmup, disable_progbar=True
        )
        mcmc.run()
        return {name: self.numpy(value) for name, value in mcmc.get_samples().items()}

    def gradients(self, elbo: Any, model: Callable, guide: Callable, seeds: Iterable[int]) -> list:
        """Loss and gradient at the initial parameters, as in loss_and_gradient, for each seed."""
        return [self.loss_and_gradient(elbo, model, guide, seed) for seed in seeds]

    def train(self, elbo, model, guide, optim, rate, steps, seed=0, schedule=None) -> tuple:
        """Losses of SVI with an ELBO object, the final parameters, and other state."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(seed)
        programs = model, guide, getattr(self.ppl.optim, optim)({"lr": rate}), elbo
        svi = self.gs.AnnealedSVI(*programs, schedule) if schedule else self.infer.SVI(*programs)
        losses = np.array([svi.step() for _ in range(steps)])
        return losses, {n: self.numpy(value) for n, value in self.ppl.get_param_store().items()}

    def log_joint(self, program: Callable, values: dict[str, Any]) -> float:
        return float(self.seeded_log_joint(self.ppl.condition(program, data=values), 0))

    def given(self, program: Callable, values: dict[str, Any]) -> Callable:
        """The program with these values of its latent sites."""
        return self.ppl.condition(program, data=values)

    def at_each(self, f: Callable, batch: dict, tables: dict, argnums: tuple) -> tuple:
        """Value and gradients of f(values, tables) at each row of a batch of values."""
        found = []
        for i in range(len(next(iter(batch.values())))):
            args = [
                {name: x.detach().clone() for name, x in values.items()}
                for values in ({name: x[i] for name, x in batch.items()}, tables)
            ]
            by = [x.requires_grad_() for n in argnums for x in args[n].values()]
            value = f(*args)
            slopes = iter(self.torch.autograd.grad(value, by, materialize_grads=True))
            found.append((value, *({k: next(slopes) for k in args[n]} for n in argnums)))
        values, *gradients = zip(*found, strict=True)
        stack = lambda xs: self.numpy(self.torch.stack(xs))  # noqa: E731
        by_name = [{k: stack([row[k] for row in rows]) for k in rows[0]} for rows in gradients]
        return stack(values), tuple(by_name)

    def seeded_log_joint(self, program: Callable, seed: int) -> Array:
        self.ppl.set_rng_seed(seed)
        return self.ppl.poutine.trace(program).get_trace().log_prob_sum()

    def recorded(self, program: Callable, seed: int) -> dict[str, Any]:
        """The value of each site, deterministic ones too."""
        self.ppl.set_rng_seed(seed)
        trace = self.ppl.poutine.trace(program).get_trace()
        return {name: site["value"] for name, site in trace.nodes.items() if "value" in site}

    @property
    def vindex(self) -> Any:
        return importlib.import_module("pyro.ops.indexing").Vindex

    def totals(self, counts: np.ndarray) -> Any:
        """Counts in the type of the PPL's Binomial."""
        return self.array(counts)

    def start_anew(self) -> None:
        """Removes global state of the PPL: parameters and seed."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(0)

    # devices

    def why_no_gpu(self) -> str | None:
        """Why tests on a GPU cannot run; None if they can."""
        if self.torch.cuda.is_available():
            return None
        return f"torch {self.torch.__version__} sees no GPU"

    @contextmanager
    def other_place(self, gpu: bool) -> Iterator[Callable]:
        """Puts arrays on a device that is not the default one; the device exists in this
        context."""
        elsewhere = importlib.import_module("elsewhere")
        with nullcontext() if gpu else elsewhere.other_device():
            yield lambda x: x.to("cuda" if gpu else elsewhere.DEVICE)

    def bound(self, x: Array) -> Array:
        """Leaves an array on its device."""
        return x

    # the life of a guide

    def saved_of_both(self, locs: dict[str, float], logits: dict[str, np.ndarray]) -> None:
        """Parameters of auto_relaxed of this process, with values that another process has
        trained."""
        self.ppl.clear_param_store()
        kinds = {"0.locs": locs, "1.logits": logits}
        for kind, values in kinds.items():
            for name, value in values.items():
                self.ppl.param(f"AutoGuideList.{kind}.{name}", self.array(value))

    @property
    def saved_script(self) -> Any:
        return importlib.import_module("saved_pyro")

    def saved_logits(self, logits: dict[str, np.ndarray]) -> None:
        """Parameters of an automatic guide of this process, with logits that another process has
        trained."""
        self.ppl.clear_param_store()
        for name, a in logits.items():
            self.ppl.param(f"AutoGumbelSoftmax.logits.{name}", self.array(a))

    def predict(self, model, guide, params, samples, *args) -> dict[str, Array]:
        return self.infer.Predictive(model, guide=guide, num_samples=samples)(*args)

    def auto_logits(self, site: str) -> str:
        """Name of a parameter of an automatic guide."""
        return f"AutoGumbelSoftmax.logits.{site}"

    def bare_block(self, program: Callable, **options: Any) -> Callable:
        return self.ppl.poutine.block(program, **options)

    def guide_median(self, guide, params) -> dict[str, np.ndarray]:
        return {name: self.numpy(value) for name, value in guide.median().items()}

    def guide_quantiles(self, guide, params, quantiles) -> dict[str, np.ndarray]:
        found = guide.quantiles(quantiles)
        return {name: np.array([self.numpy(x) for x in value]) for name, value in found.items()}

    def plate_of_rows(self, name: str, size: int, rows: Array) -> Any:
        """A plate whose rows are given."""
        return self.ppl.plate(name, size, subsample=rows)

    def rows_and_value(self, program: Callable, plate: str, site: str, seed: int) -> tuple:
        self.ppl.set_rng_seed(seed)
        nodes = self.ppl.poutine.trace(program).get_trace().nodes
        return self.numpy(nodes[plate]["value"]), self.numpy(nodes[site]["value"])

    def trained_on(self, model, guide, elbo, schedule, batches) -> None:
        """Parameters after a step on each batch."""
        self.train_on(model, guide, elbo, schedule, batches)

    def trained_by_adam(self, model, guide, elbo, schedule, batches, rate) -> tuple:
        """Logits of the site z, and the other parameters by name, after a step on each batch."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(0)
        svi = self.gs.AnnealedSVI(model, guide, self.adam(rate), elbo, schedule)
        for batch in batches:
            svi.step(batch)
        found = {name: self.numpy(value) for name, value in self.ppl.get_param_store().items()}
        return found.pop(self.auto_logits("z")), found

    def adam(self, rate: float) -> Any:
        return self.ppl.optim.Adam({"lr": rate})

    def run(self, model, guide, elbo, schedule, steps, rate, **options) -> Any:
        """Runs AnnealedSVI.run."""
        return self._annealed(model, guide, elbo, schedule, rate).run(steps, **options)

    def where(self, condition: Array, x: float, y: float) -> Array:
        return self.torch.where(self.torch.as_tensor(condition), x, y)

    def rows_and_mask(self, program: Callable, plate: str, site: str, seed: int) -> tuple:
        self.ppl.set_rng_seed(seed)
        nodes = self.ppl.poutine.trace(program).get_trace().nodes
        return self.numpy(nodes[plate]["value"]), self.numpy(masks(nodes[site]["fn"])[0])

    def assign(self, model, guide, trained_on, *args, **options) -> tuple[dict, dict]:
        """Runs the guide once on the arguments of its training, then assign."""
        self.ppl.clear_param_store()
        if trained_on is not None:
            self.gs.discretize(guide)(*trained_on)
        found = self.gs.assign(model, guide, *args, **options)
        return tuple({name: self.numpy(x) for name, x in by_site.items()} for by_site in found)

    def init_to(self, **values: Array) -> Callable:
        return self.infer.autoguide.init_to_value(values=values)

    # where a run starts

    def starts(self, init: Callable, name: str, law: Any, seeds: int) -> np.ndarray:
        """Values of a site by an init_loc_fn, one for each seed."""
        self.ppl.set_rng_seed(0)
        return np.array([self.numpy(init({"name": name, "fn": law})) for _ in range(seeds)])

    def random_param(self, name: str, values: np.ndarray) -> Array:
        """A parameter that starts at one of these values, at random."""
        pick = self.torch.randint
        return self.ppl.param(name, lambda: self.array(values)[pick(len(values), ())])

    def best_start(self, make: Callable, name: str, seed: int, **options: Any) -> float:
        """The value of a parameter after best_start."""
        self.ppl.set_rng_seed(seed)
        self.gs.best_start(make, **options)
        return float(self.numpy(self.ppl.param(name)))
