"""Guides whose discrete latents depend on each other: parents, marginals and the joint maximum."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gs_ppl._shared.elimination import shown
from gs_ppl._shared.families import check_sites

Parents = str | Mapping[str, Collection[str]]  # "none", "model", or by site
LARGEST = 50_000_000  # entries of a table


def check_parents(parents: Any) -> None:
    if isinstance(parents, Mapping):
        for site, names in parents.items():
            if isinstance(names, str) or not isinstance(names, Collection):
                raise TypeError(
                    f"parents: site {site!r} wants a list of the names of latents, got {names!r}"
                )
    elif parents not in ("none", "model"):
        raise ValueError(f"parents must be 'none', 'model' or a dict by site, got {parents!r}")


def find_parents(
    parents: Parents,
    plates: Mapping[str, Collection[str]],
    upstream: Callable[[], Mapping[str, Collection[str]]],
) -> dict[str, tuple[str, ...]]:
    """The parents of each latent, in the order of the program; `plates` are those around it.

    Raises:
        ValueError: naming site and parent, for a parent that comes later or is in another plate.
    """
    order = list(plates)
    if isinstance(parents, Mapping):
        check_sites({*parents}.union(*parents.values()), {*order}, "parents=: ")
        wanted: Mapping[str, Collection[str]] = parents
    elif parents == "model":
        found = upstream()
        wanted = {site: {*found.get(site, ())} & {*order} - {site} for site in order}
    else:
        wanted = {}
    for site, names in wanted.items():
        for parent in sorted(names, key=order.index):
            if order.index(parent) >= order.index(site):
                raise ValueError(
                    f"site {site!r}: a parent must come earlier in the program, and {parent!r}"
                    f" {'is the site itself' if parent == site else 'comes later'}: reverse the"
                    " dependence, or leave the parent out"
                )
            outside = sorted({*plates[parent]} - {*plates[site]})
            if outside:
                raise ValueError(
                    f"site {site!r}: a parent must not be in a plate that the site is not in, but"
                    f" {parent!r} is in {', '.join(map(repr, outside))}: name the parents in the"
                    " guide by a dict, parents={site: [...]}"
                )
    return {site: tuple(sorted({*wanted.get(site, ())}, key=order.index)) for site in order}


def refuse_joined(site: str, parent: str) -> NoReturn:
    """A table has one axis for each parent."""
    raise ValueError(
        f"site {site!r}: a parent must be one discrete variable, but to_event joins several in"
        f" {parent!r}: use a plate instead of to_event, or leave the parent out"
    )


def refuse_in_scan(site: str) -> NoReturn:
    """The latents of all steps are one site: an automatic guide draws all steps at once."""
    raise NotImplementedError(
        f"site {site!r} is drawn inside of scan or cond, where a guide cannot give it parents:"
        " write the steps as a Python loop with markov, or leave parents out"
    )


class Law(NamedTuple):
    """Logits of a site: shape batch + classes of the parents + event."""

    logits: np.ndarray
    parents: tuple[str, ...]
    event_dim: int
    is_bit: bool

    def log_probs(self) -> np.ndarray:
        """Log-probabilities with the classes on the last axis, also for a bit."""
        a = self.logits.astype(np.float64)
        if self.is_bit:
            return np.stack([-np.logaddexp(0, a), -np.logaddexp(0, -a)], -1)
        return a - np.logaddexp.reduce(a, -1, keepdims=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the site, without the axis of the classes."""
        batch = self.logits.ndim - self.event_dim - len(self.parents)
        event = self.logits.shape[batch + len(self.parents) :]
        return (*self.logits.shape[:batch], *(event if self.is_bit else event[:-1]))


class Table(NamedTuple):
    """Logs with a label for each axis: a site's name for its classes, another label for rows."""

    axes: tuple[Hashable, ...]
    logs: np.ndarray

    @staticmethod
    def of(site: str, law: Law) -> "Table":
        """The label of a batch axis is its negative number; an axis of to_event has (site, i)."""
        joined = law.event_dim - (0 if law.is_bit else 1)
        batch = law.logits.ndim - law.event_dim - len(law.parents)
        own = [(site, i) for i in range(joined)]
        axes = [*range(-batch, 0), *law.parents, *own, site]
        logs = law.log_probs()
        alone = tuple(i for i in range(batch) if logs.shape[i] == 1)
        return Table(
            tuple(x for i, x in enumerate(axes) if i not in alone), np.squeeze(logs, alone)
        )

    def along(self, axes: Iterable[Hashable]) -> np.ndarray:
        """The array with these axes; an axis that it lacks has size 1."""
        order = [self.axes.index(x) for x in axes if x in self.axes]
        index = tuple(slice(None) if x in self.axes else None for x in axes)
        return self.logs.transpose(order)[index]

    def without(self, axis: Hashable, logs: np.ndarray) -> "Table":
        return Table(tuple(x for x in self.axes if x != axis), logs)

    @property
    def rows(self) -> frozenset[Hashable]:
        return frozenset(x for x in self.axes if not isinstance(x, str))


def join(tables: Collection[Table]) -> Table:
    axes = tuple(dict.fromkeys(x for table in tables for x in table.axes))
    sizes = {x: n for table in tables for x, n in zip(table.axes, table.logs.shape, strict=True)}
    entries = int(np.prod([float(sizes[x]) for x in axes]))
    if entries > LARGEST:
        latents = ", ".join(repr(x) for x in axes if isinstance(x, str))
        raise ValueError(
            f"a table over {latents} would have {shown(entries)} entries, more than"
            f" {shown(LARGEST)}: give the guide fewer parents"
        )
    return Table(axes, np.asarray(sum(table.along(axes) for table in tables)))


def sum_out(tables: list[Table], latents: Collection[str]) -> list[Table]:
    """Sums out latents one by one; the latent whose table has the fewest axes is the first."""
    latents = {*latents}
    while latents:
        joints = {z: [t for t in tables if z in t.axes] for z in sorted(latents)}
        z = min(joints, key=lambda z: len({x for t in joints[z] for x in t.axes}))
        joint = join(joints[z])
        message = joint.without(z, np.logaddexp.reduce(joint.logs, joint.axes.index(z)))
        tables = [*(t for t in tables if z not in t.axes), message]
        latents.remove(z)
    return tables


def marginals(laws: Mapping[str, Law]) -> dict[str, np.ndarray]:
    """Probabilities of each site's classes, by elimination of the latents that it depends on."""
    found: dict[str, Table] = {}
    for site, law in laws.items():
        tables, before = [Table.of(site, law)], {*law.parents}
        if len(before) == 1:
            tables += [found[parent] for parent in before]
        else:
            queue = list(before)
            while queue:
                z = queue.pop()
                tables.append(Table.of(z, laws[z]))
                queue += [x for x in laws[z].parents if x not in before]
                before |= {*laws[z].parents}
        found[site] = join(sum_out(tables, before))
    return {site: np.exp(_as_site(found[site], site, law)) for site, law in laws.items()}


def _as_site(table: Table, site: str, law: Law) -> np.ndarray:
    """The array of a site's rows and classes, in the shape of the site."""
    shape = law.shape
    joined = law.event_dim - (0 if law.is_bit else 1)
    axes = [*range(joined - len(shape), 0), *((site, i) for i in range(joined))]
    has_classes = site in table.axes
    logs = table.along([*axes, site] if has_classes else axes)
    return np.array(np.broadcast_to(logs, (*shape, *logs.shape[len(shape) :])))


def maximum(laws: Mapping[str, Law]) -> dict[str, np.ndarray]:
    """The class of each site in the joint maximum, by elimination, the innermost rows first.

    Raises:
        ValueError: naming the latents, if rows of crossed plates depend on each other.
    """
    tables = [Table.of(site, law) for site, law in laws.items()]
    rows = {site: table.rows for site, table in zip(laws, tables, strict=True)}
    left, trail = [*laws], []
    while left:
        deepest = max(len(rows[z]) for z in left)
        joints = {z: [t for t in tables if z in t.axes] for z in left if len(rows[z]) == deepest}
        z = min(joints, key=lambda z: len({x for t in joints[z] for x in t.axes}))
        joint = join(joints[z])
        if joint.rows - rows[z]:
            latents = ", ".join(repr(x) for x in joint.axes if isinstance(x, str))
            raise ValueError(
                f"latents {latents} depend on each other across plates, and neither plate is inside"
                " the other: mode cannot be computed; use probs or sample_posterior"
            )
        axis = joint.axes.index(z)
        trail.append((z, joint.without(z, joint.logs.argmax(axis))))
        message = joint.without(z, joint.logs.max(axis))
        around = frozenset().union(*(rows[x] for x in message.axes if isinstance(x, str)))
        for row in message.rows - around:  # rows of a plate that no latent of the message is in
            message = message.without(row, message.logs.sum(message.axes.index(row)))
        tables = [*(t for t in tables if z not in t.axes), message]
        left.remove(z)
    found: dict[str, Table] = {}
    for z, best in reversed(trail):
        for other in [x for x in best.axes if isinstance(x, str)]:
            axes = [x if x != other else None for x in best.axes]
            index = found[other].along(axes)
            taken = np.take_along_axis(best.logs, index, best.axes.index(other))
            best = best.without(other, taken.squeeze(best.axes.index(other)))
        found[z] = best
    return {site: _as_site(found[site], site, law) for site, law in laws.items()}
