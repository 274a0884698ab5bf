"""Compares DistributedDataParallel and Lightning with one process on the joined batches.

torchrun starts it twice. It prints the differences after 20 steps in float64, with a restart in the
middle. Only for this test, each process draws the noise of all rows of a batch, and keeps its part.
"""

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from torch import distributed

from gs_ppl.models import distributed_pyro as parallel
from gs_ppl.models.training import Settings
from gs_ppl.pyro import distributions

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import _lightning

SETTINGS = Settings(variables=3, classes=4, rate=0.1, every=2, minimum=0.2, batch=6, steps=20)
IMAGES = np.random.default_rng(0).integers(0, 2, (60, 10)).astype(np.float64)
EPOCH = 10  # steps
now = {"step": 0}


def noise_of_own_rows(shape, **form):
    rank, processes = parallel.position()
    torch.manual_seed(now["step"])
    return noise((shape[0] * processes, *shape[1:]), **form)[rank::processes]


def remember_step(loss, inputs):
    now["step"] = inputs[0]


def make_loss_module(settings, images):
    loss = make(settings, images)
    loss.register_forward_pre_hook(remember_step)
    return loss


def parameters(loss):
    return {name: x.detach().clone() for name, x in loss.named_parameters()}


def by_one_process():
    """Training without an engine."""
    loss, loader = make_loss_module(SETTINGS, IMAGES), parallel.make_loader(SETTINGS, IMAGES)
    optimizer, decay = parallel.make_optimizer(SETTINGS, loss)
    for step in range(SETTINGS.steps):
        loader.sampler.set_epoch(step // EPOCH)
        (x,) = list(loader)[step % EPOCH]
        optimizer.zero_grad()
        loss(step, x).backward()
        optimizer.step()
        decay.step()
    return parameters(loss)


def by_torch():
    first, second = (parallel.ParallelTrainer(SETTINGS, IMAGES) for _ in range(2))
    first.advance(7)
    file = io.BytesIO()
    first.save(file)
    file.seek(0)
    second.load(file)
    second.advance(SETTINGS.steps - 7)
    return parameters(second.loss)


def by_lightning():
    options = {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": "ddp",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    first, run = Trainer(max_steps=7, **options), _lightning.LightningVAE(SETTINGS, IMAGES)
    first.fit(run)
    first.save_checkpoint("resumed.ckpt")
    run = _lightning.LightningVAE(SETTINGS, IMAGES)
    Trainer(max_steps=SETTINGS.steps, **options).fit(run, ckpt_path="resumed.ckpt")
    return parameters(run.loss)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # warnings of Lightning
    torch.set_default_dtype(torch.float64)
    make, noise = parallel.make_loss_module, distributions.F.noise_to_draw_from
    parallel.make_loss_module = _lightning.make_loss_module = make_loss_module
    distributions.F.noise_to_draw_from = noise_of_own_rows
    one = by_one_process()
    distributed.init_process_group("gloo")
    runs = {"ddp": by_torch(), "lightning": by_lightning()}
    if parallel.position()[0] == 0:
        start = dict(make(SETTINGS, IMAGES).named_parameters())
        off = {
            name: max(float((two[n] - x).abs().max()) for n, x in one.items())
            for name, two in runs.items()
        }
        moved = min(float((start[n] - x).abs().max()) for n, x in one.items())
        Path("off.json").write_text(json.dumps(off | {"moved": moved}))
    distributed.barrier()
    distributed.destroy_process_group()
