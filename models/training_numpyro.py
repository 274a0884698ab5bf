"""Training and evaluation in NumPyro: many steps in one jitted scan, checkpoints in npz."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpyro import handlers
from numpyro.contrib.module import nnx_module
from numpyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

import gs_ppl.numpyro as gs
from gs_ppl.models.layers_numpyro import make_mlp
from gs_ppl.models.training import MODELS, Settings


class Trainer:
    """One run: see gs_ppl.models.training."""

    def __init__(
        self, settings: Settings, images: np.ndarray, labelled: tuple[np.ndarray, ...] = ()
    ) -> None:
        self.settings, self.images = settings, jnp.asarray(images)
        self.labelled = tuple(map(jnp.asarray, labelled))
        program = importlib.import_module(f"gs_ppl.models.{settings.model}_numpyro")
        network = getattr(program, MODELS[settings.model])
        self.network = network(**settings.network(images), rngs=nnx.Rngs(settings.seed))
        guide, loss = self._handle(self.network.guide), make_loss(settings)
        if settings.baseline:
            widths = self.images.shape[-1], settings.baseline, 1
            guide = with_baseline(guide, make_mlp(*widths, rngs=nnx.Rngs(settings.seed + 1)))
        self.svi = gs.AnnealedSVI(
            self._handle(self.network.model),
            loss.wrap(guide) if hasattr(loss, "wrap") else guide,
            make_optimizer(settings),
            loss,
            settings.schedule,
        )
        first = settings.inputs(self.images[: settings.batch])
        self.state = self.svi.init(jax.random.key(settings.seed), *first)
        self.rows = jax.random.key(settings.seed + 1)

    def _handle(self, program: Callable) -> Callable:
        """A program with its discrete latents relaxed or enumerated."""
        if self.settings.discrete:
            return program
        if self.settings.enumerated:
            return gs.config_enumerate(program)
        family = getattr(gs, self.settings.family)
        return gs.relax(program, family=family, objective=self.settings.objective)

    @property
    def step(self) -> int:
        return int(self.state.optim_state[0])

    @property
    def params(self) -> dict[str, Any]:
        return self.svi.get_params(self.state)

    def advance(self, steps: int) -> np.ndarray:
        self.state, losses = self._advance(self.state, self.images, self.labelled, steps)
        return np.asarray(losses) / self.settings.batch

    @partial(jax.jit, static_argnums=(0, 4))
    def _advance(
        self, state: Any, images: Array, labelled: tuple[Array, ...], steps: int
    ) -> tuple[Any, Array]:
        def step(state: Any, _: None) -> tuple[Any, Array]:
            # the rows of a step do not depend on where the run was resumed
            key = jax.random.fold_in(self.rows, state.optim_state[0])
            rows = jax.random.randint(key, (self.settings.batch,), 0, len(images))
            inputs = self.settings.inputs(self._take(images, rows))
            if labelled:
                shape, total = (self.settings.labelled,), len(labelled[0])
                rows = jax.random.randint(jax.random.fold_in(key, 1), shape, 0, total)
                inputs += tuple(part[rows] for part in labelled)
            return self.svi.update(state, *inputs)

        return jax.lax.scan(step, state, length=steps)

    def _take(self, images: Array, rows: Array) -> Array:
        return images[rows]

    def save(self, file: BinaryIO) -> None:
        self.save_state(self.state, file)

    def save_state(self, state: Any, file: BinaryIO) -> None:
        np.savez(file, *_without_keys(state))

    def load(self, file: BinaryIO) -> None:
        with np.load(file, allow_pickle=False) as saved:
            leaves = [saved[name] for name in saved.files]
        self.state = _with_keys(leaves, self.state)

    def bound(self, images: np.ndarray, samples: int, seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        batches = np.array_split(images, max(1, len(images) // 50))
        return np.concatenate(
            [
                _bound(self.network, self.settings, self.params, jnp.asarray(batch), samples, k)
                for batch, k in zip(batches, jax.random.split(key, len(batches)), strict=True)
            ]
        )

    def means(self, images: np.ndarray, from_guide: bool, seed: int) -> np.ndarray:
        inputs = self.settings.inputs(jnp.asarray(images))
        key = jax.random.key(seed)
        guide, model = _discrete(self.network, self.params)
        if from_guide:
            trace = handlers.trace(handlers.seed(guide, key)).get_trace(*inputs)
            model = handlers.replay(model, trace)
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*inputs)
        return np.asarray(list(trace.values())[-1]["fn"].mean)

    def classify(self, images: np.ndarray) -> np.ndarray:
        guide, _ = _discrete(self.network, self.params)
        seeded = handlers.seed(guide, jax.random.key(0))
        batches = np.array_split(images, max(1, len(images) // 1000))
        traces = (handlers.trace(seeded).get_trace(jnp.asarray(batch)) for batch in batches)
        return np.concatenate([trace["y"]["fn"].probs for trace in traces])


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    if settings.optimizer != "AdamW":
        return getattr(optax, settings.optimizer.lower())(settings.learning_rate)
    decay = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return optax.adamw(decay, weight_decay=settings.weight_decay)


def make_loss(settings: Settings) -> ELBO:
    if settings.enumerated:
        return TraceEnum_ELBO(max_plate_nesting=1)
    return getattr(gs, settings.family)() if settings.discrete else TraceMeanField_ELBO()


def with_baseline(guide: Callable, network: nnx.Module) -> Callable:
    """Declares NVIL's learned baseline at each site: a network of all arguments of the guide."""

    def program(*inputs: Array) -> None:
        of_rows = nnx_module("baseline", network)
        baseline = {
            "nn_baseline": lambda x: of_rows(x).squeeze(-1),
            "nn_baseline_input": jnp.concatenate(inputs, -1),
        }
        with handlers.infer_config(config_fn=lambda site: {"baseline": baseline}):
            guide(*inputs)

    return program


# --- checkpoints: a typed key is saved as its data ------------------------------------------------


def _is_key(x: Any) -> bool:
    return isinstance(x, Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(state: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(state)
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]


def _with_keys(saved: list[np.ndarray], like: Any) -> Any:
    """The state with these arrays, with the structure, shapes and types of another state."""
    kinds, wanted = ([(x.shape, x.dtype) for x in xs] for xs in (saved, _without_keys(like)))
    if kinds != wanted:
        raise ValueError(f"arrays of {wanted} are wanted, got {kinds}")
    leaves, tree = jax.tree.flatten(like)
    return tree.unflatten(
        jax.random.wrap_key_data(x) if _is_key(y) else jnp.asarray(x)
        for x, y in zip(saved, leaves, strict=True)
    )


# --- evaluation -----------------------------------------------------------------------------------


def _discrete(network: Any, params: Any) -> tuple[Callable, Callable]:
    """Guide and model, made discrete, at these parameters."""
    programs = network.guide, network.model
    return tuple(handlers.substitute(gs.discretize(f), data=params) for f in programs)


@partial(jax.jit, static_argnums=(0, 1, 4))
def _bound(
    network: Any, settings: Settings, params: Any, images: Array, samples: int, key: Array
) -> Array:
    """-log mean of the importance weights, by image; twenty samples at a time."""
    inputs = settings.inputs(images)

    def log_weights(key: Array) -> Array:
        guide, model = _discrete(network, params)
        guide_trace = handlers.trace(handlers.seed(guide, key)).get_trace(*inputs)
        model_trace = handlers.trace(handlers.replay(model, guide_trace)).get_trace(*inputs)
        return _log_density(model_trace) - _log_density(guide_trace)

    keys = jax.random.split(key, samples)
    weights = jax.lax.map(log_weights, keys, batch_size=20)
    return jnp.log(samples) - jax.scipy.special.logsumexp(weights, 0)


def _log_density(trace: dict[str, Any]) -> Array:
    sites = (site for site in trace.values() if site["type"] == "sample")
    return sum(site["fn"].log_prob(site["value"]) for site in sites)
