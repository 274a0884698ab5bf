"""Common parts of the examples: arguments, versions, and the JSON file of a run."""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image, PngImagePlugin

import gs_ppl
from gs_ppl.models.training_files import RunError

TITLES = {"pyro": "Pyro", "numpyro": "NumPyro"}
PACKAGES = {
    "pyro": ["torch", "pyro-ppl"],
    "numpyro": ["jax", "numpyro", "funsor"],
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(description: str, output: str, steps: int | None = None) -> argparse.ArgumentParser:
    """The arguments that every example takes; `description` is its docstring.

    Without `steps` the example does not train.
    """
    parser = Parser(description=description.split("\n")[0])
    parser.add_argument("--backend", choices=(*TITLES, "both"), default="both")
    if steps is None:
        parser.set_defaults(steps=None)
    else:
        parser.add_argument("--steps", type=int, default=steps, help=f"default {steps}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(output), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="PATH", help="default DIR/report.json")
    parser.add_argument("--quick", action="store_true", help="few steps: does it run?")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Checks the arguments, adds `backends`, the list of sides to run, and makes the folders."""
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    arguments.backends = list(TITLES) if arguments.backend == "both" else [arguments.backend]
    target = find_target(arguments)
    for folder in (arguments.output, target.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{folder} cannot be a folder: {error.strerror}")
    if target.is_dir():
        parser.error(f"{target} cannot be the report: it is a folder")
    return arguments


def find_target(arguments: argparse.Namespace) -> Path:
    """Path of the report."""
    return arguments.json or arguments.output / "report.json"


@contextmanager
def in_words(output: Path) -> Iterator[None]:
    """Errors that end a run early, in one line: refused (exit status 2), failed (1), Ctrl-C."""
    try:
        yield
    except RunError as error:
        stop(2, f"error: {error}")
    except (FloatingPointError, OSError) as error:
        stop(1, f"error: {error}")
    except KeyboardInterrupt:
        found = output.glob("checkpoints/*/step_" + 9 * "[0-9]")
        newest = max(found, key=lambda path: path.stat().st_mtime, default="none")
        stop(130, f"interrupted; the newest checkpoint is {newest}")


def stop(status: int, message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


def find_versions(backends: list[str]) -> dict[str, str]:
    packages = ["numpy", "scikit-learn", *(p for backend in backends for p in PACKAGES[backend])]
    versions = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "gs-ppl": gs_ppl.__version__, **versions}


def command_line() -> str:
    """The command of this run, with the last part of absolute paths, which are of this machine."""
    script, *options = sys.argv
    options = [Path(x).name if Path(x).is_absolute() else x for x in options]
    script = f"examples/{Path(script).name}" if Path(script).is_absolute() else script
    return " ".join([script, *options])


def digest(rows: list[Any]) -> str:
    """A checksum of the content of a record, in any layout and order."""
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stamp(picture: Path, rows: list[Any]) -> None:
    """Writes the checksum of the rows into the picture: a test compares the two."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Record", digest(rows))
    with Image.open(picture) as image:
        image.load()
        image.save(picture, pnginfo=info, dpi=image.info.get("dpi", (100, 100)))


def write_report(
    arguments: argparse.Namespace, pictures: list[Path], rows: list[dict[str, Any]], **more: Any
) -> Path:
    """Writes command, seed, versions and figures, marks the pictures; returns the file."""
    for picture in pictures:
        stamp(picture, rows)
    report = {
        "command": command_line(),
        "seed": arguments.seed,
        **({"steps": arguments.steps} if arguments.steps else {}),
        "versions": find_versions(arguments.backends),
        **more,
        "pictures": [str(picture) for picture in pictures],
        "rows": rows,
    }
    target = find_target(arguments)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    return target
