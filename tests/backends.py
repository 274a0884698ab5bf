"""One interface over both sides, so that every parity test is written once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gs_ppl.rewriting import innermost

Array = Any


class PyroBackend:
    """torch and Pyro."""

    name = "pyro"

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        self.gs = importlib.import_module("gs_ppl.pyro")
        self.F = self.gs.functional
        self.ppl = importlib.import_module("pyro")
        self.native = importlib.import_module("pyro.distributions")
        self.infer = importlib.import_module("pyro.infer")

    def array(self, values: Any, dtype: str = "float64") -> Array:
        return self.torch.as_tensor(np.array(values), dtype=getattr(self.torch, dtype))

    def numpy(self, x: Array) -> np.ndarray:
        x = self.torch.as_tensor(x).detach()
        x = x.double() if x.is_floating_point() else x
        return x.resolve_conj().numpy().copy()

    def dtype(self, x: Array) -> str:
        return str(x.dtype).removeprefix("torch.")

    def noise(self, kind: str, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
        self.torch.manual_seed(seed)
        return getattr(self.F, f"{kind}_noise")(shape, dtype=getattr(self.torch, dtype))

    def sample(self, d: Any, seed: int | None, shape: tuple[int, ...] = ()) -> Array:
        if seed is not None:
            self.torch.manual_seed(seed)
        return d.rsample(shape) if d.has_rsample else d.sample(shape)

    def sample_and_score(self, d: Any, seed: int | None, shape: tuple[int, ...] = ()) -> tuple:
        """An own sample and its score, as an ELBO takes them."""
        value = self.sample(d, seed, shape)
        return value, d.log_prob(value)

    def kl(self, p: Any, q: Any) -> Array:
        return self.torch.distributions.kl_divergence(p, q)

    def mask(self, d: Any, mask: Any) -> Any:
        return d.mask(self.torch.as_tensor(mask))

    def bijection(self, constraint: Any) -> Any:
        return self.torch.distributions.biject_to(constraint)

    def check(self, constraint: Any, value: Array) -> np.ndarray:
        return constraint.check(value).numpy()

    def grad(self, f: Callable, *xs: Array) -> list[np.ndarray]:
        """Gradients of the scalar f(*xs)."""
        xs = [x.detach().clone().requires_grad_() for x in xs]
        return [self.numpy(g) for g in self.torch.autograd.grad(f(*xs), xs)]

    def functional_grad(self, f: Callable) -> Callable:
        return self.torch.func.grad(f)

    def jvp(self, f: Callable, x: Array, v: Array) -> tuple[np.ndarray, np.ndarray]:
        return tuple(map(self.numpy, self.torch.func.jvp(f, (x,), (v,))))

    def vmap(self, f: Callable) -> Callable:
        return self.torch.func.vmap(f, randomness="different")

    def traced_seed(self, seed: Array | int) -> None:
        """torch seeds no generator inside of compile and vmap, where each lane draws anew."""

    def stack(self, xs: list) -> Array:
        return self.torch.stack(xs)

    def jit(self, f: Callable) -> Callable:
        return self.torch.compile(f, backend="eager", fullgraph=True)

    # programs: `ppl` has sample, plate, param on both sides

    def trace(self, program: Callable, seed: int) -> dict[str, Any]:
        """Values of the sample sites."""
        self.ppl.set_rng_seed(seed)
        trace = self.ppl.poutine.trace(program).get_trace()
        return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}

    def loss(self, elbo: str, model: Callable, guide: Callable, particles: int, seed: int) -> float:
        """Negative ELBO; the guide's parameters are constants."""
        self.ppl.clear_param_store()
        self.ppl.set_rng_seed(seed)
        vectorize = elbo == "Trace_ELBO" and particles > 1  # Pyro's mean-field ELBO cannot
        loss = getattr(self.infer, elbo)(num_particles=particles, vectorize_particles=vectorize)
        return float(loss.loss(model, guide))

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

    def without_observed(self, program: Callable) -> Callable:
        """The prior over the latent sites, as a guide."""
        return self.ppl.poutine.block(
            program, hide_fn=lambda m: m["type"] == "sample" and m["is_observed"]
        )

    def enumerated_loss(self, model: Callable, guide: Callable, plates: int) -> float:
        self.ppl.clear_param_store()
        elbo = self.infer.TraceEnum_ELBO(max_plate_nesting=plates)
        return float(elbo.loss(model, guide))

    def infer_discrete(self, model: Callable, plates: int, seed: int) -> dict[str, Any]:
        self.ppl.set_rng_seed(seed)
        sampled = self.infer.infer_discrete(model, first_available_dim=-1 - plates)
        trace = self.ppl.poutine.trace(sampled).get_trace()
        return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}

    def nuts(self, model: Callable, seed: int, warmup: int, samples: int) -> dict[str, np.ndarray]:
        self.ppl.set_rng_seed(seed)
        mcmc = self.infer.MCMC(
            self.infer.NUTS(model), num_samples=samples, warmup_steps=warmup, disable_progbar=True
        )
        mcmc.run()
        return {name: self.numpy(value) for name, value in mcmc.get_samples().items()}


class NumPyroBackend:
    """JAX and NumPyro."""

    name = "numpyro"

    def __init__(self) -> None:
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)  # tests compare in float64 too
        self.jnp = self.jax.numpy
        self.gs = importlib.import_module("gs_ppl.numpyro")
        self.F = self.gs.functional
        self.ppl = importlib.import_module("numpyro")
        self.native = importlib.import_module("numpyro.distributions")
        self.infer = importlib.import_module("numpyro.infer")

    def array(self, values: Any, dtype: str = "float64") -> Array:
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

    def check(self, constraint: Any, value: Array) -> np.ndarray:
        return np.asarray(constraint(value))

    def grad(self, f: Callable, *xs: Array) -> list[np.ndarray]:
        grads = self.jax.grad(f, argnums=tuple(range(len(xs))))(*xs)
        return [self.numpy(g) for g in grads]

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

    def trace(self, program: Callable, seed: int) -> dict[str, Any]:
        handlers = self.ppl.handlers
        trace = handlers.trace(handlers.seed(program, self.jax.random.key(seed))).get_trace()
        sites = (site for site in trace.values() if site["type"] == "sample")
        return {site["name"]: site["value"] for site in sites if not site["is_observed"]}

    def loss(self, elbo: str, model: Callable, guide: Callable, particles: int, seed: int) -> float:
        loss = getattr(self.infer, elbo)(num_particles=particles)
        return float(loss.loss(self.jax.random.key(seed), {}, model, guide))

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

    def without_observed(self, program: Callable) -> Callable:
        return self.ppl.handlers.block(
            program, hide_fn=lambda m: m["type"] == "sample" and m["is_observed"]
        )

    def enumerated_loss(self, model: Callable, guide: Callable, plates: int) -> float:
        elbo = self.infer.TraceEnum_ELBO(max_plate_nesting=plates)
        return float(elbo.loss(self.jax.random.key(0), {}, model, guide))

    def infer_discrete(self, model: Callable, plates: int, seed: int) -> dict[str, Any]:
        infer = importlib.import_module("numpyro.contrib.funsor").infer_discrete
        sampled = infer(model, first_available_dim=-1 - plates, rng_key=self.jax.random.key(seed))
        return self.trace(sampled, seed)

    def nuts(self, model: Callable, seed: int, warmup: int, samples: int) -> dict[str, np.ndarray]:
        mcmc = self.infer.MCMC(
            self.infer.NUTS(model), num_samples=samples, num_warmup=warmup, progress_bar=False
        )
        mcmc.run(self.jax.random.key(seed))
        return {name: self.numpy(value) for name, value in mcmc.get_samples().items()}


BACKENDS = {"pyro": PyroBackend, "numpyro": NumPyroBackend}
