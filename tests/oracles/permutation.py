"""Channel permutation as in RIA, ICLR 2024: sort, allocate to groups, then solve one assignment per segment."""

import itertools

Matrix = list[list[float]]


def ascending(values: list[float]) -> list[int]:
    """Channels from the lowest value to the highest, equal ones by index."""
    return sorted(range(len(values)), key=lambda j: (values[j], j))


def channel_sums(score: Matrix) -> list[float]:
    return [sum(row[j] for row in score) for j in range(len(score[0]))]


def allocate(channels: list[int], group: int, serpentine: bool) -> list[int]:
    """Allocate sorted channels to groups: each group gets one channel of each segment, in the order of the segments."""
    length = len(channels) // group
    permutation = []
    for g in range(length):
        for k in range(group):
            backwards = serpentine and k % 2 == 1
            permutation.append(channels[k * length + (length - 1 - g if backwards else g)])
    return permutation


def retained(score: Matrix, members: list[int], keep: int) -> float:
    """Total of the `keep` largest of these channels' scores in every row."""
    total = 0.0
    for row in score:
        total += sum(sorted((row[j] for j in members), reverse=True)[:keep])
    return total


def retained_total(score: Matrix, permutation: list[int], keep: int, group: int) -> float:
    return sum(retained(score, permutation[start : start + group], keep) for start in range(0, len(permutation), group))


def best_assignment_of_segment(score: Matrix, permutation: list[int], keep: int, group: int, segment: int) -> float:
    """The largest score that any assignment of one segment's channels to the groups retains; for a few groups only."""
    starts = range(0, len(permutation), group)
    best = 0.0
    for assignment in itertools.permutations([permutation[start + segment] for start in starts]):
        candidate = list(permutation)
        for start, channel in zip(starts, assignment, strict=True):
            candidate[start + segment] = channel
        best = max(best, retained_total(score, candidate, keep, group))
    return best
