"""Data sets for the models and examples, as NumPy arrays."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
from sklearn import datasets

MNIST_FILES = {  # SHA-256 of the uncompressed files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
TRAINING_IMAGES = 60_000


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits that scikit-learn bundles; nothing is downloaded.

    Returns:
        Counts, integers from 0 to 16, shape (1797, 64): how many of the 16 points in each cell of
        an 8x8 grid are inked, rows first; and the digits written, integers, shape (1797,).

    Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI repository.

    Example:
        >>> counts, labels = load_digits()
        >>> counts.shape, int(counts.min()), int(counts.max()), labels.shape
        ((1797, 64), 0, 16, (1797,))
    """
    bunch = datasets.load_digits()
    return bunch.data.astype(np.int64), bunch.target.astype(np.int64)


def load_mnist(data_dir: Path | str | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """MNIST: grey levels from 0 to 1 and labels, by part, "train" (60,000) and "test" (10,000).

    Args:
        data_dir: folder of the four IDX files, each plain or with .gz; None: scikit-learn's
            fetch_openml downloads and keeps them.

    Returns:
        Images, float32, shape (images, 784), rows first; and digits, integers, shape (images,).

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: naming a file that is truncated, corrupt or another one.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, the MNIST database.
    """
    if data_dir is None:
        bunch = datasets.fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
        images, labels = bunch.data, bunch.target.astype(np.int64)
        parts = slice(None, TRAINING_IMAGES), slice(TRAINING_IMAGES, None)
        pairs = [(images[part], labels[part]) for part in parts]
    else:
        files = [read_idx(Path(data_dir), name) for name in MNIST_FILES]
        pairs = [(files[0], files[1]), (files[2], files[3])]
    return {
        part: (images.reshape(len(images), 784).astype(np.float32) / 255, labels.astype(np.int64))
        for part, (images, labels) in zip(("train", "test"), pairs, strict=True)
    }


def read_idx(folder: Path, name: str) -> np.ndarray:
    """One of MNIST's IDX files, plain or gzipped; its checksum is checked."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise FileNotFoundError(f"{folder / name}: no such file, nor {name}.gz beside it")
    (path, *_) = found
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:  # cut off; no gzip, or damaged; bad data
        raise ValueError(f"{path}: no whole gzip file of {name}: {error}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != MNIST_FILES[name]:
        raise ValueError(
            f"{path}: not the {name} of MNIST: wanted {MNIST_FILES[name]} as SHA-256 of the"
            f" uncompressed file, got {digest} of {len(content)} bytes"
        )
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def binarize(images: np.ndarray, seed: int | np.random.Generator) -> np.ndarray:
    """Each pixel drawn once as a bit with its grey level as probability.

    The same seed gives the same bits ("fixed binarization"); a generator that goes on from batch
    to batch draws them anew ("dynamic").

    Example:
        >>> binarize(np.array([[0.0, 1.0]]), seed=0)
        array([[0., 1.]], dtype=float32)
    """
    uniform = np.random.default_rng(seed).random(images.shape, np.float32)
    return (uniform < images).astype(np.float32)


def split_labels(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a label, `per_class` of each class, and the other rows, both in random order.

    Raises:
        ValueError: if `per_class` is below 1 or a class has fewer rows.

    Example:
        >>> labelled, rest = split_labels(np.array([0, 1, 0, 1, 1]), per_class=1, seed=0)
        >>> len(labelled), len(rest)
        (2, 3)
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    rows = np.random.default_rng(seed).permutation(len(labels))
    classes = np.unique(labels)
    chosen = [rows[labels[rows] == k][:per_class] for k in classes]
    short = [int(k) for k, own in zip(classes, chosen, strict=True) if len(own) < per_class]
    if short:
        raise ValueError(f"{per_class} rows of each class are wanted, classes {short} have fewer")
    labelled = np.random.default_rng(seed + 1).permutation(np.concatenate(chosen))
    return labelled, rows[~np.isin(rows, labelled)]
