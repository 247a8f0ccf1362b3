"""Least output error over all N:M masks by exhaustive search: every mask tried, every row solved (float64)."""

from itertools import combinations, product

import numpy as np


def least_error(row, hessian, keep, group, updated):
    """min over masks of u H u^T, u = `row` - pruned row.

    u is `row` where it is pruned; where it is kept, 0, or with `updated` the least squares solution.
    """
    groups = [
        [tuple(start + offset for offset in kept) for kept in combinations(range(group), keep)]
        for start in range(0, len(row), group)
    ]
    losses = []
    for choice in product(*groups):
        kept = np.array(sorted(column for columns in choice for column in columns))
        pruned = np.setdiff1d(np.arange(len(row)), kept)
        change = np.zeros_like(row)
        change[pruned] = row[pruned]
        if updated:
            change[kept] = -np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[np.ix_(kept, pruned)] @ row[pruned])
        losses.append(change @ hessian @ change)
    return min(losses)
