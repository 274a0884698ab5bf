"""The size of the tables of an exact enumeration, computed before it runs."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Factor:
    """The score of one site: the latents and the plates that it depends on.

    `entries` is the size of one event, such as the number of pixels of an image.
    """

    site: str
    latents: frozenset[str]
    plates: frozenset[str]
    entries: int = 1

    def size(self, sizes: Mapping[str, int]) -> int:
        return self.entries * math.prod(sizes[name] for name in self.latents | self.plates)


def largest_table(
    factors: Iterable[Factor],
    latents: Mapping[str, Collection[str]],
    sizes: Mapping[str, int],
) -> tuple[int, list[str]]:
    """Entries of the largest table that tensor variable elimination makes, and its latents.

    To sum out a latent, all scores that depend on it are added. The latents within the most plates
    come first; among these, the latent with the smallest table. Scores that are left within a plate
    are then added along the plate. This needs rows that are independent given the latents outside.

    Args:
        factors: the scores of all sites.
        latents: the discrete latents, each with the plates that it lies in.
        sizes: number of values of each latent, and number of rows of each plate.

    Raises:
        ValueError: naming the sites, where the rows of a plate depend on each other.

    Source: Obermeyer et al., Tensor Variable Elimination for Plated Factor Graphs, 2019.

    Example:
        >>> chain = [Factor(f"z{t}", frozenset({f"z{t}", f"z{t - 1}"}), frozenset())
        ...          for t in range(1, 9)]
        >>> largest_table(chain, {f"z{t}": () for t in range(9)}, {f"z{t}": 10 for t in range(9)})
        (100, ['z0', 'z1'])
    """
    tables = list(factors)
    for table in tables:
        _check_rows(table, latents, sizes)
    largest = max(tables, key=lambda table: table.size(sizes), default=None)
    remaining = {name: frozenset(plates) for name, plates in latents.items()}
    while remaining:
        deepest = max(map(len, remaining.values()))
        candidates = [
            (_join(tables, name, remaining), name)
            for name, plates in remaining.items()
            if len(plates) == deepest
        ]
        joint, name = min(candidates, key=lambda pair: (pair[0].size(sizes), pair[1]))
        crossed = sorted(joint.plates - remaining[name])
        if crossed:
            raise ValueError(
                f"latents {', '.join(map(repr, sorted(joint.latents)))} depend on each other across"
                f" plates, and neither plate is inside the other: {', '.join(map(repr, crossed))}"
            )
        if largest is None or joint.size(sizes) > largest.size(sizes):
            largest = joint
        tables = [table for table in tables if name not in table.latents]
        tables.append(Factor(name, joint.latents - {name}, joint.plates))
        del remaining[name]
    return (largest.size(sizes), sorted(largest.latents)) if largest else (0, [])


def _join(tables: list[Factor], name: str, plates: Mapping[str, frozenset[str]]) -> Factor:
    """The table from which a latent is summed out, reduced along the plates that it is not in."""
    latents = frozenset({name}).union(*(t.latents for t in tables if name in t.latents))
    return Factor(name, latents, frozenset().union(*(plates.get(z, ()) for z in latents)))


def _check_rows(
    table: Factor, latents: Mapping[str, Collection[str]], sizes: Mapping[str, int]
) -> None:
    """Refuses a score of all rows of a latent together: the PPLs may sum it to a wrong number."""
    for name in sorted(table.latents):
        plates = frozenset(latents[name]) - table.plates
        if plates:
            entries = table.size(sizes) * sizes[name] ** (
                math.prod(sizes[plate] for plate in plates) - 1
            )
            raise ValueError(
                f"{table.site!r} depends on all rows of {name!r} along plate"
                f" {', '.join(map(repr, sorted(plates)))} at once, which needs a table of"
                f" {shown(entries)} entries: write the plate as a Python loop, with a site for each"
                " row"
            )


def shown(entries: int) -> str:
    """A size as text; it may be larger than any float."""
    if entries < 10**7:
        return f"{entries:,}"
    power = len(str(entries)) - 1
    return f"{entries / 10**power:.1f}e{power}"
