"""The folder of a run: errors name damaged, foreign and missing files, and no file is executed.

Most tests run a counter, which reads and writes the same files as a trainer; the rest run both
sides.
"""

import dataclasses
import errno
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gs_ppl.models import training_files
from gs_ppl.models.training import RunError, Settings, fit, make_trainer
from gs_ppl.models.training_files import checkpoints, resume, save_checkpoint, seal

SIDES = ["pyro", "numpyro"]
SETTINGS = {"rate": 0.1, "hidden": (2, 3)}


class Counter:
    """Its state is its step."""

    def __init__(self, step=0):
        self.step = step

    def save(self, file):
        file.write(f"{self.step:4d}".encode())

    def load(self, file):
        self.step = int(file.read())


def points(*steps):
    return {"losses": [[step, 0.5 * step] for step in steps], "evaluations": []}


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that was killed after step 30: checkpoints at 20 and 30."""
    resume(Counter(), SETTINGS, tmp_path)
    for step in (10, 20, 30):
        save_checkpoint(Counter(step), points(*range(10, step + 1, 10)), tmp_path)
    return tmp_path


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-2])


def damage_empty(path):
    path.write_bytes(b"")


def damage_garbage(path):
    path.write_bytes(bytes(range(256)) * 4)


def damage_last_bit(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def damage_checksum(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def damage_folder(path):
    path.unlink()
    path.mkdir()
    (path / "array").write_bytes(b"of another version")


DAMAGES = [damage_truncated, damage_empty, damage_garbage]
DAMAGES += [damage_last_bit, damage_checksum, damage_folder]
damages = pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__[7:])


def test_goes_on_from_the_newest(folder):
    assert [path.name for path in checkpoints(folder)] == ["step_000000020", "step_000000030"]
    run = Counter()
    assert resume(run, SETTINGS, folder) == points(10, 20, 30)
    assert run.step == 30


@damages
def test_damaged_newest_checkpoint(folder, damage):
    """A warning names it and it is renamed; the run goes on from the older one, with its curves."""
    old, new = checkpoints(folder)
    damage(new)
    run = Counter()
    with pytest.warns(UserWarning, match=rf"{new}: .*; it is now {new.name}\.damaged.*{old.name}"):
        curves = resume(run, SETTINGS, folder)
    assert run.step == 20
    assert curves == points(10, 20)
    assert checkpoints(folder) == [old]
    save_checkpoint(Counter(30), points(10, 20, 30), folder)  # its name is free again
    damage(new)
    with pytest.warns(UserWarning, match=new.name):  # the renamed file is replaced
        resume(Counter(), SETTINGS, folder)


@damages
def test_no_whole_checkpoint(folder, damage):
    """The error names all of them, and they stay."""
    before = checkpoints(folder)
    for path in before:
        damage(path)
    with pytest.raises(RunError, match=rf"{before[1]}: .*{before[0]}: .*no whole checkpoint"):
        resume(Counter(), SETTINGS, folder)
    assert checkpoints(folder) == before


def edit(path):
    path.write_text(path.read_text().replace("0.", "1."))


@pytest.mark.parametrize("name", ["curves.json", "settings.json"])
@pytest.mark.parametrize("damage", [damage_truncated, damage_empty, damage_garbage, edit])
def test_damaged_json(folder, name, damage):
    damage(folder / name)
    with pytest.raises(RunError, match=rf"{folder / name}: damaged"):
        resume(Counter(), SETTINGS, folder)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"sha256": 3}', "null"])
def test_other_json(folder, text):
    (folder / "curves.json").write_text(text)
    with pytest.raises(RunError, match=r"curves.json: damaged"):
        resume(Counter(), SETTINGS, folder)


@pytest.mark.parametrize("name", ["curves.json", "settings.json"])
def test_missing_json(folder, name):
    """The error names the solution: without the file, the run goes on, with a warning."""
    (folder / name).unlink()
    run = Counter()
    with pytest.warns(UserWarning, match=rf"{folder / name} is missing"):
        curves = resume(run, SETTINGS, folder)
    assert run.step == 30
    assert curves == (points() if name == "curves.json" else points(10, 20, 30))


def test_another_run(folder):
    with pytest.raises(RunError, match=r"other settings: rate 0.1; see settings.json"):
        resume(Counter(), SETTINGS | {"rate": 0.2}, folder)
    resume(Counter(), SETTINGS | {"hidden": [2, 3]}, folder)  # in the form of JSON


def test_checkpoint_under_the_name_of_another_step(folder):
    (folder / "step_000000030").rename(folder / "step_000000040")
    with pytest.raises(RunError, match=r"step_000000040: not a checkpoint of this step, but of 30"):
        resume(Counter(), SETTINGS, folder)


@pytest.mark.parametrize("file", ["curves.json", "step_000000040"])
def test_disk_full(folder, file, monkeypatch):
    """The error names file, step and newest checkpoint; complete files stay, and no partial file is
    left."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    class FullDisk(io.FileIO):
        def write(self, content):
            if Path(self.name).name == f"{file}.partial":
                super().write(content[:3])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_checkpoint(Counter(40), points(10, 20, 30, 40), folder)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(folder / file)
    for text in ("at step 40", str(folder / "step_000000030"), file):
        assert text in str(caught.value)
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    run = Counter()
    assert resume(run, SETTINGS, folder) == points(10, 20, 30)
    assert run.step == 30


# --- the trainers ---------------------------------------------------------------------------------

IMAGES = (np.random.default_rng(0).random((20, 16)) < 0.5).astype(np.float32)
SMALL = Settings(variables=2, classes=2, steps=6, batch=4)


def run(side, folder):
    options = {"samples": 1, "chunk": 2, "checkpoint_every": 2}
    _, result = fit(side, SMALL, IMAGES, IMAGES[:5], folder, **options)
    result["test"].pop("seconds")
    return result


@pytest.fixture(scope="module", params=SIDES)
def finished(request, tmp_path_factory):
    """A side, the folder of a complete run, and its result."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, run(request.param, folder)


def test_run_goes_on_from_the_older_checkpoint(finished, tmp_path):
    """It ends with the same state and curves as a run without damage."""
    side, whole, expected = finished
    folder = shutil.copytree(whole, tmp_path / "run")
    old, new = checkpoints(folder)
    content = bytearray(new.read_bytes())
    content[len(content) // 2] ^= 0x10
    new.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{new}: damaged.*goes on from {old.name}"):
        assert run(side, folder) == expected
    assert checkpoints(folder) == [old, new]
    assert new.read_bytes() == (whole / new.name).read_bytes()


@pytest.fixture(scope="module", params=SIDES)
def trainer(request):
    return make_trainer(request.param, SMALL, IMAGES)


class Evil:
    """When it is unpickled, it writes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def write_torch(file, evil):
    torch.save({"params": evil, "random": evil}, file)


def write_pickle(file, evil):
    pickle.dump(evil, file)


def write_npz(file, evil):
    np.savez(file, np.array([evil], object))


def write_npy(file, evil):
    np.save(file, np.array([evil], object))


@pytest.mark.parametrize("write", [write_torch, write_pickle, write_npz, write_npy])
def test_pickled_code_is_not_executed(trainer, write, tmp_path):
    """It is not executed, even with the right checksum."""
    content, mark = io.BytesIO(), tmp_path / "mark"
    write(content, Evil(mark))
    folder = tmp_path / "run"
    resume(Counter(), SETTINGS, folder)
    path = folder / "step_000000001"
    path.write_bytes(seal(content.getvalue()))
    with pytest.raises(RunError, match=rf"{path}: not a checkpoint of this run: \S+"):
        resume(trainer, SETTINGS, folder)
    assert not mark.exists()


@pytest.mark.parametrize("write", [write_torch, write_pickle, write_npz, write_npy])
def test_the_code_would_be_executed(write, tmp_path):
    """A loader that allows it executes the code, so that the test above can fail."""
    content, mark = io.BytesIO(), tmp_path / "mark"
    write(content, Evil(mark))
    content.seek(0)
    loaders = {write_torch: lambda f: torch.load(f, weights_only=False), write_pickle: pickle.load}
    arrays = loaders.get(write, lambda f: np.load(f, allow_pickle=True))(content)
    _ = arrays["arr_0"] if write is write_npz else None
    assert mark.exists()


def test_checkpoint_of_another_network(finished, tmp_path):
    """settings.json was removed, as the error suggests, but the checkpoint is of another
    network."""
    side, whole, _ = finished
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "settings.json").unlink()
    trainer = make_trainer(side, dataclasses.replace(SMALL, variables=3), IMAGES)
    with (
        pytest.warns(UserWarning, match=r"settings.json is missing"),
        pytest.raises(RunError, match=r"step_000000006: not a checkpoint of this run: \S.* got"),
    ):
        resume(trainer, SETTINGS, folder)


def test_settings_are_readable(folder):
    """JSON that a person can read, with its checksum."""
    saved = json.loads((folder / "settings.json").read_text())
    assert saved.keys() == {*SETTINGS, "sha256"}
    assert training_files.read_json(folder / "settings.json", "")["hidden"] == [2, 3]
