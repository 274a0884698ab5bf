"""AnnealedSVI.run: its reports during the run, and the arrays afterwards."""

import numpy as np
import pytest
from programs import by_name, plain

from gs_ppl import temperature
from gs_ppl.training import plot_training

SCHEDULE = temperature.exponential(rate=0.1, minimum=0.3)


def factorial_run(backend, steps, model=None, rate=0.05, **options):
    model = model or plain(backend, by_name("factorial"))
    guide = backend.gs.AutoGumbelSoftmax(model)
    elbo = backend.infer.TraceMeanField_ELBO()
    programs = backend.gs.relax(model), guide, elbo, SCHEDULE
    return backend.run(*programs, steps, rate, **options), model, guide


def test_arrays_and_callback(backend):
    seen = []
    watch = {"callback": lambda *now: seen.append(now), "callback_every": 4, "evaluate_every": 5}
    run, *_ = factorial_run(backend, 12, **watch)
    assert run.losses.shape == run.temperatures.shape == (12,)
    np.testing.assert_allclose(run.temperatures, [SCHEDULE(t) for t in range(12)], rtol=1e-6)
    assert [step for step, *_ in seen] == [3, 7, 11]
    np.testing.assert_allclose([loss for _, loss, _ in seen], run.losses[3::4], rtol=1e-6)
    np.testing.assert_allclose([tau for *_, tau in seen], run.temperatures[3::4], rtol=1e-6)
    assert run.evaluation_steps.tolist() == [4, 9]
    assert run.elbos.shape == (2,)
    plain_run, *_ = factorial_run(backend, 12, progress_bar=False)
    np.testing.assert_allclose(plain_run.losses, run.losses, rtol=1e-6)  # watching makes no draws
    assert plain_run.elbos.shape == (0,)
    picture = plot_training(run)
    assert picture._repr_png_().startswith(b"\x89PNG")  # a notebook shows this
    left, right = picture.axes
    assert [len(line.get_xdata()) for line in left.get_lines()] == [12, 2]
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), run.temperatures)


def test_elbos_are_those_of_the_discrete_programs(backend):
    """At learning rate 0: those of the uniform guide, summed by hand."""
    run, *_ = factorial_run(backend, 60, rate=0.0, evaluate_every=1)
    joint = by_name("factorial").log_joints()
    expected, spread = joint.mean() + np.log(joint.size), joint.std() / np.sqrt(600)
    assert abs(run.elbos.mean() - expected) < 5 * spread  # fails for one in two million seeds


def test_elbos_of_a_program_that_is_enumerated_in_part(backend):
    """By TraceEnum_ELBO: z is drawn, the bit summed out; at learning rate 0, by hand."""
    ppl, gs, native = backend.ppl, backend.gs, backend.native

    def model():
        z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2))))
        law = native.Bernoulli(probs=backend.array(0.3))
        bit = ppl.sample("bit", law, infer={"enumerate": "parallel"})
        ppl.sample("x", native.Normal(2 * z[..., 1] + bit, 1.0), obs=backend.array(0.5))

    programs = gs.relax(model, sites=["z"]), gs.AutoGumbelSoftmax(model, sites=["z"])
    loss = gs.TraceEnum_ELBO(max_plate_nesting=0)
    run = backend.run(*programs, loss, SCHEDULE, 20, 0.0, evaluate_every=1, progress_bar=False)
    loc = np.array([[0.0, 1.0], [2.0, 3.0]])
    terms = np.log([0.7, 0.3]) - (0.5 - loc) ** 2 / 2 - np.log(2 * np.pi) / 2
    by_class = np.logaddexp.reduce(terms, -1)  # log p(z) and log q(z) are the same
    np.testing.assert_allclose(sorted(set(run.elbos.round(5))), sorted(by_class), rtol=1e-4)


@pytest.mark.parametrize("progress_bar", [True, False])
def test_progress_bar(backend, progress_bar, capsys):
    factorial_run(backend, 5, progress_bar=progress_bar)
    shown = capsys.readouterr().err
    assert ("temperature 0.67" in shown) == progress_bar  # of the last step
    assert ("loss" in shown) == progress_bar


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # of Pyro, before
@pytest.mark.parametrize("progress_bar", [True, False])
def test_nan_is_named_with_step_and_site(backend, progress_bar):
    """The site "x" has no score from the fourth step on, when the temperature is below 0.75."""
    ppl, gs = backend.ppl, backend.gs

    def model(temperature=1.0):
        z = ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2))))
        nan = backend.where(temperature < 0.75, np.nan, 0.0)
        loc = z[..., 0] + nan
        ppl.sample(
            "x", backend.native.Normal(loc, 1.0, validate_args=False), obs=backend.array(0.0)
        )

    with pytest.raises(ValueError, match="the loss of step 3 is nan, first at site 'x'"):
        factorial_run(backend, 6, model=model, progress_bar=progress_bar)


def test_a_loss_that_stays_infinite_is_named(backend):
    ppl, gs = backend.ppl, backend.gs

    def model():
        ppl.sample("z", gs.OneHotCategorical(logits=backend.array(np.zeros(2))))
        ppl.factor("never", backend.array(-np.inf))

    with pytest.raises(ValueError, match="the loss of all steps is infinite, at sites 'never':"):
        factorial_run(backend, 3, model=model, progress_bar=False)


@pytest.mark.parametrize("option", ["callback_every", "evaluate_every"])
def test_refuses_counts_below_one(backend, option):
    with pytest.raises(ValueError, match=f"run: {option} must be at least 1, got 0"):
        factorial_run(backend, 3, **{option: 0})
