"""The classes of rows that a guide has not seen: exact given its continuous latents, or fitted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from warnings import warn

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoGuide, AutoGuideList
from numpyro.optim import Adam

from gs_ppl._shared import assignment
from gs_ppl._shared.assignment import FIT_DRAWS
from gs_ppl.numpyro.autoguide import AutoGumbelSoftmax, has_latents
from gs_ppl.numpyro.comparison import Program, SeedBySite, Session
from gs_ppl.numpyro.enumeration import config_enumerate
from gs_ppl.numpyro.handlers import discretize
from gs_ppl.numpyro.scan_enumeration import unpacked
from gs_ppl.numpyro.score_function import RLOO_ELBO
from gs_ppl.numpyro.site_logits import check_params

__all__ = ["assign"]


def assign(
    model: Callable,
    guide: Callable,
    *args: Any,
    params: Mapping[str, Any],
    num_samples: int = 100,
    max_entries: int = 50_000_000,
    fit_steps: int = 500,
    rng_key: Array | None = None,
    **kwargs: Any,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Class probabilities and classes of rows that the guide has not seen.

    probs = E_{q(w)}[ p(z | x, w) ]: the discrete latents z of the model at these arguments are
    enumerated; the continuous latents w are drawn from the guide. Discrete sites of the guide are
    not used. classes = argmax_z p(z | x, w) at the guide's median of w: the joint maximum.

    Args:
        model: program, relaxed or not.
        guide: an automatic guide, or a program that runs on these arguments. Continuous latents
            must be outside of the plates of the rows.
        *args: what the model takes: the new rows.
        params: of model and guide, as SVI returns them. Others have their initial values, those
            before training; a warning names them.
        num_samples: number of draws of the continuous latents. Without such latents there is one
            enumeration. The median of a guide without a method `median` is that of these draws.
        max_entries: largest table of an enumeration, in numbers.
        fit_steps: number of steps that fit new logits to these rows, at the guide's median of w;
            used if a table would be larger. Then probs and classes come from these logits.
        rng_key: of the draws; None: jax.random.key(0).
        **kwargs: what the model takes.

    Returns:
        By site: probabilities, shape plates + (K,), for a bit the probability of one, shape plates
        (NaN where the row is masked); and values: one-hot vectors, integers, bits.

    Raises:
        ValueError: naming the site, for a continuous latent in the plate of the new rows, for a
            latent that the guide does not draw, for a subsampled plate, and for tables that are too
            large if there are no fit_steps.

    Example:
        >>> import jax.numpy as jnp, numpyro
        >>> from gs_ppl.numpyro import AutoGumbelSoftmax, OneHotCategorical, assign, select
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", OneHotCategorical(logits=jnp.zeros(2)))
        ...         loc = select(jnp.array([-1.0, 1.0]), z)
        ...         numpyro.sample("x", numpyro.distributions.Normal(loc, 1.0), obs=x)
        >>> x = jnp.array([0.0, 0.5, 3.0])
        >>> probs, classes = assign(model, AutoGumbelSoftmax(model), x, params={})
        >>> [f"{p:.4f}" for p in probs["z"][:, 1]], classes["z"].argmax(-1)[1:].tolist()
        (['0.5000', '0.7311', '0.9975'], [1, 1])
    """
    assignment.check_draws(num_samples)
    check_params(params)
    key = jax.random.key(0) if rng_key is None else rng_key
    draw = partial(_draw, guide) if isinstance(guide, AutoGuide) else guide
    program, drawn = Program(model, args, kwargs), Program(draw, args, kwargs)
    program.run(params, key)
    assignment.check_program(program, program.rows)
    with assignment.on_new_rows():
        drawn.run(params, key)
    assignment.check_guide(program, drawn)
    session = Session(model, draw, args, kwargs, params, TraceMeanField_ELBO(), key)
    for note in session.notes:
        warn(f"assign: {note}", stacklevel=2)
    if not assignment.fits(session, max_entries, fit_steps):
        return _fit(session, _median(session, guide, num_samples), fit_steps)
    _, marginals = session.marginals("model", num_samples if program.continuous else 1)
    tilts, probs = program.tilts(), {}
    for name, p in marginals.items():
        every = jnp.asarray(p, tilts[name].dtype)
        probs[name] = every if program.discrete[name] else every[..., 1]
    return probs, _maximum(session, _median(session, guide, num_samples))


def _draw(guide: AutoGuide, *args: Any, **kwargs: Any) -> None:
    """Runs an automatic guide without the discrete latents of its training."""
    fresh = isinstance(guide, AutoGuideList) and guide.prototype_trace is None
    if fresh:
        guide._setup_prototype(*args, **kwargs)
    sizes = dict(guide._prototype_frame_full_sizes)
    for part in _parts(guide):
        if isinstance(part, AutoGuide):  # the part may not see the plates
            part._prototype_frame_full_sizes = sizes | part._prototype_frame_full_sizes
        part(*args, **kwargs)
    if fresh:  # the next run has other rows
        guide.prototype_trace, guide._prototype_frames = None, {}
        guide._prototype_frame_full_sizes = {}


def _parts(guide: Any) -> Iterator[Any]:
    """The parts of an automatic guide that draw continuous latents."""
    if isinstance(guide, AutoGuideList):
        for part in guide:
            yield from _parts(part)
    elif not isinstance(guide, AutoGumbelSoftmax):
        yield guide


def _median(session: Session, guide: Callable, num_samples: int) -> dict[str, Array]:
    """The median of the guide, or else of its draws, in unconstrained space."""
    found: dict[str, Array] = {}
    for part in _parts(guide):
        if isinstance(part, AutoGuide) and has_latents(part):
            with suppress(NotImplementedError):  # the guide has no median: the draws below are used
                found |= part.median(session.values)
    names = [name for name in session.model.continuous if name not in found]

    def draw(i: Array) -> dict[str, Array]:
        program = SeedBySite(session.guide, jax.random.fold_in(session.key, i))
        seeded = handlers.seed(handlers.substitute(program, data=session.values), session.key)
        trace = handlers.trace(seeded).get_trace()
        return {name: trace[name]["value"] for name in names}

    draws = jax.jit(partial(jax.lax.map, draw))(jnp.arange(num_samples)) if names else {}
    for name, values in draws.items():
        bijection = biject_to(session.model.sites[name]["fn"].support)
        found[name] = bijection(jnp.median(bijection.inv(values), 0))
    return {name: found[name] for name in session.model.continuous}


def _maximum(session: Session, latents: dict[str, Array]) -> dict[str, Array]:
    """The jointly most probable classes, as the program sees them."""
    # imported here: it sets the backend of funsor, for Pyro too
    from numpyro.contrib.funsor import infer_discrete

    model, sites = session.model, session.model.sites
    alone = [name for name in model.discrete if model.classes(name) == 1]  # they get no table
    given = latents | {name: sites[name]["value"] for name in alone}
    fixed = handlers.condition(handlers.substitute(model, data=session.values), data=given)

    def seen() -> dict[str, Array]:
        trace = handlers.trace(fixed).get_trace()
        return {name: trace[name]["value"] for name in model.discrete}

    first = -1 - session.exact.max_plate_nesting
    decode = infer_discrete(config_enumerate(seen), first, temperature=0)
    found = handlers.seed(decode, session.key)()
    return {name: unpacked(x, sites[name]["fn"].shape()) for name, x in found.items()}


def _fit(
    session: Session, latents: dict[str, Array], steps: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """By fitting a new guide; what was trained before does not change."""
    fixed = handlers.condition(handlers.substitute(session.model, data=session.values), latents)
    model = handlers.block(fixed, hide_fn=lambda site: site["type"] == "param")
    guide = AutoGumbelSoftmax(model)
    svi = SVI(model, discretize(guide), Adam(0.1), RLOO_ELBO(FIT_DRAWS))
    params = svi.run(session.key, steps, progress_bar=False).params
    return guide.probs(params), guide.mode(params)
