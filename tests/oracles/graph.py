"""Properties of a mask as a bipartite graph by exhaustive search: every set, every singular value (float64)."""

from itertools import combinations

import numpy as np


def singular_values(mask):
    """Singular values of the normalised biadjacency matrix, descending; empty rows and columns stay zero."""
    biadjacency = mask.numpy().astype(np.float64)
    left, right = (np.where(d > 0, d, 1.0) ** -0.5 for d in (biadjacency.sum(1), biadjacency.sum(0)))
    return np.linalg.svd(left[:, None] * biadjacency * right, compute_uv=False)


def least_neighbours(mask, size):
    """The smallest number of outputs that any `size` inputs are connected to."""
    columns = [frozenset(np.flatnonzero(column)) for column in mask.numpy().T]
    return min(len(frozenset().union(*chosen)) for chosen in combinations(columns, size))


def conductance(mask):
    """Least share of its edges that leave a set of vertices, over all sets with up to half of all edges."""
    biadjacency = mask.numpy().astype(np.float64)
    rows, columns = biadjacency.shape
    adjacency = np.block([[np.zeros((rows, rows)), biadjacency], [biadjacency.T, np.zeros((columns, columns))]])
    degree = adjacency.sum(0)
    least = 1.0
    for bits in range(1, 2 ** (rows + columns) - 1):
        inside = np.array([bits >> k & 1 for k in range(rows + columns)], dtype=bool)
        volume = min(degree[inside].sum(), degree[~inside].sum())
        if volume:
            least = min(least, adjacency[inside][:, ~inside].sum() / volume)
    return least
