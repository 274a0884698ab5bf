"""The classes of rows that a guide has not seen: exact given its continuous latents, or fitted."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO, infer_discrete
from pyro.infer.autoguide import AutoCallable, AutoGuide, AutoGuideList
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import biject_to

from gs_ppl._shared import assignment
from gs_ppl._shared.assignment import FIT_DRAWS
from gs_ppl.pyro.autoguide import AutoGumbelSoftmax
from gs_ppl.pyro.comparison import Program, SeedBySite, Session
from gs_ppl.pyro.enumeration import config_enumerate
from gs_ppl.pyro.handlers import discretize, random_state
from gs_ppl.pyro.inference_data import _unpacked
from gs_ppl.pyro.score_function import RLOO_ELBO

__all__ = ["assign"]


def assign(
    model: Callable,
    guide: Callable,
    *args: Any,
    num_samples: int = 100,
    max_entries: int = 50_000_000,
    fit_steps: int = 500,
    **kwargs: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Class probabilities and classes of rows that the guide has not seen.

    probs = E_{q(w)}[ p(z | x, w) ]: the discrete latents z of the model at these arguments are
    enumerated; the continuous latents w are drawn from the guide. Discrete sites of the guide are
    not used. classes = argmax_z p(z | x, w) at the guide's median of w: the joint maximum. The
    random state is left as it was.

    Args:
        model: program, relaxed or not.
        guide: an automatic guide, or a program that runs on these arguments. Continuous latents
            must be outside of the plates of the rows.
        *args: what the model takes: the new rows.
        num_samples: number of draws of the continuous latents. Without such latents there is one
            enumeration. The median of a guide without a method `median` is that of these draws.
        max_entries: largest table of an enumeration, in numbers.
        fit_steps: number of steps that fit new logits to these rows, at the guide's median of w;
            used if a table would be larger. Then probs and classes come from these logits.
        **kwargs: what the model takes.

    Returns:
        By site: probabilities, shape plates + (K,), for a bit the probability of one, shape plates
        (NaN where the row is masked); and values: one-hot vectors, integers, bits.

    Raises:
        ValueError: naming the site, for a continuous latent in the plate of the new rows, for a
            latent that the guide does not draw, for a subsampled plate, and for tables that are too
            large if there are no fit_steps.

    Example:
        >>> import pyro, torch
        >>> from gs_ppl.pyro import AutoGumbelSoftmax, OneHotCategorical, assign, select
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", OneHotCategorical(logits=torch.zeros(2)))
        ...         loc = select(torch.tensor([-1.0, 1.0]), z)
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)
        >>> probs, classes = assign(model, AutoGumbelSoftmax(model), torch.tensor([0.0, 0.5, 3.0]))
        >>> probs["z"][:, 1], classes["z"].argmax(-1)[1:]
        (tensor([0.5000, 0.7311, 0.9975]), tensor([1, 1]))
    """
    assignment.check_draws(num_samples)
    with random_state():
        program = Program(model, args, kwargs)
        draw = partial(_draw, guide) if isinstance(guide, AutoGuide) else guide
        drawn = Program(draw, args, kwargs)
        program.run()
        frames = [frame for site in program.sites for frame in program.frames(site)]
        sizes = {frame.name: (frame.full_size or frame.size, frame.size) for frame in frames}
        assignment.check_program(program, sizes)
        with assignment.on_new_rows():
            drawn.run()
        assignment.check_guide(program, drawn)
        session = Session(model, draw, args, kwargs, TraceMeanField_ELBO(), 0)
        if not assignment.fits(session, max_entries, fit_steps):
            return _fit(session, _median(session, guide, num_samples, args, kwargs), fit_steps)
        _, marginals = session.marginals("model", num_samples if program.continuous else 1)
        tilts, probs = program.tilts(), {}
        for name, p in marginals.items():
            every = torch.as_tensor(p).to(tilts[name])
            probs[name] = every if program.discrete[name] else every[..., 1]
        with torch.no_grad():
            return probs, _maximum(session, _median(session, guide, num_samples, args, kwargs))


def _draw(guide: AutoGuide, *args: Any, **kwargs: Any) -> None:
    """Runs an automatic guide without the discrete latents of its training."""
    for part in _parts(guide, args, kwargs):
        part(*args, **kwargs)


def _parts(guide: AutoGuide, args: tuple, kwargs: dict) -> Iterator[AutoGuide]:
    """The parts of an automatic guide that draw continuous latents, with the plates of these."""
    if isinstance(guide, AutoGumbelSoftmax):
        return
    if not isinstance(guide, AutoGuideList):
        yield guide
        return
    fresh, plates = guide.prototype_trace is None, vars(guide).get("plates", {})
    if fresh:
        guide._setup_prototype(*args, **kwargs)
    try:
        for part in guide:
            if not isinstance(part, AutoGumbelSoftmax | AutoGuideList | AutoCallable):
                if part.prototype_trace is None:
                    part._setup_prototype(*args, **kwargs)
                frames = part._prototype_frames.values()
                guide.plates = {f.name: pyro.plate(f.name, f.size, dim=f.dim) for f in frames}
            yield from _parts(part, args, kwargs)
    finally:
        guide.plates = plates
        if fresh:  # the next run has other rows
            guide.prototype_trace, guide._prototype_frames = None, {}


def _median(
    session: Session, guide: Callable, num_samples: int, args: tuple, kwargs: dict
) -> dict[str, Tensor]:
    """The median of the guide, or else of its draws, in unconstrained space."""
    found: dict[str, Tensor] = {}
    if isinstance(guide, AutoGuide):
        for part in _parts(guide, args, kwargs):
            with suppress(NotImplementedError):  # the guide has no median: the draws below are used
                found |= part.median(*args, **kwargs)
    names = [name for name in session.model.continuous if name not in found]
    draws: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(num_samples if names else 0):
        with SeedBySite(0, i):
            trace = poutine.trace(session.guide).get_trace()
        for name in names:
            draws[name].append(trace.nodes[name]["value"])
    for name, values in draws.items():
        bijection = biject_to(session.model.sites[name]["fn"].support)
        found[name] = bijection(bijection.inv(torch.stack(values)).quantile(0.5, 0))
    return {name: found[name] for name in session.model.continuous}


def _maximum(session: Session, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """The jointly most probable classes, as the program sees them."""
    seen = poutine.trace(poutine.condition(session.model, data=latents))
    first = -1 - session.exact.max_plate_nesting
    infer_discrete(config_enumerate(seen), first, temperature=0)()
    sites = session.model.sites
    return {
        name: _unpacked(seen.trace.nodes[name]["value"], sites[name]["fn"].shape())
        for name in session.model.discrete
    }


def _fit(
    session: Session, latents: dict[str, Tensor], steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By fitting a new guide; what was trained before does not change."""
    store = pyro.get_param_store()
    model = poutine.block(poutine.condition(session.model, data=latents), hide_types=["param"])
    guide = AutoGumbelSoftmax(model)
    own = f"{type(guide).__name__}."
    state = {kind: _without(own, known) for kind, known in store.get_state().items()}
    with store.scope(state):
        pyro.set_rng_seed(0)
        svi = SVI(model, discretize(guide), Adam({"lr": 0.1}), RLOO_ELBO(FIT_DRAWS))
        for _ in range(steps):
            svi.step()
        with torch.no_grad():
            return guide.probs(), guide.mode()


def _without(prefix: str, known: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if not name.startswith(prefix)}
