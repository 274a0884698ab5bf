"""The cost of a step if each of up to ten million rows has its own logits.

A file has points around ten centres. Minibatches are streamed from it to a guide
with logits for each row, AutoGumbelSoftmax(sparse=True). It is compared with a dense
optimizer, and with a sparse guide whose plate draws its rows. The measure is the CPU time of the
process.

    python examples/many_rows.py --output results/many_rows

writes report.json, and prints the table.
"""

import gc
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.temperature import exponential

CENTRES = np.linspace(-9.0, 9.0, 10, dtype=np.float32)
BATCH, TURNS = 256, 5
SCHEDULE = exponential(rate=1e-3, minimum=0.5)
METHODS = {
    "sparse": {"sparse": True},
    "sparse, the plate draws": {"sparse": True, "drawn": True},
    "dense": {"sparse": False},
}
LARGEST = 1_000_000  # for all methods except sparse


def write_data(path: Path, rows: int, seed: int) -> None:
    """Writes the data in pieces: the points of all rows are never in memory together."""
    rng = np.random.default_rng(seed)
    data = np.lib.format.open_memmap(path, "w+", np.float32, (rows,))
    for start in range(0, rows, 100_000):
        n = min(100_000, rows - start)
        data[start : start + n] = rng.choice(CENTRES, n) + 0.5 * rng.standard_normal(n)


def stream(path: Path, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices and points of an endless stream of minibatches."""
    data, rng = np.load(path, mmap_mode="r"), np.random.default_rng(seed)
    while True:
        rows = np.unique(rng.integers(0, len(data), 2 * BATCH))
        rows = rng.permutation(rows)[:BATCH]
        yield rows, data[rows]


def make_pyro(size: int, batch: int, sparse: bool, drawn: bool = False) -> tuple[Callable, ...]:
    """A function that makes a step on a minibatch, and the bytes of logits and optimizer."""
    import pyro
    import torch
    from pyro.infer import TraceMeanField_ELBO

    import gs_ppl.pyro as gs

    def model(rows, x):
        centres = pyro.param("centres", torch.as_tensor(CENTRES))
        which = {"subsample_size": batch} if drawn else {"subsample": rows}
        with pyro.plate("data", size, **which):
            z = pyro.sample("z", gs.OneHotCategorical(logits=torch.zeros(len(CENTRES))))
            law = pyro.distributions.Normal(gs.select(centres, z), 0.5)
            pyro.sample("x", law, obs=x)

    pyro.clear_param_store()
    guide, adam = gs.AutoGumbelSoftmax(model, sparse=sparse), pyro.optim.Adam({"lr": 0.1})
    svi = gs.AnnealedSVI(gs.relax(model), guide, adam, TraceMeanField_ELBO(), SCHEDULE)

    def step(rows: np.ndarray, x: np.ndarray) -> None:
        svi.step(torch.as_tensor(rows), torch.as_tensor(x))

    def nbytes() -> int:
        logits = guide.logits.z_unconstrained
        if sparse:
            return sum(
                x.nbytes for x in (logits, *svi.optim.rows["AutoGumbelSoftmax.logits.z"].values())
            )
        return logits.nbytes * 3

    return step, nbytes


def make_numpyro(size: int, batch: int, sparse: bool, drawn: bool = False) -> tuple[Callable, ...]:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.infer import TraceMeanField_ELBO

    import gs_ppl.numpyro as gs

    def model(rows, x):
        centres = numpyro.param("centres", jnp.asarray(CENTRES))
        given = {} if drawn else {"data": rows}
        with numpyro.handlers.substitute(data=given):
            plate = numpyro.plate("data", size, subsample_size=batch)
        with plate:
            z = numpyro.sample("z", gs.OneHotCategorical(logits=jnp.zeros(len(CENTRES))))
            law = numpyro.distributions.Normal(gs.select(centres, z), 0.5)
            numpyro.sample("x", law, obs=x)

    guide, adam = gs.AutoGumbelSoftmax(model, sparse=sparse), numpyro.optim.Adam(0.1)
    svi = gs.AnnealedSVI(gs.relax(model), guide, adam, TraceMeanField_ELBO(), SCHEDULE)
    update, state = jax.jit(svi.update, donate_argnums=0), None

    def step(rows: np.ndarray, x: np.ndarray) -> None:
        nonlocal state
        if state is None:
            state = svi.init(jax.random.key(0), jnp.asarray(rows), jnp.asarray(x))
        state, loss = update(state, rows, x)
        loss.block_until_ready()

    def nbytes() -> int:
        leaves = jax.tree.leaves(state.optim_state)
        return sum(x.nbytes for x in leaves if x.ndim and len(x) == size)

    return step, nbytes


MAKERS = {"pyro": make_pyro, "numpyro": make_numpyro}


def measure(backend: str, method: str, size: int, arguments: Namespace) -> dict:
    """CPU time of a step: the median of several turns."""
    batch = min(BATCH, size // 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        write_data(path, size, arguments.seed)
        minibatches = ((rows[:batch], x[:batch]) for rows, x in stream(path, arguments.seed))
        step, nbytes = MAKERS[backend](size, batch, **METHODS[method])
        for _ in range(3):
            step(*next(minibatches))
        steps = arguments.steps if method == "sparse" else 1 + arguments.steps // 10
        seconds = []
        for _ in range(TURNS):
            turn = [next(minibatches) for _ in range(steps)]
            start = time.process_time()
            for rows, x in turn:
                step(rows, x)
            seconds.append((time.process_time() - start) / steps)
    return {
        "backend": backend,
        "method": method,
        "rows": size,
        "ms": 1e3 * median(seconds),
        "bytes_a_row": nbytes() / size,
    }


def main() -> None:
    parser = make_parser(__doc__, "results/many_rows", steps=20)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**n for n in (4, 5, 6, 7)])
    parser.add_argument(
        "--one", nargs=2, metavar=("BACKEND", "METHOD"), help="print this, and stop"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    arguments = parse(parser)
    if arguments.quick:
        arguments.rows, arguments.steps = [40, 80], 2
    cases = [
        (backend, size, method)
        for backend in arguments.backends
        for size in arguments.rows
        for method in arguments.methods
        if method == "sparse" or size <= LARGEST
    ]
    rows = []
    for backend, size, method in tqdm(cases):
        rows.append(measure(backend, method, size, arguments))
        gc.collect()
    console = Console()
    console.print(make_table(rows))
    console.print(write_report(arguments, [], rows))


def make_table(rows: list[dict]) -> Table:
    table = Table(title=f"A step on {BATCH} rows")
    for column in ("PPL", "method", "rows", "ms", "bytes a row"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        cells = f"{row['rows']:,}", f"{row['ms']:.2f}", f"{row['bytes_a_row']:.0f}"
        table.add_row(TITLES[row["backend"]], row["method"], *cells)
    return table


if __name__ == "__main__":
    main()
