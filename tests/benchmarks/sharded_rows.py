"""Memory of each device, for a million rows with their own logits, over 1, 2, 4 devices.

python tests/benchmarks/sharded_rows.py --json tests/benchmarks/sharded_rows.json
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from record import versions

import gs_ppl.numpyro as gs
from gs_ppl import temperature
from gs_ppl.models.distributed_numpyro import lay_out, make_mesh

DEVICES = (1, 2, 4)
CLASSES, MINIBATCH = 10, 1_000


def measure(rows: int) -> list[dict]:
    """Bytes of one device: kept between steps, and in addition during a step."""
    locs, x = jnp.linspace(-3, 3, CLASSES), np.random.default_rng(0).normal(size=rows)

    def model(x):
        with numpyro.plate("data", rows, subsample_size=MINIBATCH) as chosen:
            z = numpyro.sample("z", dist.Categorical(jnp.full(CLASSES, 1 / CLASSES)))
            numpyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[chosen])

    elbo, schedule = numpyro.infer.TraceMeanField_ELBO(), temperature.constant(0.5)
    x, found = jnp.asarray(x, jnp.float32), []
    for devices in DEVICES:
        guide = gs.AutoGumbelSoftmax(model)  # new: the state donates its first logits
        svi = gs.AnnealedSVI(gs.relax(model), guide, optax.adam(0.1), elbo, schedule)
        start = svi.init(jax.random.key(0), x)
        state, data = lay_out((start, x), make_mesh(jax.devices()[:devices]), rows)
        step = jax.jit(svi.update, donate_argnums=0).lower(state, data).compile()
        used = step.memory_analysis()
        _, loss = step(state, data)
        kept, results = used.argument_size_in_bytes, used.output_size_in_bytes
        beside = used.temp_size_in_bytes + results - used.alias_size_in_bytes
        row = {"devices": devices, "kept": kept, "beside": beside, "loss": float(loss)}
        found.append(row)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    record = {
        "command": " ".join(["python", "tests/benchmarks/sharded_rows.py", *sys.argv[1:]]),
        "seed": 0,
        "rows": arguments.rows,
        "classes": CLASSES,
        "versions": versions(),
        "devices": measure(arguments.rows),
    }
    arguments.json.write_text(json.dumps(record, indent=1) + "\n")
