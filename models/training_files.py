"""The files in the folder of a run: settings, curves and checkpoints, each with a checksum.

No code in a file is executed: checkpoints are arrays and numbers.
"""

import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Protocol

Curves = dict[str, list[list[float]]]  # points [step, nats per image]


class RunError(ValueError):
    """A run that cannot start or continue; the message says why."""


class Stored(Protocol):
    """The state that a checkpoint holds."""

    step: int

    def save(self, file: BinaryIO) -> None:
        """Writes the state."""

    def load(self, file: BinaryIO) -> None:
        """Reads the state."""


# --- whole files ----------------------------------------------------------------------------------


def write(path: Path, content: bytes, step: int) -> None:
    """Writes a file whole or not at all; it is on the disk when this returns.

    Raises:
        OSError: with the file, the step of the run, and the newest checkpoint.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        newest = newest_checkpoint(path.parent) or "none"
        text = f"{error.strerror or error}, at step {step}; the newest checkpoint is {newest}"
        raise OSError(error.errno, text, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def seal(content: bytes) -> bytes:
    """The bytes, after a line with their checksum."""
    return checksum(content).encode() + b"\n" + content


def unseal(path: Path) -> bytes:
    """The bytes that were sealed, if none has changed."""
    if path.is_dir():
        raise RunError(f"{path}: a folder, not a checkpoint of this version")
    given, _, content = path.read_bytes().partition(b"\n")
    if given != checksum(content).encode():
        raise RunError(f"{path}: damaged, its checksum is not that of its content")
    return content


def write_json(path: Path, content: dict[str, Any], step: int) -> None:
    """Writes JSON with a checksum of its content."""
    total = {**content, "sha256": checksum(json.dumps(content).encode())}
    write(path, (json.dumps(total, indent=1) + "\n").encode(), step)


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """Reads what write_json has written."""
    try:
        content = json.loads(path.read_bytes())
        given = content.pop("sha256")
        whole = given == checksum(json.dumps(content).encode())
    except (ValueError, LookupError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise RunError(f"{path}: damaged, its checksum is not that of its content; {cure}")
    return content


# --- the folder of a run --------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, the oldest first; an unfinished or rejected one has another name."""
    return sorted(folder.glob("step_" + "[0-9]" * 9), key=lambda path: path.name)


def newest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints(folder)), None)


def save_checkpoint(run: Stored, curves: Curves, folder: Path) -> None:
    """Gives the file its name when it is complete; then deletes all older ones except one."""
    content = io.BytesIO()
    run.save(content)
    write_json(folder / "curves.json", curves, run.step)
    write(folder / f"step_{run.step:09d}", seal(content.getvalue()), run.step)
    for old in checkpoints(folder)[:-2]:
        remove(old)


def remove(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def resume(run: Stored, settings: dict[str, Any], folder: Path) -> Curves:
    """Takes a run up at the folder's newest whole checkpoint, if there is one.

    Args:
        run: to load it into.
        settings: of the run; those of the folder must be the same.
        folder: is made if there is none.

    Returns:
        The curves up to the checkpoint.

    Raises:
        RunError: naming the file that is damaged or of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(json.loads(json.dumps(settings)), folder)
    load_newest(run, folder)
    if run.step == 0:
        return {"losses": [], "evaluations": []}
    path, left = folder / "curves.json", f"the curves begin at step {run.step}"
    if not path.exists():
        warnings.warn(f"{path} is missing: {left}", stacklevel=3)
        return {"losses": [], "evaluations": []}
    curves = read_json(path, f"without it, {left}")
    return {name: [p for p in curve if p[0] <= run.step] for name, curve in curves.items()}


def check_settings(settings: dict[str, Any], folder: Path) -> None:
    """Refuses a folder with a run of other settings; writes them to a new one."""
    path = folder / "settings.json"
    if not path.exists():
        if checkpoints(folder):
            text = f"{path} is missing: the checkpoints beside it are taken for this run's"
            warnings.warn(text, stacklevel=4)
        write_json(path, settings, 0)
        return
    saved = read_json(path, "remove it if the run beside it has the settings of this one")
    names = [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]
    if names:
        changes = ", ".join(f"{name} {saved.get(name)!r}" for name in names)
        raise RunError(f"{folder} has a run with other settings: {changes}; see {path.name}")


def load_newest(run: Stored, folder: Path) -> None:
    """Loads the newest whole checkpoint; damaged ones after it are named and set aside."""
    damaged: dict[Path, RunError] = {}
    for path in reversed(checkpoints(folder)):
        try:
            content = unseal(path)
            break
        except RunError as error:
            damaged[path] = error
    else:
        if damaged:
            text = "; ".join(map(str, damaged.values()))
            raise RunError(f"{text}; no whole checkpoint is left: without these, it begins anew")
        return
    try:
        run.load(io.BytesIO(content))
    except Exception as error:  # any error that a foreign file can cause
        reason = str(error).strip().split("\n")[0]
        raise RunError(f"{path}: not a checkpoint of this run: {reason}") from error
    if path.name != f"step_{run.step:09d}":
        raise RunError(f"{path}: not a checkpoint of this step, but of {run.step}")
    for other, error in damaged.items():
        aside = other.with_name(other.name + ".damaged")
        if aside.exists():
            remove(aside)
        other.rename(aside)
        text = f"{error}; it is now {aside.name}, and the run goes on from {path.name}"
        warnings.warn(text, stacklevel=4)
