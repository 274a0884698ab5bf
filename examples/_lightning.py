"""The same data-parallel training by Lightning's Trainer, which starts the processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightning import LightningModule
from torch import Tensor

from gs_ppl.models.distributed_pyro import batches, make_loader, make_loss_module, make_optimizer
from gs_ppl.models.training import Settings


class LightningVAE(LightningModule):
    """Data for a Trainer with max_steps, and checkpoints at any step (every_n_train_steps)."""

    def __init__(self, settings: Settings, images: np.ndarray) -> None:
        super().__init__()
        self.settings, self.images = settings, images
        self.loss = make_loss_module(settings, images)

    def train_dataloader(self) -> Iterator[list[Tensor]]:
        """Continues at the step of a checkpoint; Lightning itself would start the epoch again."""
        return batches(make_loader(self.settings, self.images), self.global_step)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.loss(self.global_step, *batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, decay = make_optimizer(self.settings, self.loss)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": decay, "interval": "step"},
        }
