"""train.py and reproduce.py refuse bad options before training, in one line, and so ends Ctrl-C."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from gs_ppl.models import data, training

ROOT = Path(__file__).parents[1]


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """Runs the command in this process with these options; returns status, output and errors.

    No trainer may be made, unless a test sets one.
    """
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)

    def not_to_be_reached(*_):
        raise AssertionError("it trains")

    monkeypatch.setattr(training, "make_trainer", not_to_be_reached)

    def run(*options, script="train"):
        monkeypatch.setattr("sys.argv", [f"{script}.py", *options])
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(script).main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


SEMI_SUPERVISED = ("--model", "semi_supervised")
REFUSED = {
    # options: the message
    ("--model", "gan"): "argument --model: invalid choice: 'gan'",
    ("--steps", "x"): "argument --steps: invalid int value: 'x'",
    ("--steps", "0"): "--steps must be at least 1, got 0",
    ("--learning-rate", "-1"): "learning_rate must be finite and positive, got -1.0",
    ("--learning-rate", "nan"): "learning_rate must be finite and positive, got nan",
    ("--samples", "0"): "samples must be at least 1, got 0",
    ("--evaluate-every", "0"): "evaluate_every must be at least 1, got 0",
    ("--checkpoint-every", "-5"): "checkpoint_every must be at least 1, got -5",
    ("--variables", "0"): "variables must be at least 1, got 0",
    ("--classes", "0"): "classes must be at least 1, got 0",
    ("--batch", "0"): "batch must be at least 1, got 0",
    ("--hidden", "5", "0"): "hidden[1] must be at least 1, got 0",
    ("--seed", "-1"): "seed must be at least 0, got -1",
    ("--rate", "-1"): "rate must be finite and at least 0, got -1.0",
    ("--minimum", "2"): "minimum must be at most start, 1.0, got 2.0",
    ("--every", "0"): "every must be at least 1, got 0",
    ("--family", "Concrete"): "family must be one of GumbelSoftmax, ",
    ("--family", "ReinMax", "--objective", "relaxed"): "objective 'relaxed' is for GumbelSoftmax",
    # of the semi-supervised model
    (*SEMI_SUPERVISED, "--channels", "0"): "channels must be at least 1, got 0",
    (*SEMI_SUPERVISED, "--alpha", "-1"): "alpha must be finite and at least 0, got -1.0",
    (*SEMI_SUPERVISED, "--labelled", "0"): "labelled must be at least 1, got 0",
    (*SEMI_SUPERVISED, "--hidden"): "has one hidden width, got ()",
    (*SEMI_SUPERVISED, "--per-class", "0"): "per_class must be at least 1, got 0",
    (*SEMI_SUPERVISED, "--per-class", "999"): "999 rows of each class are wanted",
    (*SEMI_SUPERVISED, "--shift", "-1"): "shift must be at least 0, got -1",
    (*SEMI_SUPERVISED, "--classes", "5"): "classes must be from 0 to 4, got 0 to 9",
    # without effect
    **{
        (f"--{option}", "3"): f"--{option} has no effect with the model vae"
        for option in ("alpha", "channels", "labelled", "per-class", "shift")
    },
    ("--model", "structured_output", "--hidden", "5"): "structured_output has no hidden layers",
    ("--model", "structured_output", "--alpha", "5"): "with the model structured_output",
    ("--rate", "0", "--minimum", ".3"): "--minimum has no effect with rate 0",
    ("--rate", "0", "--every", "3"): "--every has no effect with rate 0",
    **{
        ("--family", family, f"--{option}", "0.1"): f"--{option} has no effect with the family"
        for family, option in (("RLOO_ELBO", "rate"), ("enumerated", "minimum"))
    },
    ("--family", "ReinMax", "--objective", "categorical"): "--objective has no effect with the fam",
    ("--data", "digits", "--data-dir", "."): "--data-dir has no effect with --data digits",
    # the data
    ("--data-dir", "nowhere"): "nowhere/train-images-idx3-ubyte: no such file, nor",
    ("--test-images", "9"): "--test-images must be from 10, which the picture shows, to 297",
    ("--test-images", "298"): "which there are, got 298",
    ("--quick", "--test-images", "0"): "got 0",
    # the paths
    ("--json", "."): ". cannot be the report: it is a folder",
    ("--output", "file"): "file cannot be a folder: File exists",
    ("--output", "file/below"): "file/below cannot be a folder: Not a directory",
    ("--json", "file/below/report.json"): "file/below cannot be a folder: Not a directory",
    ("--output", "reported"): "reported/report.json cannot be the report: it is a folder",
    ("--backend", "both"): "it trains on one backend",
}


@pytest.mark.parametrize(("options", "message"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_refused_in_one_line(train, options, message):
    Path("file").write_text("in the way")
    Path("reported/report.json").mkdir(parents=True)
    status, out, err = train(*options)
    assert status == 2
    assert err.startswith("train.py: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not out


def test_corrupt_data_are_refused(train, monkeypatch):
    for name in data.MNIST_FILES:
        Path(name).write_bytes(b"an error page")
    status, _, err = train("--data-dir", ".")
    assert (status, err.count("\n")) == (2, 1)
    assert "train-images-idx3-ubyte: not the train-images-idx3-ubyte of MNIST" in err


REFUSED_CELLS = {
    ("table1", "--quick", "--only", "gan"): "no cell of table1 has 'gan' in its name",
    ("table1", "--only", "vae_bits_st", "--data-dir", "nowhere"): "train-images-idx3-ubyte: no su",
    ("tune", "--recorded"): "nothing of tune is recorded in here",
    ("figure5", "--recorded"): "nothing of figure5 is recorded in here",
    ("costs", "--recorded"): "nothing of costs is recorded in here",
    ("costs", "--only", "vae"): "--only and --data-dir have no effect with costs",
    ("figure5", "--only", "vae"): "--only and --data-dir have no effect with figure5",
    ("figure5", "--data-dir", "."): "--only and --data-dir have no effect with figure5",
}


@pytest.mark.parametrize(
    ("options", "message"), REFUSED_CELLS.items(), ids=map(" ".join, REFUSED_CELLS)
)
def test_cells_refused_in_one_line(train, options, message):
    status, out, err = train(*options, "--results", "here", script="reproduce")
    assert status == 2
    assert err.startswith("reproduce.py: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not out


class Trainer:
    """Takes steps; at step 60 something happens."""

    def __init__(self, happens):
        self.step, self.happens = 0, happens

    def advance(self, steps):
        if self.step >= 60:
            raise self.happens
        self.step += steps
        return np.full(steps, 9.0)

    def bound(self, images, samples, seed):
        return np.arange(float(len(images)))

    def save(self, file):
        file.write(str(self.step).encode())

    def load(self, file):
        self.step = int(file.read())


ENDS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted; the newest checkpoint is {}"),
    "disk": (OSError(28, "No space left", "f"), 1, "error: [Errno 28] No space left: 'f'"),
    "another run": (training.RunError("as said"), 2, "error: as said"),
}


@pytest.mark.parametrize(("happens", "status", "line"), ENDS.values(), ids=ENDS)
def test_ends_with_one_line(train, happens, status, line, monkeypatch):
    monkeypatch.setattr(training, "make_trainer", lambda *_: Trainer(happens))
    found, out, err = train("--checkpoint-every", "20", "--output", "run")
    assert found == status
    newest = Path("run/checkpoints/numpyro/step_000000060")
    assert err.split("\n")[-2] == f"train.py: {line.format(newest)}"
    assert "Traceback" not in err
    assert not out
    found, out, err = train("--checkpoint-every", "20", "--output", "run")  # it resumes
    assert found == status


def test_interrupted_before_the_first_checkpoint(train, monkeypatch):
    monkeypatch.setattr(training, "make_trainer", lambda *_: Trainer(KeyboardInterrupt()))
    status, _, err = train("--output", "run")
    assert status == 130
    assert err.endswith("train.py: interrupted; the newest checkpoint is none\n")
