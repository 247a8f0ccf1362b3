"""DSnoT and R2-DSnoT as their papers and DSnoT's public code describe them: one row, one swap at a time.

Matrices are plain lists of floats; `contribution[i][j]` is W_ij times the mean input, at the scale of the threshold.
"""

import math

Matrix = list[list[float]]
Mask = list[list[bool]]


def divided_by_variance(value: float, variance: float, power: float) -> float:
    """value / variance^power; a channel of zero variance is never grown, so its value is 0."""
    if power == 0:
        return value
    return value / variance**power if variance > 0 else 0.0


def next_to_grow(grow: list[float], bonus: list[float], candidates: list[int], error: float) -> int | None:
    best = None
    for j in candidates:
        reduction = grow[j] if error > 0 else -grow[j]
        if reduction > 0 and (best is None or reduction + bonus[j] >= best[0]):
            best = (reduction + bonus[j], j)
    return None if best is None else best[1]


def next_to_prune(
    prune: list[float], contribution: list[float], candidates: list[int], error: float, grown: int, group: int | None
) -> int | None:
    best = None
    for j in candidates:
        opposite = contribution[j] < 0 if error > 0 else contribution[j] > 0
        allowed = opposite if group is None else j // group == grown // group
        if allowed and (best is None or prune[j] < best[0]):
            best = (prune[j], j)
    return None if best is None else best[1]


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def refine(
    mask: Mask,
    contribution: Matrix,
    grow: Matrix,
    bonus: Matrix,
    prune: Matrix,
    *,
    group: int | None,
    max_cycles: int,
    threshold: float,
    no_crossing: bool,
) -> Mask:
    result = []
    for i in range(len(mask)):
        keep = list(mask[i])
        to_grow = [j for j in range(len(keep)) if not keep[j]]
        to_prune = [j for j in range(len(keep)) if keep[j]]
        error = sum(contribution[i][j] for j in to_grow)
        initial_sign = sign(error)
        for _ in range(max_cycles):
            if abs(error) <= threshold:
                break
            grown = next_to_grow(grow[i], bonus[i], to_grow, error)
            if grown is None:
                break
            pruned = next_to_prune(prune[i], contribution[i], to_prune, error, grown, group)
            if pruned is None:
                break
            next_error = error + contribution[i][pruned] - contribution[i][grown]
            if no_crossing and sign(next_error) != initial_sign:
                break
            keep[grown] = True
            keep[pruned] = False
            to_grow.remove(grown)
            to_prune.remove(pruned)
            error = next_error
        result.append(keep)
    return result


def relative(weight: Matrix) -> Matrix:
    """1 / ||W_i:||_1 + 1 / ||W_:j||_1, 1/0 taken as 0."""
    rows = [sum(abs(w) for w in row) for row in weight]
    columns = [sum(abs(row[j]) for row in weight) for j in range(len(weight[0]))]
    return [[(1 / r if r else 0.0) + (1 / c if c else 0.0) for c in columns] for r in rows]


def norm(values: list[float], p: float) -> float:
    """||v||_p."""
    if math.isinf(p):
        return max(abs(v) for v in values)
    return sum(abs(v) ** p for v in values) ** (1 / p)
