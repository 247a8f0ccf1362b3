"""Which weights are kept, by comparison group: the lowest score is pruned first, of equal ones the lower index."""

Matrix = list[list[float]]
Mask = list[list[bool]]


def prune(scores: list[float], count: int) -> list[bool]:
    """True = keep; `count` times, the first of the lowest remaining scores is pruned."""
    keep = [True] * len(scores)
    for _ in range(count):
        lowest = None
        for j in range(len(scores)):
            if keep[j] and (lowest is None or scores[j] < scores[lowest]):
                lowest = j
        keep[lowest] = False
    return keep


def by_group(score: Matrix, keep: int, group: int) -> Mask:
    """N:M, N kept."""
    mask = []
    for row in score:
        line: list[bool] = []
        for start in range(0, len(row), group):
            line += prune(row[start : start + group], group - keep)
        mask.append(line)
    return mask


def by_row(score: Matrix, count: int) -> Mask:
    return [prune(row, count) for row in score]


def by_layer(score: Matrix, count: int) -> Mask:
    width = len(score[0])
    flat = prune([s for row in score for s in row], count)
    return [flat[i * width : (i + 1) * width] for i in range(len(score))]


def by_layer_threshold(score: Matrix, sparsity: float) -> Mask:
    """RIA's public rule: everything up to and including the score of rank int(O * C * s) is pruned."""
    flat = sorted(s for row in score for s in row)
    threshold = flat[int(len(flat) * sparsity)]
    return [[s > threshold for s in row] for row in score]
