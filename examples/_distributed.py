"""The work of each process of train_distributed.py."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gs_ppl.models.data import binarize, load_digits
from gs_ppl.models.training import Settings
from gs_ppl.models.training_files import load_newest, resume, save_checkpoint


def work(arguments: argparse.Namespace) -> None:
    """One process of a run; writes its row to the folder of the run."""
    names = {field.name for field in dataclasses.fields(Settings)}
    settings = Settings(**{name: x for name, x in vars(arguments).items() if name in names})
    counts, _ = load_digits()
    images = binarize((counts[:1500] / 16).astype(np.float32), seed=0)
    by_engine = {"ddp": by_ddp, "lightning": by_lightning, "jax": by_jax}
    row = by_engine[arguments.engine](arguments, settings, images)
    (arguments.worker / f"row_{row['process']}.json").write_text(json.dumps(row))


def by_ddp(arguments: argparse.Namespace, settings: Settings, images: np.ndarray) -> dict:
    """The process that torchrun starts."""
    import torch
    from torch import distributed

    from gs_ppl.models.distributed_pyro import ParallelTrainer, position

    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        trainer = ParallelTrainer(settings, images)
        return fit(trainer, arguments, settings, position()[0], distributed.barrier)
    finally:
        distributed.destroy_process_group()


def by_jax(arguments: argparse.Namespace, settings: Settings, images: np.ndarray) -> dict:
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    if arguments.processes != [1]:
        (processes,) = arguments.processes
        jax.distributed.initialize(arguments.coordinator, processes, arguments.process)
    from gs_ppl.models.distributed_numpyro import ParallelTrainer, make_mesh

    trainer = ParallelTrainer(settings, images, make_mesh())

    def wait() -> None:
        sync_global_devices("checkpoint")

    return fit(trainer, arguments, settings, jax.process_index(), wait)


def fit(
    trainer: Any,
    arguments: argparse.Namespace,
    settings: Settings,
    process: int,
    wait: Callable[[], None],
) -> dict[str, Any]:
    """Runs from the newest checkpoint to the last step; only the first process writes."""
    curves: dict[str, Any] = {}
    if process == 0:
        curves = resume(trainer, dataclasses.asdict(settings), arguments.worker)
    wait()
    if process:
        load_newest(trainer, arguments.worker)
    losses, clock = np.array([np.nan]), Clock()
    while trainer.step < settings.steps:
        losses = trainer.advance(min(arguments.checkpoint_every, settings.steps - trainer.step))
        clock.tick(trainer.step)
        if process == 0:
            curves["losses"].append([trainer.step, float(losses.mean())])
            save_checkpoint(trainer, curves, arguments.worker)
        wait()
    return {"process": process, "loss": float(losses.mean()), **clock.by_step()}


def by_lightning(arguments: argparse.Namespace, settings: Settings, images: np.ndarray) -> dict:
    """The run that starts its other processes itself."""
    from _lightning import LightningVAE
    from lightning import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Ticks(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step % every == 0:
                clock.tick(trainer.global_step)

    clock, every = Clock(), arguments.checkpoint_every
    keep = ModelCheckpoint(arguments.worker, every_n_train_steps=every, save_last=True)
    trainer = Trainer(
        max_steps=settings.steps,
        devices=arguments.processes[0],
        strategy="ddp",
        callbacks=[keep, Ticks()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    newest = arguments.worker / "last.ckpt"
    trainer.fit(LightningVAE(settings, images), ckpt_path=newest if newest.exists() else None)
    loss = float(trainer.callback_metrics.get("loss", np.nan))
    return {"process": trainer.global_rank, "loss": loss, **clock.by_step()}


class Clock:
    """Measures the time of a step; steps before the first tick, which compile, do not count."""

    def __init__(self) -> None:
        self.ticks: list[tuple[int, float, float]] = []

    def tick(self, step: int) -> None:
        self.ticks.append((step, time.perf_counter(), time.process_time()))

    def by_step(self) -> dict[str, float]:
        if len(self.ticks) < 2:  # too few steps were left
            return {"wall_ms": np.nan, "cpu_ms": np.nan}
        (first, *began), (last, *ended) = self.ticks[0], self.ticks[-1]
        wall, cpu = (1e3 * (b - a) / (last - first) for a, b in zip(began, ended, strict=True))
        return {"wall_ms": wall, "cpu_ms": cpu}
