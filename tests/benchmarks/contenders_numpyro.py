"""What is timed in JAX, all of it compiled: name -> call, for a shape and an extent of the work."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gs_ppl.numpyro import GumbelSoftmax

try:
    from tensorflow_probability.substrates.jax.distributions import RelaxedOneHotCategorical
except ImportError:  # the `bench` extra has it
    RelaxedOneHotCategorical = None

PACKAGES = ["jax", "numpyro", "tfp-nightly"]
OURS, PEER = "GumbelSoftmax", "TFP RelaxedOneHotCategorical"
SWEPT = [OURS, PEER, "floor"]
EXTENTS = ["rsample", "rsample, log_prob", "rsample, log_prob, value_and_grad"]
TEMPERATURE = 1.0


def pin() -> None:
    """XLA makes as many threads as the process may use processors."""


def make(shape: tuple[int, ...], extent: str, compiled: bool) -> dict[str, Callable[[], object]]:
    key = jax.random.key(0)
    a, w = (jax.random.normal(jax.random.key(i), shape) for i in (1, 2))

    def of_ours(key: jax.Array, a: jax.Array) -> tuple:
        d = GumbelSoftmax(TEMPERATURE, logits=a)
        if extent == "rsample":
            return d.rsample(key)
        y, intermediates = d.sample_with_intermediates(key)
        return y, d.log_prob(y, intermediates)

    def of_peer(key: jax.Array, a: jax.Array) -> tuple:
        d = RelaxedOneHotCategorical(TEMPERATURE, logits=a)
        y = d.sample(seed=key)
        return y if extent == "rsample" else (y, d.log_prob(y))

    def call(draw: Callable) -> Callable[[], object]:
        def loss(a: jax.Array, key: jax.Array) -> jax.Array:
            y, score = draw(key, a)
            return (w * y).sum() + score.sum()

        if extent.endswith("value_and_grad"):
            f = jax.jit(jax.value_and_grad(loss))
            return lambda: jax.block_until_ready(f(a, key))
        f = jax.jit(draw)
        return lambda: jax.block_until_ready(f(key, a))

    contenders = {OURS: call(of_ours)}
    if RelaxedOneHotCategorical is not None:
        contenders[PEER] = call(of_peer)
    floor = jax.jit(lambda key: jax.random.exponential(key, shape, jnp.float32))
    contenders["floor"] = lambda: jax.block_until_ready(floor(key))
    return contenders
