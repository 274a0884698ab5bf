"""MNIST from files, whole or broken; binarization; the split of labels."""

import gzip
import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from gs_ppl.models import data

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(array):
    """The bytes of an IDX file: two zeros, the type, the number of axes, their lengths, content."""
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The four files, two of them gzipped, as if MNIST were these five images."""
    sums = {}
    for i, name in enumerate(data.MNIST_FILES):
        content = idx(IMAGES if "images" in name else LABELS)
        sums[name] = hashlib.sha256(content).hexdigest()
        if i % 2:
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(data, "MNIST_FILES", sums)
    return tmp_path


def test_reads_plain_and_gzipped_files(folder):
    for images, labels in data.load_mnist(folder).values():
        np.testing.assert_array_equal(images, IMAGES.reshape(5, 784).astype(np.float32) / 255)
        np.testing.assert_array_equal(labels, LABELS)
        assert images.dtype == np.float32


@pytest.mark.parametrize("name", data.MNIST_FILES)
def test_missing_file(folder, name):
    for path in folder.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file, nor {name}.gz"):
        data.load_mnist(folder)


@pytest.mark.parametrize("cut", [10, 20, -1], ids=["head", "inside", "last byte"])
def test_truncated_gzip(folder, cut):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: no whole gzip file of"):
        data.load_mnist(folder)


@pytest.mark.parametrize("change", ["truncated", "a bit", "another file"])
def test_wrong_content(folder, change):
    path = folder / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    if change == "truncated":
        content = content[:-1]
    elif change == "a bit":
        content[-1] ^= 1
    else:
        content = idx(IMAGES)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"not the train-labels-idx1-ubyte of MNIST: wanted .* got"
    ):
        data.load_mnist(folder)


@pytest.mark.parametrize("block", [0x07, 0x05], ids=["of no kind", "of bad lengths"])
def test_corrupt_deflate_data(folder, block):
    """Behind a good gzip header: zlib's own error is not gzip's."""
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[10:14] = bytes([block, 0xFF, 0xFF, 0xFF])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: no whole gzip file of .*while decompressing"):
        data.load_mnist(folder)


def test_not_gzip(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"an error page")
    with pytest.raises(ValueError, match="no whole gzip file"):
        data.load_mnist(folder)


def test_download(monkeypatch):
    """Without a folder: scikit-learn's fetch_openml, the first 60,000 rows to train on."""
    rows = data.TRAINING_IMAGES + 2
    bunch = SimpleNamespace(data=np.zeros((rows, 784)), target=np.full(rows, "7"))
    bunch.data[-1] = 255
    monkeypatch.setattr(data.datasets, "fetch_openml", lambda name, **_: bunch)
    parts = data.load_mnist()
    assert len(parts["train"][0]) == data.TRAINING_IMAGES
    assert parts["test"][0][-1].min() == 1
    assert (parts["test"][1] == 7).all()


def test_binarize():
    """Each pixel is one with its grey level as probability; a seed fixes the draw."""
    grey = np.repeat([[0.0, 0.2, 0.9, 1.0]], 4_000, 0).astype(np.float32)
    bits = data.binarize(grey, seed=0)
    np.testing.assert_array_equal(bits, data.binarize(grey, seed=0))
    counts = bits.sum(0)
    assert counts[0] == 0
    assert counts[3] == 4_000
    for k, p in ((1, 0.2), (2, 0.9)):
        assert stats.binomtest(int(counts[k]), 4_000, p).pvalue > 1e-4
    rng = np.random.default_rng(0)
    assert (data.binarize(grey, rng) != data.binarize(grey, rng)).any()


def test_split_labels():
    labels = np.random.default_rng(0).integers(0, 10, 500)
    labelled, rest = data.split_labels(labels, per_class=10, seed=1)
    np.testing.assert_array_equal(np.bincount(labels[labelled]), 10)
    np.testing.assert_array_equal(np.sort([*labelled, *rest]), np.arange(500))
    other, _ = data.split_labels(labels, per_class=10, seed=2)
    assert set(other) != set(labelled)
    with pytest.raises(ValueError, match=r"classes \[1\] have fewer"):
        data.split_labels(np.array([0, 0, 1]), per_class=2, seed=0)
