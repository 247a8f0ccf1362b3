"""Degrees of a mask's bipartite graph: how many connections each input and each output has."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]
_LARGEST = 255  # the largest count that fits a byte: adding bytes is ten times as fast as counting


class Degrees(NamedTuple):
    """Numbers of connections: column and row sums of a mask.

    Attributes:
        inputs: (in,), d_j = sum_i m_ij.
        outputs: (out,), d_i = sum_j m_ij.
    """

    inputs: Counts
    outputs: Counts


def degrees(mask: Tensor) -> Degrees:
    """Count the connections of every input and output of a mask, bool (out, in)."""
    kept = np.ascontiguousarray(mask.cpu().numpy()).view(np.uint8)
    words = kept.view(np.uint64) if kept.shape[1] % 8 == 0 else kept  # eight byte sums at a time
    outputs = np.zeros(kept.shape[0], dtype=np.int64)
    inputs = np.zeros(kept.shape[1], dtype=np.int64)
    for start in range(0, kept.shape[0], _LARGEST):  # few enough rows to still be in the cache for the row sums
        rows = slice(start, start + _LARGEST)
        inputs += np.add.reduce(kept[rows], axis=0, dtype=np.uint8)
        for first in range(0, words.shape[1], _LARGEST):
            sums = np.add.reduce(words[rows, first : first + _LARGEST], axis=1, dtype=words.dtype)
            outputs[rows] += sums[:, None].view(np.uint8).sum(1, dtype=np.int64)
    return Degrees(inputs, outputs)


def gini(counts: Counts) -> float:
    """Gini coefficient of degrees: sum_k (2 k - n - 1) d_(k) / (n sum_k d_k), d_(1) <= ... <= d_(n).

    0 if all are equal (or there is no connection at all), near 1 if a few inputs have all connections.
    """
    total = int(counts.sum())
    size = len(counts)
    if not total:
        return 0.0
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float((weights * np.sort(counts)).sum() / (size * total))


def percentiles(counts: Counts, ranks: tuple[int, ...]) -> list[float]:
    """Percentiles of degrees, interpolated linearly; `ranks` in per cent."""
    return [float(value) for value in np.percentile(counts, ranks)]
