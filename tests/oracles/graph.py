"""A mask as a graph, the slow way: every set looked at, every singular value computed (float64)."""

from itertools import combinations

import numpy as np


def singular_values(mask):
    """Of the normalised biadjacency, in falling order; dead rows and columns are zero there."""
    m = mask.numpy().astype(np.float64)
    left, right = (np.where(d > 0, d, 1.0) ** -0.5 for d in (m.sum(1), m.sum(0)))
    return np.linalg.svd(left[:, None] * m * right, compute_uv=False)


def least_neighbours(mask, size):
    """The fewest outputs that any `size` inputs reach."""
    columns = [frozenset(np.flatnonzero(column)) for column in mask.numpy().T]
    return min(len(frozenset().union(*chosen)) for chosen in combinations(columns, size))


def conductance(mask):
    """The least share of its connections by which any set of vertices up to half of all leaves itself."""
    m = mask.numpy().astype(np.float64)
    rows, columns = m.shape
    whole = np.block([[np.zeros((rows, rows)), m], [m.T, np.zeros((columns, columns))]])
    degree = whole.sum(0)
    least = 1.0
    for bits in range(1, 2 ** (rows + columns) - 1):
        inside = np.array([bits >> k & 1 for k in range(rows + columns)], dtype=bool)
        volume = min(degree[inside].sum(), degree[~inside].sum())
        if volume:
            least = min(least, whole[inside][:, ~inside].sum() / volume)
    return least
