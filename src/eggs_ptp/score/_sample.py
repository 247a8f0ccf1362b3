"""Sums over samples of a matrix's rows."""

import torch
from torch import Tensor

_ELEMENTS = 1 << 18  # entries marked at a time: what fits a cache


def sampled_sums(
    size: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    importance: Tensor | None = None,
    shared: bool = False,
    replacement: bool = False,
) -> Tensor:
    """Sum of `count` entries sampled from each row of `size`.

    Args:
        size: (rows, width); may be a transposed view.
        count: entries of a sample, 1 .. width.
        generator: on the device of `size`.
        importance: chances of the entries, (rows, width), not negative; None: all alike.
        shared: one sample for all rows, by the importance summed over them.
        replacement: an entry can be drawn again, and counts again.

    Returns:
        (rows,).
    """
    width = size.shape[1]
    if shared:
        chances = None if importance is None else importance.sum(0, keepdim=True)
        times = draw((1, width), count, generator, chances, replacement)[0]
        columns = times.nonzero()[:, 0]
        return (size.index_select(1, columns) * times[columns]).sum(1)
    sums, rows = [], max(1, _ELEMENTS // width)
    for start in range(0, len(size), rows):
        part = size[start : start + rows]
        chances = None if importance is None else importance[start : start + rows]
        sums.append((part * draw((len(part), width), count, generator, chances, replacement)).sum(1))
    return torch.cat(sums)


def draw(
    shape: tuple[int, int],
    count: int,
    generator: torch.Generator,
    importance: Tensor | None = None,
    replacement: bool = False,
) -> Tensor:
    """How often each entry is drawn when each row draws `count` of its entries: `shape`, bool without replacement.

    A row in which nothing has importance draws as if all had the same.
    """
    rows, width = shape
    device = generator.device
    if importance is not None:
        importance = importance.masked_fill(importance.sum(1, keepdim=True) == 0, 1.0)
    if replacement:
        if importance is None:
            index = torch.randint(width, (rows, count), generator=generator, device=device)
        else:
            index = torch.multinomial(importance, count, replacement=True, generator=generator)
        return torch.zeros(shape, device=device).scatter_add_(1, index, torch.ones(index.shape, device=device))
    if importance is None:
        return _distinct(rows, width, count, generator)
    # The first arrivals of Poisson processes with these rates are draws without replacement by these chances.
    arrival = torch.empty(shape, device=device).exponential_(generator=generator) / importance
    first = arrival.topk(count, dim=1, largest=False).indices
    return torch.zeros(shape, dtype=torch.bool, device=device).scatter_(1, first, True)


def _distinct(rows: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """True at `count` entries of each row, all sets equally likely: draw, and draw again for those drawn twice.

    Much cheaper than ranking a random matrix, since `count` numbers a row are drawn and not `width`.
    """
    device = generator.device
    few = min(count, width - count)
    drawn = torch.zeros(rows, width + 1, dtype=torch.bool, device=device)  # the last column takes what is not wanted
    missing = torch.full((rows, 1), few, device=device)
    while most := int(missing.max()):
        index = torch.randint(width, (rows, most), generator=generator, device=device)
        index.masked_fill_(torch.arange(most, device=device) >= missing, width)
        drawn.scatter_(1, index, True)
        missing = few - drawn[:, :width].sum(1, keepdim=True)
    return drawn[:, :width] if few == count else ~drawn[:, :width]
