"""Data-parallel training in Pyro: the loss as a module, for DistributedDataParallel and Lightning.

Each process has all parameters and its own rows of a batch; the engine averages the gradients.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gs_ppl.pyro as gs
from gs_ppl.models.training import Settings
from gs_ppl.models.training_pyro import decay, handle, make_loss
from gs_ppl.models.vae_pyro import VAE


def position() -> tuple[int, int]:
    """The number of this process, and of all processes."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


class DrawnAlike(Messenger):
    """Latents outside of the plates of rows have the same draws in each process.

    A plate is one of rows if it has more rows than this process gets: a minibatch of a plate
    with `size=` all rows, which also gives the loss its right scale. Sites inside use torch's own
    generator, which has another seed in each process.
    """

    def start(self, *seed: int) -> None:
        """The draws of the coming step; several particles take them one after the other."""
        self._seeds = np.random.default_rng(seed)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        of_rows = any(f.full_size not in (None, f.size) for f in msg["cond_indep_stack"])
        if msg["is_observed"] or msg["done"] or of_rows or site_is_subsample(msg):
            return
        gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(gpus):
            torch.manual_seed(int(self._seeds.integers(2**63)))
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["done"] = True


class Loss(nn.Module):
    """Mean loss of the rows of a batch, at the temperature and with the noise of a step.

    Draws of a step depend only on seed, step and process: a resumed run has the same draws.
    """

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.network, self.settings, self.alike = network, settings, DrawnAlike()
        model, guide = (handle(program, settings) for program in (network.model, network.guide))
        self.elbo = make_loss(settings)(model, self.alike(guide))

    def check(self, *inputs: Tensor) -> None:
        """The check that AnnealedSVI makes before its first step."""
        self.alike.start(self.settings.seed)
        with gs.at_temperature(self.settings.schedule(0)):
            gs.check(self.elbo.model, self.elbo.guide, self.elbo.elbo, *inputs)

    def forward(self, step: int, *inputs: Tensor) -> Tensor:
        rank, _ = position()
        self.alike.start(self.settings.seed, step)
        own = np.random.SeedSequence((self.settings.seed, step, rank + 1))
        torch.manual_seed(int(own.generate_state(1)[0]))
        with gs.at_temperature(self.settings.schedule(step)):
            return self.elbo(*inputs) / len(inputs[0])


def make_loss_module(settings: Settings, images: np.ndarray) -> Loss:
    """Model and guide, with the same initial weights in each process."""
    pyro.clear_param_store()
    torch.manual_seed(settings.seed)
    loss = Loss(VAE(**settings.network(images)), settings)
    loss.check(torch.as_tensor(images[: settings.batch]))
    return loss


def make_optimizer(settings: Settings, loss: Loss) -> tuple[Optimizer, LambdaLR]:
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizer = getattr(torch.optim, settings.optimizer)(loss.parameters(), **options)
    return optimizer, LambdaLR(optimizer, lambda step: decay(step, settings))


def make_loader(settings: Settings, images: np.ndarray) -> DataLoader:
    """Batches, in which each process has its own rows; together they have settings.batch rows."""
    rank, processes = position()
    if settings.batch % processes:
        raise ValueError(f"batch {settings.batch} cannot be divided by {processes} processes")
    data = TensorDataset(torch.as_tensor(images))
    order = DistributedSampler(data, processes, rank, seed=settings.seed, drop_last=True)
    return DataLoader(data, settings.batch // processes, sampler=order, drop_last=True)


def batches(loader: DataLoader, step: int) -> Iterator[list[Tensor]]:
    """The batches from this step on, epoch after epoch."""
    start, first = divmod(step, len(loader))
    for epoch in itertools.count(start):
        loader.sampler.set_epoch(epoch)
        yield from itertools.islice(loader, first, None)
        first = 0


class ParallelTrainer:
    """The run in each process of torchrun, on its GPU if it has one."""

    def __init__(self, settings: Settings, images: np.ndarray) -> None:
        rank, _ = position()
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else "cpu"
        self.settings, self.step = settings, 0
        self.loader = make_loader(settings, images)
        self.loss = make_loss_module(settings, images).to(self.device)
        self.optimizer, self.decay = make_optimizer(settings, self.loss)
        self.parallel: Callable = DistributedDataParallel(self.loss)

    def advance(self, steps: int) -> np.ndarray:
        """Takes that many steps; returns the losses of this process's rows."""
        losses = []
        for inputs in itertools.islice(batches(self.loader, self.step), steps):
            loss = self.parallel(self.step, *(x.to(self.device) for x in inputs))
            self.optimizer.zero_grad()
            loss.backward()  # averages the gradients over the processes
            self.optimizer.step()
            self.decay.step()
            self.step += 1
            losses.append(loss.item())
        return np.array(losses)

    def save(self, file: BinaryIO) -> None:
        torch.save({"step": self.step, **{n: x.state_dict() for n, x in self._parts()}}, file)

    def load(self, file: BinaryIO) -> None:
        state = torch.load(file, weights_only=True, map_location=self.device)
        self.step = state["step"]
        for name, part in self._parts():
            part.load_state_dict(state[name])

    def _parts(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in ("loss", "optimizer", "decay")]
