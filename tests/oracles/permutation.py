"""Channel permutation as RIA, ICLR 2024 describes it: sort, deal, then one assignment for each place."""

import itertools

Matrix = list[list[float]]


def ascending(values: list[float]) -> list[int]:
    """Channels from the lowest value to the highest, equals in their own order."""
    return sorted(range(len(values)), key=lambda j: (values[j], j))


def channel_sums(score: Matrix) -> list[float]:
    return [sum(row[j] for row in score) for j in range(len(score[0]))]


def deal(channels: list[int], group: int, serpentine: bool) -> list[int]:
    """Sorted channels to groups: each group gets one channel of each segment, in the order of the segments."""
    length = len(channels) // group
    order = []
    for g in range(length):
        for k in range(group):
            backwards = serpentine and k % 2 == 1
            order.append(channels[k * length + (length - 1 - g if backwards else g)])
    return order


def retained(score: Matrix, members: list[int], keep: int) -> float:
    """Total of the `keep` largest of these channels' scores in every row."""
    total = 0.0
    for row in score:
        total += sum(sorted((row[j] for j in members), reverse=True)[:keep])
    return total


def retained_total(score: Matrix, order: list[int], keep: int, group: int) -> float:
    return sum(retained(score, order[start : start + group], keep) for start in range(0, len(order), group))


def refine(score: Matrix, order: list[int], keep: int, group: int) -> list[int]:
    """For each place, of all ways to hand its channels to the groups the one that retains most. A few groups only."""
    order = list(order)
    starts = range(0, len(order), group)
    for place in range(group):
        taken = [order[start + place] for start in starts]
        best, best_total = taken, retained_total(score, order, keep, group)
        for handed in itertools.permutations(taken):
            trial = list(order)
            for start, channel in zip(starts, handed, strict=True):
                trial[start + place] = channel
            total = retained_total(score, trial, keep, group)
            if total > best_total:
                best, best_total = list(handed), total
        for start, channel in zip(starts, best, strict=True):
            order[start + place] = channel
    return order
