"""Steps of the auto-encoder in JAX, compiled: name -> call that takes several steps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpyro.infer import SVI, TraceMeanField_ELBO

from gs_ppl import temperature
from gs_ppl.models.vae_numpyro import VAE
from gs_ppl.numpyro import AnnealedSVI, relax
from gs_ppl.numpyro import functional as F

OURS, THEIRS, BY_HAND = "AnnealedSVI", "SVI at one temperature", "jitted loop"
STARTED_INSIDE = "AnnealedSVI, init inside of jit"
ADAM = optax.adam(1e-3)
SCHEDULE = temperature.exponential(rate=1e-4, minimum=0.5)


def make(
    images: np.ndarray, variables: int, classes: int, batch: int, steps: int
) -> dict[str, Callable[[], object]]:
    images = jnp.asarray(images)

    def loop(start: Any, update: Callable[[Any, Array], tuple[Any, Array]]) -> Callable[[], object]:
        def step(state: tuple, _: None) -> tuple[tuple, Array]:
            key, of_rows = jax.random.split(state[0])
            x = images[jax.random.randint(of_rows, (batch,), 0, len(images))]
            inner, loss = update(state[1], x)
            return (key, inner), loss

        advance = jax.jit(partial(jax.lax.scan, step, length=steps))
        state = jax.random.key(0), start

        def call() -> None:
            nonlocal state
            state, losses = advance(state)
            jax.block_until_ready(losses)

        return call

    vae = VAE(variables, classes, pixels=images.shape[-1], rngs=nnx.Rngs(0))
    svi, theirs, by_hand = make_svi(vae), make_theirs(vae), Loop(vae)
    return {
        OURS: loop(svi.init(jax.random.key(1), images[:batch]), svi.update),
        THEIRS: loop(theirs.init(jax.random.key(1), images[:batch]), theirs.update),
        BY_HAND: loop(by_hand.init(jax.random.key(1)), by_hand.update),
    }


def first_steps(
    images: np.ndarray, variables: int, classes: int, batch: int
) -> dict[str, Callable[[], object]]:
    """Time from existing programs and networks to the end of the first step of a process."""
    x, key = jnp.asarray(images[:batch]), jax.random.key(1)
    vae = VAE(variables, classes, pixels=images.shape[-1], rngs=nnx.Rngs(0))

    def of_svi(make: Callable, start: Callable = lambda init: init) -> object:
        jax.clear_caches()
        svi = make(vae)
        return jax.block_until_ready(jax.jit(svi.update)(start(svi.init)(key, x), x)[1])

    def of_loop() -> object:
        jax.clear_caches()
        loop = Loop(vae)
        return jax.block_until_ready(jax.jit(loop.update)(loop.init(key), x)[1])

    return {
        OURS: partial(of_svi, make_svi),
        STARTED_INSIDE: partial(of_svi, make_svi, jax.jit),
        THEIRS: partial(of_svi, make_theirs),
        BY_HAND: of_loop,
    }


def make_svi(vae: VAE) -> AnnealedSVI:
    return AnnealedSVI(relax(vae.model), relax(vae.guide), ADAM, TraceMeanField_ELBO(), SCHEDULE)


def make_theirs(vae: VAE) -> SVI:
    """NumPyro's own SVI of the same programs: at one temperature, and nothing is checked."""
    return SVI(relax(vae.model, 0.5), relax(vae.guide, 0.5), ADAM, TraceMeanField_ELBO())


class Loop:
    """The same networks, objective and optimizer, without NumPyro and Flax."""

    def __init__(self, vae: VAE) -> None:
        self.shape = vae.variables, vae.classes
        linear = vae.encoder.layers[0], vae.decoder.layers[0]
        self.weights = [(layer.kernel[...], layer.bias[...]) for layer in linear]

    def init(self, key: Array) -> tuple:
        return 0, key, self.weights, ADAM.init(self.weights)

    def loss(self, weights: list, tau: Array, x: Array, key: Array) -> Array:
        (A, b), (C, d) = weights
        logits = (x @ A + b).reshape(len(x), *self.shape)
        y = F.gumbel_softmax_draw(tau, logits, F.exponential_noise(key, logits.shape))[0]
        log_q = F.log_softmax(logits)
        kl = (jnp.exp(log_q) * (log_q + math.log(logits.shape[-1]))).sum()
        pixels = y.reshape(len(x), -1) @ C + d
        # optax's cross-entropy takes two logarithms
        return (jax.nn.softplus(pixels) - x * pixels).sum() + kl

    def update(self, state: tuple, x: Array) -> tuple[tuple, Array]:
        t, key, weights, adam = state
        key, of_noise = jax.random.split(key)
        tau = jnp.asarray(SCHEDULE(t), x.dtype)
        loss, gradient = jax.value_and_grad(self.loss)(weights, tau, x, of_noise)
        updates, adam = ADAM.update(gradient, adam)
        return (t + 1, key, optax.apply_updates(weights, updates), adam), loss
