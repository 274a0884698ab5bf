"""Data sets for the models and examples, as NumPy arrays."""

import numpy as np
from sklearn import datasets


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
