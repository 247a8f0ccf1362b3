"""Quantised values one by one in float64, and GPTQ as in its paper, on kept weights."""

import math

import numpy as np

Array = np.ndarray


def on_grid(values: list[float], max_level: int) -> tuple[list[int], float]:
    """Integers of values that share a scale, and the scale: their largest magnitude."""
    scale = max(abs(value) for value in values)
    if scale == 0:
        return [0] * len(values), 0.0
    integers = []
    for value in values:
        exact = value * max_level / scale
        low = math.floor(exact)
        round_up = exact - low > 0.5 or (exact - low == 0.5 and low % 2 == 1)  # halves go to the even neighbour
        integers.append(low + round_up)
    return integers, scale


def rows_on_grid(rows: list[list[float]], max_level: int, group_size: int) -> tuple[list[list[int]], list[list[float]]]:
    """Integers and scales of each row, with one scale for every `group_size` values."""
    integers, scales = [], []
    for row in rows:
        groups = [on_grid(row[start : start + group_size], max_level) for start in range(0, len(row), group_size)]
        integers.append([integer for group, _ in groups for integer in group])
        scales.append([scale for _, scale in groups])
    return integers, scales


def quantised_columns(begin: Array, keep: Array, hessian: Array, step: Array, peak: Array, max_level: int) -> Array:
    """Optimal brain quantisation from left to right with given steps: equation 2 of arXiv:2210.17323.

    `step` (out, in) is the distance between neighbours on the grid. Pruned weights are quantised to zero; `peak` marks
    weights that become `max_level` steps, with the sign of `begin`.
    """
    weight = begin.astype(np.float64).copy()
    for j in range(weight.shape[1]):
        inverse = np.linalg.inv(hessian[j:, j:])[0]
        for i in range(len(weight)):
            if not keep[i, j] or step[i, j] == 0:
                target = 0.0
            elif peak[i, j]:
                target = math.copysign(max_level * step[i, j], begin[i, j])
            else:
                number = np.clip(np.round(weight[i, j] / step[i, j]), -max_level, max_level)
                target = number * step[i, j]
            weight[i, j:] -= (weight[i, j] - target) / inverse[0] * inverse
            weight[i, j] = target
    return weight


def best_grid_value(weight: Array, begin: Array, hessian: Array, i: int, j: int, step: float, max_level: int) -> float:
    """The grid value of weight (i, j) with the least loss, all others fixed: every value is tried."""
    losses = {}
    for level in range(-max_level, max_level + 1):
        row = weight[i].copy()
        row[j] = level * step
        change = begin[i] - row
        losses[level * step] = change @ hessian @ change
    return min(losses, key=losses.__getitem__)
