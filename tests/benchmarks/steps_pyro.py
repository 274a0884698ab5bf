"""Steps of the auto-encoder in torch: name -> call that takes several steps."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, gumbel_softmax

from gs_ppl import temperature
from gs_ppl.models.vae_pyro import VAE
from gs_ppl.pyro import AnnealedSVI, relax
from gs_ppl.pyro import functional as F
from gs_ppl.pyro.svi import JitTraceMeanField_ELBO, TraceMeanField_ELBO

OURS, PLAIN, BY_HAND = "AnnealedSVI compiled", "AnnealedSVI", "torch loop"
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)
SCHEDULE = temperature.exponential(rate=1e-4, minimum=0.5)


def make(
    images: np.ndarray, variables: int, classes: int, batch: int, steps: int
) -> dict[str, Callable[[], object]]:
    images = torch.as_tensor(images)

    def loop(step: Callable[[Tensor], float], validate: bool = False) -> Callable[[], object]:
        def call() -> None:
            with pyro.validation_enabled(validate):
                for _ in range(steps):
                    step(images[torch.randint(len(images), (batch,))])

        return call

    sizes = variables, classes, (), images.shape[-1]
    vae = VAE(*sizes)
    plain = make_svi(vae, TraceMeanField_ELBO()).step
    return {
        OURS: loop(make_svi(vae, JitTraceMeanField_ELBO(ignore_jit_warnings=True)).step),
        PLAIN: loop(plain),
        f"{PLAIN}, validated": loop(plain, validate=True),
        BY_HAND: loop(Loop(VAE(*sizes), draw).step),
        f"{BY_HAND}, F.gumbel_softmax": loop(Loop(VAE(*sizes), draw_as_torch).step),
    }


def make_svi(vae: VAE, elbo: ELBO) -> AnnealedSVI:
    pyro.clear_param_store()
    model, guide = relax(vae.model), relax(vae.guide)
    return AnnealedSVI(model, guide, ADAM, elbo, SCHEDULE)


class Loop:
    """The same networks, objective and optimizer, without Pyro."""

    def __init__(self, vae: VAE, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.vae, self.draw, self.num_steps = vae, draw, 0
        self.optimizer = ADAM(list(vae.parameters()))

    def loss(self, x: Tensor) -> Tensor:
        logits = self.vae.encoder(x).view(len(x), self.vae.variables, self.vae.classes)
        y = self.draw(torch.tensor(SCHEDULE(self.num_steps)), logits)
        log_q = F.log_softmax(logits)
        kl = (log_q.exp() * (log_q + math.log(self.vae.classes))).sum()
        pixels = self.vae.decoder(y.flatten(1))
        return binary_cross_entropy_with_logits(pixels, x, reduction="sum") + kl

    def step(self, x: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(x)
        loss.backward()
        self.optimizer.step()
        self.num_steps += 1
        return loss.item()


def draw(tau: Tensor, logits: Tensor) -> Tensor:
    noise = F.noise_to_draw_from(logits.shape, dtype=logits.dtype, device=logits.device)
    return F.gumbel_softmax_draw_(tau, logits, noise)[0]


def draw_as_torch(tau: Tensor, logits: Tensor) -> Tensor:
    return gumbel_softmax(logits, tau)
