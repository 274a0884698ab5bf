"""The models' networks on both sides, with weights under the same names and in the same layout."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]


class PyroNetworks:
    """The networks of a model in Pyro."""

    def __init__(self, module: str, network: str, **sizes: Any) -> None:
        self.torch = importlib.import_module("torch")
        self.pyro = importlib.import_module("pyro")
        self.gs = importlib.import_module("gs_ppl.pyro")
        self.pyro.clear_param_store()
        self.pyro.set_rng_seed(0)
        self.program = importlib.import_module(f"gs_ppl.models.{module}_pyro")
        self.network = getattr(self.program, network)(**sizes)

    def arrays(self, *arrays: np.ndarray) -> list:
        return [self.torch.tensor(x) for x in arrays]

    def trace(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Latent values of the guide; this also makes all parameters."""
        trace = self.pyro.poutine.trace(self.network.guide).get_trace(*self.arrays(*inputs))
        self.pyro.poutine.replay(self.network.model, trace=trace)(*self.arrays(*inputs))
        values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
        # the values of plates are integers
        return {k: x.detach().numpy() for k, x in values.items() if x.is_floating_point()}

    def weights(self) -> Weights:
        store = self.pyro.get_param_store()
        return {name: x.detach().numpy().copy() for name, x in store.named_parameters()}

    def log_joint(self, latents: dict[str, np.ndarray], *inputs: np.ndarray) -> float:
        data = {name: self.torch.tensor(value) for name, value in latents.items()}
        model = self.pyro.condition(self.network.model, data=data)
        trace = self.pyro.poutine.trace(model).get_trace(*self.arrays(*inputs))
        return trace.log_prob_sum().item()

    def enumerated(self, *inputs: np.ndarray) -> tuple[float, Weights]:
        """The objective with y summed out, and its gradient."""
        elbo = self.pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        programs = map(self.gs.config_enumerate, (self.network.model, self.network.guide))
        return self._gradient(lambda: elbo.differentiable_loss(*programs, *self.arrays(*inputs)))

    def by_hand(self, loss: Callable, *inputs: np.ndarray) -> tuple[float, Weights]:
        """loss(xp, networks by name, *inputs), and its gradient."""
        networks = dict(self.network.named_children())
        return self._gradient(lambda: loss(self.torch, networks, *self.arrays(*inputs)))

    def _gradient(self, loss: Callable) -> tuple[float, Weights]:
        value = loss()
        names, parameters = zip(*self.pyro.get_param_store().named_parameters(), strict=True)
        gradients = self.torch.autograd.grad(value, parameters)
        return value.item(), {n: g.numpy() for n, g in zip(names, gradients, strict=True)}


class NumPyroNetworks:
    """The networks of a model in NumPyro."""

    def __init__(self, module: str, network: str, **sizes: Any) -> None:
        self.jax = importlib.import_module("jax")
        self.nnx = importlib.import_module("flax.nnx")
        self.handlers = importlib.import_module("numpyro.handlers")
        self.infer = importlib.import_module("numpyro.infer")
        self.gs = importlib.import_module("gs_ppl.numpyro")
        self.program = importlib.import_module(f"gs_ppl.models.{module}_numpyro")
        self.network = getattr(self.program, network)(**sizes, rngs=self.nnx.Rngs(0))
        self.params: dict[str, Any] = {}

    def know_parameters(self, *inputs: np.ndarray) -> None:
        for fn in (self.network.model, self.network.guide):
            trace = self.handlers.trace(self.handlers.seed(fn, 0)).get_trace(*inputs)
            found = {k: site["value"] for k, site in trace.items() if site["type"] == "param"}
            self.params |= found

    def set_weights(self, weights: Weights) -> None:
        """Sets the weights of the other side."""

        def find(path: tuple, old: Any) -> Any:
            value = weights[_name(path)]
            value = _to_flax(value) if path[-1].key == "kernel" else value
            assert value.shape == old.shape
            return self.jax.numpy.asarray(value)

        self.params = self.jax.tree_util.tree_map_with_path(find, self.params)
        assert len(self.jax.tree.leaves(self.params)) == len(weights)

    def log_joint(self, latents: dict[str, np.ndarray], *inputs: np.ndarray) -> float:
        density = importlib.import_module("numpyro.infer.util").log_density
        value, _ = density(self.network.model, inputs, {}, self.params | latents)
        return float(value)

    def enumerated(self, *inputs: np.ndarray) -> tuple[float, Weights]:
        elbo = self.infer.TraceEnum_ELBO(max_plate_nesting=1)
        programs = [self.gs.config_enumerate(f) for f in (self.network.model, self.network.guide)]
        key = self.jax.random.key(0)
        return self._gradient(lambda params: elbo.loss(key, params, *programs, *inputs))

    def by_hand(self, loss: Callable, *inputs: np.ndarray) -> tuple[float, Weights]:
        def networks(params: dict[str, Any]) -> dict[str, Callable]:
            result = {}
            for name, values in params.items():
                name = name.removesuffix("$params")
                graph, state = self.nnx.split(getattr(self.network, name))
                self.nnx.replace_by_pure_dict(state, values)
                result[name] = self.nnx.merge(graph, state)
            return result

        return self._gradient(lambda params: loss(self.jax.numpy, networks(params), *inputs))

    def _gradient(self, loss: Callable) -> tuple[float, Weights]:
        value, gradient = self.jax.jit(self.jax.value_and_grad(loss))(self.params)
        leaves, _ = self.jax.tree_util.tree_flatten_with_path(gradient)
        to_torch = {"kernel": _to_torch, "bias": np.asarray}
        return float(value), {_name(path): to_torch[path[-1].key](x) for path, x in leaves}


def _name(path: tuple) -> str:
    """The name in torch: decoder$$$0.weight for decoder$params, layers, 0, kernel."""
    module, *inner, kind = (part.key for part in path)
    kind = "weight" if kind == "kernel" else kind
    inner = [str(part) for part in inner if part != "layers"]
    return f"{module.removesuffix('$params')}$$${'.'.join([*inner, kind])}"


def _to_flax(weight: np.ndarray) -> np.ndarray:
    """From (out, in, ...) to (..., in, out)."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _to_torch(kernel: Any) -> np.ndarray:
    kernel = np.asarray(kernel)
    return kernel.transpose(-1, -2, *range(kernel.ndim - 2))


NETWORKS = {"pyro": PyroNetworks, "numpyro": NumPyroNetworks}


def make_pair(
    module: str, network: str, *inputs: np.ndarray, **sizes: Any
) -> tuple[PyroNetworks, NumPyroNetworks, dict[str, np.ndarray]]:
    """Both sides at the same weights, and latent values that the guide drew."""
    pair = PyroNetworks(module, network, **sizes), NumPyroNetworks(module, network, **sizes)
    latents = pair[0].trace(*inputs)
    pair[1].know_parameters(*inputs)
    pair[1].set_weights(pair[0].weights())
    return *pair, latents
