"""Degrees: how many connections every input and every output has."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]
_LARGEST = 255  # counts that a byte holds: adding bytes is ten times as fast as counting


class Degrees(NamedTuple):
    """Connections of each input, (in,), and of each output, (out,): column and row sums of the mask."""

    inputs: Counts
    outputs: Counts


def degrees(mask: Tensor) -> Degrees:
    """Count the connections of a mask, bool (out, in): d_j = sum_i m_ij of inputs, d_i = sum_j m_ij of outputs."""
    kept = np.ascontiguousarray(mask.cpu().numpy()).view(np.uint8)
    words = kept.view(np.uint64) if kept.shape[1] % 8 == 0 else kept  # eight sums at a time
    inputs, outputs = (np.zeros(size, dtype=np.int64) for size in reversed(kept.shape))
    for start in range(0, kept.shape[0], _LARGEST):  # few enough rows to stay in the cache for the second sums
        rows = slice(start, start + _LARGEST)
        inputs += np.add.reduce(kept[rows], axis=0, dtype=np.uint8)
        for first in range(0, words.shape[1], _LARGEST):
            sums = np.add.reduce(words[rows, first : first + _LARGEST], axis=1, dtype=words.dtype)
            outputs[rows] += sums[:, None].view(np.uint8).sum(1, dtype=np.int64)
    return Degrees(inputs, outputs)


def gini(counts: Counts) -> float:
    """Inequality of degrees: sum_k (2 k - n - 1) d_(k) / (n sum_k d_k), d_(1) <= ... <= d_(n).

    0 where all are equal (or there is no connection at all), near 1 where few inputs have all connections.
    """
    total, size = int(counts.sum()), len(counts)
    if not total:
        return 0.0
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float((weights * np.sort(counts)).sum() / (size * total))


def percentiles(counts: Counts, ranks: tuple[int, ...]) -> list[float]:
    """Degrees that so many per cent of the inputs stay below or at, linear between neighbours."""
    return [float(found) for found in np.percentile(counts, ranks)]
