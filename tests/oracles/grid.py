"""Quantised values number by number in float64, and GPTQ as its paper prints it, on kept weights."""

import math

import numpy as np

Array = np.ndarray


def on_grid(values: list[float], top: int) -> tuple[list[int], float]:
    """The whole numbers of values that share a scale, and the scale: their largest magnitude."""
    scale = max(abs(value) for value in values)
    if scale == 0:
        return [0] * len(values), 0.0
    numbers = []
    for value in values:
        exact = value * top / scale
        low = math.floor(exact)
        up = exact - low > 0.5 or (exact - low == 0.5 and low % 2 == 1)  # halves go to the even neighbour
        numbers.append(low + up)
    return numbers, scale


def rows_on_grid(rows: list[list[float]], top: int, run: int) -> tuple[list[list[int]], list[list[float]]]:
    """Whole numbers and scales of each row, every `run` values with a scale of their own."""
    numbers, scales = [], []
    for row in rows:
        parts = [on_grid(row[start : start + run], top) for start in range(0, len(row), run)]
        numbers.append([number for part, _ in parts for number in part])
        scales.append([scale for _, scale in parts])
    return numbers, scales


def swept(begin: Array, keep: Array, hessian: Array, step: Array, peak: Array, top: int) -> Array:
    """Optimal brain quantisation from left to right with given steps: equation 2 of arXiv:2210.17323.

    `step` (out, in) is the distance of neighbours on the grid. Pruned weights are quantised to zero; `peak` marks those
    that become top times their step, of the sign that they begin with.
    """
    weight = begin.astype(np.float64).copy()
    for j in range(weight.shape[1]):
        inverse = np.linalg.inv(hessian[j:, j:])[0]
        for i in range(len(weight)):
            if not keep[i, j] or step[i, j] == 0:
                target = 0.0
            elif peak[i, j]:
                target = math.copysign(top * step[i, j], begin[i, j])
            else:
                number = np.clip(np.round(weight[i, j] / step[i, j]), -top, top)
                target = number * step[i, j]
            weight[i, j:] -= (weight[i, j] - target) / inverse[0] * inverse
            weight[i, j] = target
    return weight


def best_of_each(weight: Array, begin: Array, hessian: Array, i: int, j: int, step: float, top: int) -> float:
    """The value of the grid for weight (i, j) with the least loss, all others given: each one tried."""
    losses = {}
    for number in range(-top, top + 1):
        tried = weight[i].copy()
        tried[j] = number * step
        gap = begin[i] - tried
        losses[number * step] = gap @ hessian @ gap
    return min(losses, key=losses.__getitem__)
