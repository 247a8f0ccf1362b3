"""SparseGPT as in its paper, in float64: the remaining part of H is inverted for every column."""

import numpy as np
from oracles.selection import prune

Array = np.ndarray


def damped(gram: Array, damping: float) -> Array:
    return gram + damping * np.diag(gram).mean() * np.eye(len(gram))


def first_of_inverse(hessian: Array, j: int) -> Array:
    """First row of the inverse of H from column j: all that OBS needs once the columns before j are fixed."""
    return np.linalg.inv(hessian[j:, j:])[0]


def saliency(weight: Array, hessian: Array, columns: range) -> Array:
    """w^2 / [H^-1]_jj for each of these columns, with their current weights."""
    result = np.zeros((len(weight), len(columns)))
    for index, j in enumerate(columns):
        inverse = first_of_inverse(hessian, j)[0]
        for i in range(len(weight)):
            result[i, index] = weight[i, j] ** 2 / inverse
    return result


def prune_column(weight: Array, keep: Array, hessian: Array, j: int) -> None:
    """Prune column j, and update the columns to its right to compensate: equation 3 of arXiv:2301.00774."""
    inverse = first_of_inverse(hessian, j)
    for i in range(len(weight)):
        if not keep[i, j]:
            weight[i, j:] -= weight[i, j] / inverse[0] * inverse
            weight[i, j] = 0.0


def with_mask(weight: Array, keep: Array, gram: Array, damping: float) -> Array:
    weight = weight.copy()
    hessian = damped(gram, damping)
    for j in range(weight.shape[1]):
        prune_column(weight, keep, hessian, j)
    return weight


def by_group(weight: Array, kept: int, group: int, gram: Array, damping: float) -> tuple[Array, Array]:
    weight = weight.copy()
    hessian = damped(gram, damping)
    keep = np.ones(weight.shape, dtype=bool)
    for start in range(0, weight.shape[1], group):
        columns = range(start, start + group)
        score = saliency(weight, hessian, columns)
        for i in range(len(weight)):
            keep[i, start : start + group] = prune(list(score[i]), group - kept)
        for j in columns:
            prune_column(weight, keep, hessian, j)
    return weight, keep


def by_block(weight: Array, counts: list[int], block: int, gram: Array, damping: float) -> tuple[Array, Array]:
    """`counts`: how many weights are pruned in each block of columns, all rows together."""
    weight = weight.copy()
    hessian = damped(gram, damping)
    keep = np.ones(weight.shape, dtype=bool)
    for number, start in enumerate(range(0, weight.shape[1], block)):
        columns = range(start, min(start + block, weight.shape[1]))
        score = saliency(weight, hessian, columns)
        keep[:, columns] = np.array(prune(list(score.reshape(-1)), counts[number])).reshape(score.shape)
        for j in columns:
            prune_column(weight, keep, hessian, j)
    return weight, keep
