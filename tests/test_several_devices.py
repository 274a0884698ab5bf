"""Data-parallel training: several processes or devices equal one on the joined batches."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent


def values(rows=4):
    return np.random.default_rng(0).normal(size=(rows,))


# --- both sides -----------------------------------------------------------------------------------


def test_temperature_of_another_loop(backend):
    """A site without a temperature takes that of the context; an explicit one has priority."""

    def model():
        return backend.ppl.sample("z", backend.gs.OneHotCategorical(logits=backend.array([0.0, 1])))

    programs = {"context": backend.gs.relax(model), "own": backend.gs.relax(model, temperature=2.0)}
    with backend.gs.at_temperature(0.25):
        laws = {name: backend.sites(program, 0)["z"][0] for name, program in programs.items()}
    assert {name: float(law.temperature) for name, law in laws.items()} == {
        "context": 0.25,
        "own": 2.0,
    }
    with pytest.raises(ValueError, match="no temperature"):
        backend.sites(programs["context"], 0)


# --- Pyro: losses as modules, draws of each process -----------------------------------------------


@pytest.fixture
def module(backend):
    """A module: a program with a parameter, and a latent in each row."""
    torch, ppl = backend.torch, backend.ppl

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.locs = torch.nn.Parameter(torch.tensor([-1.0, 2.0], dtype=torch.float64))

        def forward(self, x):
            with ppl.plate("data", len(x)):
                logits = torch.zeros(2, dtype=torch.float64)
                z = ppl.sample("z", backend.native.Categorical(logits=logits))
                ppl.sample("x", backend.native.Normal(self.locs[z], 1.0), obs=x)

    return Model()


@pytest.mark.only("pyro")
@pytest.mark.parametrize("handler", ["relax", "discretize", "config_enumerate"])
def test_handled_module_is_a_module(backend, module, handler):
    handled = getattr(backend.gs, handler)(module)
    assert [*handled.parameters()] == [module.locs]
    assert repr(handled) == f"{handler}(Model)"
    twin = copy.deepcopy(handled)  # it uses its copy of the parameter
    with backend.torch.no_grad():
        twin.module.locs += 1.0
    assert (twin.module.locs - module.locs == 1.0).all()


@pytest.mark.only("pyro")
def test_loss_as_a_module_trains_the_model(backend, module):
    """torch alone trains it: its parameters are those of model and guide."""
    gs = backend.gs
    x, guide = backend.array(values()), backend.gs.AutoGumbelSoftmax(module)
    loss = backend.infer.TraceMeanField_ELBO()(gs.relax(module), guide)
    with gs.at_temperature(0.5):
        loss(x)  # makes the logits
        assert {tuple(p.shape) for p in loss.parameters()} == {(2,), (4, 2)}
        loss(x).backward()
    assert all((p.grad != 0).any() for p in loss.parameters())


@pytest.fixture
def parallel(backend):
    from gs_ppl.models import distributed_pyro

    return distributed_pyro


def halves(backend, parallel, process, rows):
    """Draws of a process whose step has these rows, and the gradient of its loss."""
    torch, ppl, native = backend.torch, backend.ppl, backend.native
    x, rows = backend.array(values(8)), torch.as_tensor(rows)
    loc = backend.array(0.3).requires_grad_()

    def model():
        w = ppl.sample("w", native.Normal(backend.array(0.0), 1.0))
        with ppl.plate("components", 3):
            ppl.sample("v", native.Normal(backend.array(0.0), 1.0))
        with ppl.plate("data", len(x), subsample=rows):
            u = ppl.sample("u", native.Normal(backend.array(0.0), 1.0))
            ppl.sample("x", native.Normal(w, 1.0), obs=x[rows])
            return u

    def guide():
        ppl.sample("w", native.Normal(loc, 1.0))
        with ppl.plate("components", 3):
            ppl.sample("v", native.Normal(loc, 1.0))
        with ppl.plate("data", len(x), subsample=rows):
            ppl.sample("u", native.Normal(backend.array(0.0), 1.0))

    alike = parallel.DrawnAlike()
    alike.start(0, 1)
    torch.manual_seed(process)
    loss = backend.infer.TraceMeanField_ELBO(num_particles=2)(model, alike(guide))()
    alike.start(0, 1)
    traces = [backend.trace(alike(guide), process) for _ in range(2)]
    return traces, torch.autograd.grad(loss, loc)[0]


@pytest.mark.only("pyro")
def test_processes_draw_alike_what_is_not_of_rows(backend, parallel):
    (first, second), gradient = halves(backend, parallel, 0, [0, 2, 4])
    (other, _), other_gradient = halves(backend, parallel, 1, [1, 3, 5])
    _, joined = halves(backend, parallel, 2, [0, 1, 2, 3, 4, 5])
    assert {n: bool((first[n] == other[n]).all()) for n in first} == {"w": True, "v": True, "u": 0}
    assert (first["w"], first["v"][0]) != (second["w"], second["v"][0])  # particles
    # with `size=` all rows, the mean of the gradients is the gradient of the joined rows
    np.testing.assert_allclose(float(gradient + other_gradient) / 2, float(joined), rtol=1e-12)
    assert abs(float(gradient - other_gradient)) > 1e-3


@pytest.mark.only("pyro")
def test_loader_deals_out_the_rows_of_one_process(backend, parallel, monkeypatch):
    from gs_ppl.models.training import Settings

    images, settings = np.arange(10.0)[:, None], Settings(batch=4)

    def dealt(rank, processes, step=0):
        monkeypatch.setattr(parallel, "position", lambda: (rank, processes))
        found = parallel.batches(parallel.make_loader(settings, images), step)
        return [next(found)[0].flatten().tolist() for _ in range(4)]

    whole, mine, theirs = dealt(0, 1), dealt(0, 2), dealt(1, 2)
    for a, b, c in zip(whole, mine, theirs, strict=True):
        assert a == [x for pair in zip(b, c, strict=True) for x in pair]
    assert whole[0] + whole[1] != whole[2] + whole[3]  # another order in the next epoch
    assert dealt(0, 1, step=3)[0] == whole[3]
    with pytest.raises(ValueError, match="batch 4 cannot be divided by 3"):
        dealt(0, 3)


@pytest.mark.long
@pytest.mark.only("pyro")
def test_two_processes_are_one_in_torch(backend, tmp_path):
    """DistributedDataParallel and Lightning, both resumed in the middle."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, TESTS / "two_processes_pyro.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    off = json.loads((tmp_path / "off.json").read_text())
    assert off["moved"] > 1e-3
    assert off["ddp"] < 1e-9
    assert off["lightning"] < 1e-9


# --- NumPyro: the devices of a mesh ---------------------------------------------------------------


@pytest.fixture
def jax(backend):
    assert backend.jax.device_count() > 1, "conftest.py asks for two"
    return backend.jax


@pytest.mark.only("numpyro")
def test_two_devices_are_one_in_jax(backend, jax):
    """With the same keys, up to the rounding of sums over rows."""
    from two_processes_numpyro import params

    one, two = params(1), params(2)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-9, rtol=0)


@pytest.mark.long
@pytest.mark.only("numpyro")
def test_two_processes_are_one_in_jax(backend, jax, tmp_path):
    """The run is resumed in the middle."""
    from two_processes_numpyro import params

    with socket.socket() as free:
        free.bind(("localhost", 0))
        meet = f"localhost:{free.getsockname()[1]}"
    script, file = TESTS / "two_processes_numpyro.py", tmp_path / "params.npz"
    commands = [[sys.executable, script, file, "2", meet, str(i)] for i in range(2)]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    options = {"env": os.environ | {"XLA_FLAGS": flags}, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(c, **options) for c in commands]
    one = params(1)
    errors = [child.communicate()[1] for child in children]
    assert all(child.returncode == 0 for child in children), errors
    with np.load(file) as two:
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, atol=1e-9, rtol=0)


@pytest.mark.only("numpyro")
def test_logits_of_rows_are_split(backend, jax):
    """A subsampled plate: each device has its part of logits and moments, and a step equals that of
    one device."""
    import optax

    from gs_ppl.models.distributed_numpyro import lay_out, make_mesh

    gs, jnp, rows = backend.gs, backend.jnp, 1000

    def model(x):
        with backend.ppl.plate("data", rows, subsample_size=20) as chosen:
            z = backend.ppl.sample("z", backend.native.Categorical(jnp.zeros(5) + 0.2))
            backend.ppl.sample("x", backend.native.Normal(jnp.arange(5.0)[z], 1.0), obs=x[chosen])

    guide, elbo = gs.AutoGumbelSoftmax(model), backend.infer.TraceMeanField_ELBO()
    svi = gs.AnnealedSVI(gs.relax(model), guide, optax.adam(0.1), elbo, lambda step: 0.5)
    x = jnp.asarray(values(rows))
    start = svi.init(jax.random.key(0), x)
    logits, used = [], []
    for devices in (1, 2):
        mesh = make_mesh(jax.devices()[:devices])
        state, data = lay_out((start, x), mesh, rows)
        step = jax.jit(svi.update).lower(state, data).compile()
        used.append(step.memory_analysis().argument_size_in_bytes)
        state, _ = step(state, data)
        logits.append(svi.get_params(state)["z_auto_logits"])
        assert logits[-1].sharding.shard_shape((rows, 5)) == (rows // devices, 5)
    assert used[1] < 0.51 * used[0]
    np.testing.assert_allclose(*logits, atol=1e-6)
    assert (logits[0] != 0).any(1).sum() == 20
