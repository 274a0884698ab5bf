"""The contenders in JAX, all compiled: name -> call, for a shape and a task."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from gs_ppl.numpyro import GumbelSoftmax

try:
    from tensorflow_probability.substrates.jax.distributions import RelaxedOneHotCategorical
except ImportError:  # the `bench` extra has it
    RelaxedOneHotCategorical = None

OURS, PEER = "GumbelSoftmax", "TFP RelaxedOneHotCategorical"
SWEPT = [OURS, PEER, "floor"]
EXTENTS = ["rsample", "rsample, log_prob", "rsample, log_prob, value_and_grad"]
TEMPERATURE = 1.0


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
            return partial(wait, jax.jit(jax.value_and_grad(loss)), a, key)
        return partial(wait, jax.jit(draw), key, a)

    contenders = {OURS: call(of_ours)}
    if RelaxedOneHotCategorical is not None:
        contenders[PEER] = call(of_peer)
    # one flat exponential draw: in the shape of the sample it is slower, and compiles for seconds
    contenders["floor"] = partial(wait, floor, key, math.prod(shape))
    return contenders


def wait(f: Callable, *arguments: object) -> object:
    return jax.block_until_ready(f(*arguments))


@partial(jax.jit, static_argnums=1)
def floor(key: jax.Array, size: int) -> jax.Array:
    return jax.random.exponential(key, (size,), jnp.float32)


def peak(call: partial) -> int:
    """Bytes of the results and of the scratch memory of the compiled call, as XLA plans them."""
    f, *arguments = call.args
    plan = f.lower(*arguments).compile().memory_analysis()
    return plan.output_size_in_bytes + plan.temp_size_in_bytes
