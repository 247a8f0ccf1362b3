"""Sums over samples of a matrix's rows or columns."""

from itertools import repeat

import torch
from torch import Tensor

_ELEMENTS = 1 << 18  # entries marked at a time: what fits a cache


def sampled_sums(
    size: Tensor,
    dim: int,
    count: int,
    generator: torch.Generator,
    *,
    importance: Tensor | None = None,
    shared: bool = False,
    replacement: bool = False,
) -> Tensor:
    """Sum along `dim` of `count` entries sampled from each column (0) or row (1) of `size`.

    Args:
        size: (out, in).
        dim: as in `size.sum(dim, keepdim=True)`.
        count: entries of a sample, 1 .. size.shape[dim].
        generator: on the device of `size`.
        importance: chances of the entries, (out, in), not negative; None: all alike.
        shared: one sample for all columns or rows, by the importance summed over them.
        replacement: an entry can be drawn again, and counts again.

    Returns:
        (1, in) or (out, 1).
    """
    width = size.shape[dim]
    if shared:
        total = None if importance is None else importance.sum(1 - dim).view(1, width)
        times = draw((1, width), count, generator, total, replacement)[0]
        places = torch.arange(width, device=size.device).repeat_interleave(times.long())
        return size.index_select(dim, places).sum(dim, keepdim=True)
    step = max(1, _ELEMENTS // width)
    chances = repeat(None) if importance is None else (importance if dim else importance.T).split(step)
    sums = []
    for part, chance in zip((size if dim else size.T).split(step), chances, strict=False):
        times = draw((len(part), width), count, generator, chance, replacement)
        sums.append((part * times).sum(1))
    return torch.cat(sums).unsqueeze(dim)


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
