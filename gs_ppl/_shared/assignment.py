"""What both sides check of a program and a guide before new rows are assigned."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gs_ppl._shared.comparison import Program, Session, check_size
from gs_ppl._shared.families import is_unbounded
from gs_ppl._shared.wrappers import innermost

FIT_DRAWS = 4  # particles of RLOO_ELBO in a step


def check_draws(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")


def check_program(model: Program, plates: Mapping[str, tuple[int, int]]) -> None:
    """Refuses latents of the new rows that cannot be summed out, and subsampled plates.

    `plates`: by name, the full size and the number of rows that the program sees.
    """
    counts = [n for n in model.continuous if is_unbounded(innermost(model.sites[n]["fn"]))]
    if not model.discrete and not counts:
        raise ValueError("assign: the program has no discrete latents")
    for name, (size, seen) in plates.items():
        if size != seen:
            raise ValueError(
                f"plate {name!r} has only {seen} of its {size} rows: give assign a program in which"
                " the plate has all its rows"
            )
    of_data = {frame.name for name in _with_rows(model) for frame in model.frames(name)}
    for name in model.continuous:
        local = [frame.name for frame in model.frames(name) if frame.name in of_data]
        if name in counts and (local or not model.discrete):
            law = type(innermost(model.sites[name]["fn"])).__name__
            raise ValueError(
                f"site {name!r}: {law} has no known largest value, so that its values cannot be"
                f" summed over: give assign relax(model, truncate={{{name!r}: LARGEST}})"
            )
        if local:
            raise ValueError(
                f"site {name!r} has a value for each row of plate {local[0]!r}, and no finite set"
                " of classes to sum over; the guide has not seen these rows: give its values, as in"
                f" condition(model, data={{{name!r}: ...}}), or train a guide on these rows"
            )


def _with_rows(model: Program) -> list[str]:
    """The sites in the plates of the data: discrete latents and observations."""
    return [
        name
        for name, site in model.sites.items()
        if name in model.discrete
        or (site["is_observed"] and not site["infer"].get("_deterministic"))
    ]


@contextmanager
def on_new_rows() -> Iterator[None]:
    """The error of a guide that does not run on arguments other than those of its training."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            "assign: the guide does not run on these arguments: give only the part of it that draws"
            f" the continuous latents ({error})"
        ) from error


def check_guide(model: Program, guide: Program) -> None:
    """Refuses continuous latents that the guide does not draw, or draws for other rows."""
    for name in model.continuous:
        if name not in guide.sites:
            raise ValueError(
                f"site {name!r} is a latent without a finite set of classes, and the guide does not"
                " draw it: draw it in the guide, or give its value, as in"
                f" condition(model, data={{{name!r}: ...}})"
            )
        wanted, got = (tuple(program.sites[name]["value"].shape) for program in (model, guide))
        if wanted != got:
            raise ValueError(
                f"site {name!r} has shape {wanted} at these arguments, but the guide draws shape"
                f" {got}, for the rows that the guide was trained on: give its values, as in"
                f" condition(model, data={{{name!r}: ...}})"
            )


def fits(session: Session, max_entries: int, fit_steps: int) -> bool:
    """Whether the latents are enumerated; if not, refuses zero steps."""
    try:
        check_size(session, "model", max_entries)
    except ValueError as error:
        if fit_steps < 1:
            raise ValueError(
                f"assign: the latents are not enumerated: {error}; give fit_steps= of at least 1: a"
                " fit needs no table"
            ) from error
        return False
    return True
