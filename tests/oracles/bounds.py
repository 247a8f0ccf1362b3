"""The least output error of any N:M mask, the slow way: every mask tried, every row solved (float64)."""

from itertools import combinations, product

import numpy as np


def least_error(row, hessian, keep, group, updated):
    """min over masks of u H u^T, u what is lost of `row`: 0 where it is kept, or what least squares makes of it."""
    groups = [
        [tuple(start + place for place in kept) for kept in combinations(range(group), keep)]
        for start in range(0, len(row), group)
    ]
    losses = []
    for choice in product(*groups):
        kept = np.array(sorted(column for part in choice for column in part))
        gone = np.setdiff1d(np.arange(len(row)), kept)
        lost = np.zeros_like(row)
        lost[gone] = row[gone]
        if updated:
            lost[kept] = -np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[np.ix_(kept, gone)] @ row[gone])
        losses.append(lost @ hessian @ lost)
    return min(losses)
