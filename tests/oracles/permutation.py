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


def best_of_place(score: Matrix, order: list[int], keep: int, group: int, place: int) -> float:
    """The most that any way to hand this place's channels to the groups would retain. A few groups only."""
    starts = range(0, len(order), group)
    best = 0.0
    for handed in itertools.permutations([order[start + place] for start in starts]):
        trial = list(order)
        for start, channel in zip(starts, handed, strict=True):
            trial[start + place] = channel
        best = max(best, retained_total(score, trial, keep, group))
    return best
