"""Data-parallel training in NumPyro: arrays are laid out over a mesh of devices, and jit does the
rest.

One process may have several devices, and each of several processes its own: after
jax.distributed.initialize a mesh has those of all of them. Keys stay as they are: what jax.random
draws under jit does not depend on the layout.
"""

from typing import Any, BinaryIO

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gs_ppl.models.training import Settings
from gs_ppl.models.training_numpyro import Trainer


def make_mesh(devices: list[Any] | None = None) -> Mesh:
    """One axis, rows, over these devices; None: over all devices, also those of other processes."""
    return Mesh(np.array(devices or jax.devices()), ("rows",))


def lay_out(tree: Any, mesh: Mesh, rows: int) -> Any:
    """Splits arrays with that many rows among the devices; the others are on each device."""
    by_rows, whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
    return jax.device_put(
        tree, jax.tree.map(lambda x: by_rows if x.shape[:1] == (rows,) else whole, tree)
    )


class ParallelTrainer(Trainer):
    """The run of Trainer, with images and minibatches split by rows and the rest on each device."""

    def __init__(self, settings: Settings, images: np.ndarray, mesh: Mesh) -> None:
        super().__init__(settings, images)
        self.by_rows, self.whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
        self.images = jax.device_put(images, self.by_rows)
        self.state = self._spread(self.state)

    def _take(self, images: Array, rows: Array) -> Array:
        return jax.lax.with_sharding_constraint(images[rows], self.by_rows)

    def _spread(self, state: Any) -> Any:
        """The value on each device; device_put cannot send keys to those of other processes."""
        return jax.jit(lambda state: state, out_shardings=self.whole)(state)

    def _here(self) -> Any:
        """The state, on a device of this process only."""
        return jax.tree.map(lambda x: x.addressable_data(0), self.state)

    @property
    def params(self) -> dict[str, Any]:
        return self.svi.get_params(self._here())

    def save(self, file: BinaryIO) -> None:
        self.save_state(self._here(), file)

    def load(self, file: BinaryIO) -> None:
        self.state = self._here()
        super().load(file)
        self.state = self._spread(self.state)
