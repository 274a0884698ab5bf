"""The gain from parents in an automatic guide: KL(q || p(z | x)), compared with mean field's best.

The programs are the chain of hidden_markov.py at its fitted parameters, and three trees. In a tree
each observation depends on one latent, so that the posterior has the form of the guide. Each guide
is AutoGumbelSoftmax(model, parents="model"). Coordinate ascent on the table of all assignments,
from several starts, finds the best mean field; it is not a guide of this library.

    python examples/structured_guides.py --output results/structured_guides

writes report.json, and prints the table.
"""

import itertools
from dataclasses import dataclass

import hidden_markov
import numpy as np
from _report import TITLES, make_parser, parse, write_report
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gs_ppl.temperature import exponential

SEQUENCES = 10  # of the text
STARTS = 10  # of the coordinate ascent
RATES = 0.2, 0.002  # learning rate of Adam at the first and at the last step


@dataclass(frozen=True)
class Tree:
    """Latents of K classes, each with an earlier latent or none as parent, and an observation.

    `likelihood` has shape (rows, latents, K): the rows are independent.
    """

    name: str
    above: tuple[int | None, ...]
    first: np.ndarray
    transition: np.ndarray
    likelihood: np.ndarray

    def log_joints(self, row: int) -> np.ndarray:
        """Log joint of all assignments, with one axis for each latent."""
        n, K = self.likelihood.shape[1:]
        logs = np.zeros((K,) * n)
        for i, above in enumerate(self.above):
            own = [K if j == i else 1 for j in range(n)]
            logs = logs + np.log(self.likelihood[row, i]).reshape(own)
            if above is None:
                logs = logs + np.log(self.first).reshape(own)
            else:
                both = [K if j in (i, above) else 1 for j in range(n)]
                logs = logs + np.log(self.transition).reshape(both)
        return logs


def draw_tree(name: str, above: tuple[int | None, ...], classes: int, rng: np.random.Generator):
    """A tree whose transitions mostly keep the class, with weak observations."""
    noise = rng.normal(size=(classes, classes))
    transition = hidden_markov.softmax(2.0 * np.eye(classes) + 0.5 * noise)
    likelihood = hidden_markov.softmax(rng.normal(size=(SEQUENCES, len(above), classes)))
    return Tree(name, above, np.full(classes, 1 / classes), transition, likelihood)


def fit_chain(seed: int, steps: int) -> Tree:
    """The chain of letters, at the parameters that hidden_markov.py finds by enumeration."""
    rng = np.random.default_rng(seed)
    text = rng.permutation(hidden_markov.load_text(hidden_markov.LENGTH))
    text = text[len(text) // 5 :]
    exact = hidden_markov.list_methods(steps, quick=True)[0]
    start = hidden_markov.draw_start(text, seed)
    *_, (_, parameters) = hidden_markov.train_numpyro(exact, text, start, steps, seed)
    first, transition, emission = (
        hidden_markov.softmax(parameters[name].astype(float)) for name in hidden_markov.NAMES
    )
    likelihood = np.moveaxis(emission[:, text[:SEQUENCES]], 0, -1)
    above = (None, *range(hidden_markov.LENGTH - 1))
    return Tree("hidden Markov", above, first, transition, likelihood)


def list_trees(seed: int, quick: bool) -> list[Tree]:
    rng = np.random.default_rng(seed)
    trees = [
        draw_tree("star of 5", (None, 0, 0, 0, 0, 0), 3, rng),
        draw_tree("binary tree of 7", (None, 0, 0, 1, 1, 2, 2), 3, rng),
        draw_tree("chain with twigs", (None, 0, 1, 2, 0, 1, 2), 3, rng),
    ]
    return trees[:1] if quick else [fit_chain(seed, hidden_markov.STEPS), *trees]


# --- exact numbers --------------------------------------------------------------------------------


def average(table: np.ndarray, q: list[np.ndarray], without: int | None = None) -> np.ndarray:
    for j in reversed([j for j in range(len(q)) if j != without]):
        table = np.tensordot(table, q[j], ([j], [0]))
    return table


def best_mean_field(table: np.ndarray) -> float:
    """KL of the best mean field to the posterior, in nats."""
    best = -np.inf
    for seed in range(STARTS):
        rng = np.random.default_rng(seed)
        q = [rng.dirichlet(np.ones(K)) for K in table.shape]
        for _ in range(100):
            for i in range(len(q)):
                q[i] = hidden_markov.softmax(average(table, q, without=i))
        entropy = -sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in q)
        best = max(best, average(table, q) + entropy)
    return np.logaddexp.reduce(table, axis=None) - best


def divergence(tree: Tree, tables: list[np.ndarray], row: int) -> float:
    """KL(q || p(z | x)) of one row, summed over all assignments."""
    n, K = tree.likelihood.shape[1:]
    log_q = np.zeros((K,) * n)
    for i, (above, a) in enumerate(zip(tree.above, tables, strict=True)):
        log = a[row] - np.logaddexp.reduce(a[row], -1, keepdims=True)
        at = (i,) if above is None else (i, above)
        log_q = log_q + log.reshape([K if j in at else 1 for j in range(n)])
    logs = tree.log_joints(row)
    log_p = logs - np.logaddexp.reduce(logs, axis=None)
    return float((np.exp(log_q) * (log_q - log_p)).sum())


# --- guides ---------------------------------------------------------------------------------------

METHODS = {  # the temperature in words, and its last value; None: no temperature
    "GumbelSoftmax": ("1 → 0.1", 0.1),
    "STGumbelSoftmax": ("1 → 0.3", 0.3),
    "ReinMax": ("1", 1.0),
    "RLOO_ELBO(16)": ("", None),
    "TraceEnum_ELBO": ("", None),
}
DRAWS = 16  # of RLOO_ELBO


def train_pyro(tree: Tree, method: str, last: float | None, steps: int, seed: int) -> list:
    import pyro
    import torch
    from pyro.distributions import Bernoulli

    import gs_ppl.pyro as gs

    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    first, transition, likelihood = (
        torch.tensor(x, dtype=torch.float32) for x in (tree.first, tree.transition, tree.likelihood)
    )

    def model() -> None:
        z: list = []
        with pyro.plate("rows", len(likelihood)):
            for i, above in enumerate(tree.above):
                p = first if above is None else gs.select(transition.T, z[above][..., None, :])
                z.append(pyro.sample(f"z_{i}", gs.OneHotCategorical(probs=p)))
                seen = Bernoulli(probs=gs.select(likelihood[:, i], z[i]))
                pyro.sample(f"x_{i}", seen, obs=torch.ones(len(likelihood)))

    begin, end = RATES
    decay = (end / begin) ** (1 / steps)
    adam = pyro.optim.ClippedAdam({"lr": begin, "lrd": decay, "clip_norm": float("inf")})
    svi, guide = make_svi(gs, pyro.infer, model, adam, method, last, steps)
    for _ in range(steps):
        svi.step()
    logits = [getattr(guide.logits, f"z_{i}") for i in range(len(tree.above))]
    return [a.detach().double().numpy() for a in logits]


def train_numpyro(tree: Tree, method: str, last: float | None, steps: int, seed: int) -> list:
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.distributions import Bernoulli

    import gs_ppl.numpyro as gs

    first, transition, likelihood = (
        jnp.asarray(x) for x in (tree.first, tree.transition, tree.likelihood)
    )

    def model() -> None:
        z: list = []
        with numpyro.plate("rows", len(likelihood)):
            for i, above in enumerate(tree.above):
                p = first if above is None else gs.select(transition.T, z[above][..., None, :])
                z.append(numpyro.sample(f"z_{i}", gs.OneHotCategorical(probs=p)))
                seen = Bernoulli(probs=gs.select(likelihood[:, i], z[i]))
                numpyro.sample(f"x_{i}", seen, obs=jnp.ones(len(likelihood)))

    begin, end = RATES
    adam = numpyro.optim.Adam(lambda step: begin * (end / begin) ** (step / steps))
    svi, _ = make_svi(gs, numpyro.infer, model, adam, method, last, steps)
    params = svi.run(jax.random.key(seed), steps, progress_bar=False).params
    logits = [params[f"z_{i}_auto_logits"] for i in range(len(tree.above))]
    return [np.asarray(a, float) for a in logits]


def make_svi(gs, infer, model, adam, method, last, steps) -> tuple:
    """SVI and its guide; `gs` and `infer` are those of either PPL."""
    if last is not None:
        family, loss = getattr(gs, method), infer.TraceMeanField_ELBO()
        guide = gs.AutoGumbelSoftmax(model, family=family, parents="model")
        schedule = exponential(-np.log(last) / steps, minimum=last)
        relaxed = gs.relax(model, family=family)
        return gs.AnnealedSVI(relaxed, guide, adam, loss, schedule), guide
    guide = gs.AutoGumbelSoftmax(model, parents="model")
    if method == "TraceEnum_ELBO":
        pair = gs.config_enumerate(model), gs.config_enumerate(guide)
        return infer.SVI(*pair, adam, infer.TraceEnum_ELBO(max_plate_nesting=1)), guide
    loss = gs.RLOO_ELBO(DRAWS, vectorize_particles=True)
    return infer.SVI(model, gs.discretize(guide), adam, loss), guide


TRAINERS = {"pyro": train_pyro, "numpyro": train_numpyro}


def main() -> None:
    parser = make_parser(__doc__, "results/structured_guides", steps=3000)
    arguments = parse(parser)
    steps = 20 if arguments.quick else arguments.steps
    trees = list_trees(arguments.seed, arguments.quick)
    cases = list(itertools.product(arguments.backends, trees, METHODS.items()))
    best = {
        tree.name: np.mean([best_mean_field(tree.log_joints(row)) for row in range(SEQUENCES)])
        for tree in trees
    }
    rows = []
    for backend, tree, (method, (temperature, last)) in tqdm(cases, unit="fit"):
        tables = TRAINERS[backend](tree, method, last, steps, arguments.seed)
        kl = np.mean([divergence(tree, tables, row) for row in range(SEQUENCES)])
        rows.append(
            {
                "backend": backend,
                "program": tree.name,
                "method": method,
                "temperature": temperature or None,
                "kl": float(kl),
                "kl_of_mean_field": float(best[tree.name]),
            }
        )
    console = Console()
    console.print(make_table(rows))
    console.print(write_report(arguments, [], rows))


def make_table(rows: list[dict]) -> Table:
    table = Table(title="KL(q || p(z | x)) in nats, mean of the rows")
    for column in ("PPL", "program", "method", "τ", "KL", "best mean field", "share"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        kl, best = row["kl"], row["kl_of_mean_field"]
        cells = TITLES[row["backend"]], row["program"], row["method"], row["temperature"] or ""
        table.add_row(*cells, f"{kl:.4f}", f"{best:.4f}", f"{kl / best:.1%}")
    return table


if __name__ == "__main__":
    main()
