"""The paper's trade-off, measured: bias and variance of the gradient against temperature.

"At low temperatures samples are close to one-hot, but the variance of the gradients is large; at
high temperatures samples are smooth, but the variance is small" (Jang, Gu, Poole 2016), and the
bias is large. The program is a net of four latents with eight classes each. It can be summed over
all 4,096 states, so that `compare` has the exact gradient for comparison with each estimate.

    python examples/temperature_sweep.py --output results/temperature_sweep

writes comparison_{backend}.png, comparison_{backend}.nc and report.json, and prints the table.
"""

import importlib
from collections.abc import Callable

import numpy as np
from _report import TITLES, make_parser, parse, write_report
from rich.console import Console

LATENTS, CLASSES, OUTPUTS = 4, 8, 6
TEMPERATURES = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0]


def make_weights(seed: int) -> dict[str, np.ndarray]:
    """The net, its output, and the logits of the guide."""
    rng = np.random.default_rng(seed)
    return {
        "hidden": rng.normal(size=(LATENTS, CLASSES, 8)),
        "output": rng.normal(size=(8, OUTPUTS)) / 2,
        "x": rng.normal(size=OUTPUTS),
        "logits": rng.normal(size=(LATENTS, CLASSES)) / 2,
    }


def make_pyro(weights: dict[str, np.ndarray]) -> tuple[Callable, Callable]:
    """The program and its guide; bits, where the logits are."""
    import pyro
    import torch
    from pyro.distributions import Bernoulli, Normal

    from gs_ppl.pyro import AutoGumbelSoftmax, OneHotCategorical

    w = {name: torch.tensor(value, dtype=torch.float32) for name, value in weights.items()}
    one_hot = w["logits"].ndim > 1
    law = OneHotCategorical if one_hot else Bernoulli

    def model() -> None:
        hidden = 0.0
        for i, logits in enumerate(w["logits"]):
            z = pyro.sample(f"z_{i}", law(logits=torch.zeros_like(logits)))
            hidden = hidden + (z if one_hot else z[..., None]) @ w["hidden"][i]
        loc = hidden.tanh() @ w["output"]
        pyro.sample("x", Normal(loc, 0.7).to_event(1), obs=w["x"])

    pyro.clear_param_store()
    start = {f"z_{i}": logits for i, logits in enumerate(w["logits"])}
    return model, AutoGumbelSoftmax(model, init_logits=start)


def make_numpyro(weights: dict[str, np.ndarray]) -> tuple[Callable, Callable]:
    """The program and its guide; bits, where the logits are."""
    import jax.numpy as jnp
    import numpyro
    from numpyro.distributions import Bernoulli, Normal

    from gs_ppl.numpyro import AutoGumbelSoftmax, OneHotCategorical

    w = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    one_hot = w["logits"].ndim > 1
    law = OneHotCategorical if one_hot else Bernoulli

    def model() -> None:
        hidden = 0.0
        for i, logits in enumerate(w["logits"]):
            z = numpyro.sample(f"z_{i}", law(logits=jnp.zeros_like(logits)))
            hidden = hidden + (z if one_hot else z[..., None]) @ w["hidden"][i]
        loc = jnp.tanh(hidden) @ w["output"]
        numpyro.sample("x", Normal(loc, 0.7).to_event(1), obs=w["x"])

    start = {f"z_{i}": logits for i, logits in enumerate(w["logits"])}
    return model, AutoGumbelSoftmax(model, init_logits=start)


PROGRAMS = {"pyro": make_pyro, "numpyro": make_numpyro}


def main() -> None:
    parser = make_parser(__doc__, output="results/temperature_sweep")
    parser.add_argument("--samples", type=int, default=1_000, help="gradients for each estimate")
    arguments = parse(parser)
    options = {"temperatures": TEMPERATURES, "num_samples": arguments.samples}
    if arguments.quick:
        options = {"temperatures": [0.5, 1.0], "num_samples": 10}
    console, rows, pictures = Console(width=120), [], []
    for backend in arguments.backends:
        compare = importlib.import_module(f"gs_ppl.{backend}").compare
        comparison = compare(*PROGRAMS[backend](make_weights(arguments.seed)), **options)
        console.print(f"[bold]{TITLES[backend]}", comparison)
        pictures.append(arguments.output / f"comparison_{backend}.png")
        figure = comparison.plot()
        figure.suptitle(f"{TITLES[backend]}: four latents of eight classes")
        figure.savefig(pictures[-1], dpi=110)
        comparison.to_dataset().to_netcdf(arguments.output / f"comparison_{backend}.nc")
        rows += [
            {
                "backend": backend,
                "family": row.family,
                "objective": row.objective,
                "temperature": row.temperature,
                "elbo": row.elbo.mean,
                "elbo_error": row.elbo.error,
                "bias": row.gradient.bias,
                "floor": row.gradient.floor,
                "variance": row.gradient.variance,
                "cosine": row.gradient.cosine,
            }
            for row in comparison.estimates
        ]
    target = write_report(arguments, pictures, rows, samples=options["num_samples"])
    console.print(*pictures, target, sep="\n")


if __name__ == "__main__":
    main()
