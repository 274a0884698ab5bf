"""A run on two devices in float64, with one process or two. The program is started once for each
process, with its number. The first process writes the parameters after 20 steps.

    python two_processes_numpyro.py FILE PROCESSES HOST:PORT PROCESS
"""

import io
import sys
from typing import Any

import jax
import numpy as np

SETTINGS = {"variables": 3, "classes": 4, "rate": 0.1, "every": 2, "minimum": 0.2, "batch": 6}
IMAGES = np.random.default_rng(0).integers(0, 2, (60, 10)).astype(np.float64)


def params(devices: int, steps: tuple[int, ...] = (20,)) -> dict[str, np.ndarray]:
    """Parameters after these steps; each part has a new trainer, which resumes from the last
    part."""
    from gs_ppl.models.distributed_numpyro import ParallelTrainer, make_mesh
    from gs_ppl.models.training import Settings

    file = io.BytesIO()
    for part in steps:
        settings = Settings(**SETTINGS, steps=sum(steps))
        trainer = ParallelTrainer(settings, IMAGES, make_mesh(jax.devices()[:devices]))
        trainer.state = in_double(trainer.state)
        if file.getbuffer().nbytes:
            file.seek(0)
            trainer.load(file)
        trainer.advance(part)
        file = io.BytesIO()
        trainer.save(file)
    leaves = jax.tree_util.tree_leaves_with_path(trainer.params)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


@jax.jit
def in_double(state: Any) -> Any:
    """The state in float64: networks are made in float32."""
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == np.float32 else x, state)


if __name__ == "__main__":
    file, processes, coordinator, process = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(coordinator, int(processes), int(process))
    found = params(int(processes), (10, 10))
    if jax.process_index() == 0:
        np.savez(file, **found)
