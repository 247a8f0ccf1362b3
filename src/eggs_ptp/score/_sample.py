"""Sums over random samples of a matrix's rows or columns."""

from itertools import repeat

import torch
from torch import Tensor

_ENTRIES_PER_BATCH = 1 << 18  # entries sampled at a time: what fits a processor's cache


def sampled_sums(
    magnitude: Tensor,
    dim: int,
    count: int,
    generator: torch.Generator,
    *,
    importance: Tensor | None = None,
    shared: bool = False,
    replacement: bool = False,
) -> Tensor:
    """Sum `count` sampled entries of each column (`dim` 0) or each row (`dim` 1).

    Args:
        magnitude: |W|, (out, in).
        dim: Dimension summed over, as in `magnitude.sum(dim, keepdim=True)`.
        count: Entries in a sample, 1 to magnitude.shape[dim].
        generator: Source of randomness, on the device of `magnitude`.
        importance: Sampling weight of each entry, (out, in), not negative; None samples uniformly.
        shared: Draw one sample for all columns or rows, with the importance summed over them.
        replacement: Sample with replacement; an entry drawn twice is added twice.

    Returns:
        Sums, (1, in) or (out, 1).
    """
    length = magnitude.shape[dim]
    if shared:
        total = None if importance is None else importance.sum(1 - dim).view(1, length)
        times = draw((1, length), count, generator, total, replacement)[0]
        indices = torch.arange(length, device=magnitude.device).repeat_interleave(times.long())
        return magnitude.index_select(dim, indices).sum(dim, keepdim=True)
    lines_per_batch = max(1, _ENTRIES_PER_BATCH // length)
    lines = magnitude if dim else magnitude.T  # (lines, length): the rows, or the columns as rows
    batches = lines.split(lines_per_batch)
    if importance is None:
        importance_batches = repeat(None)
    else:
        importance_batches = (importance if dim else importance.T).split(lines_per_batch)
    sums = []
    for batch, batch_importance in zip(batches, importance_batches, strict=False):
        times = draw((len(batch), length), count, generator, batch_importance, replacement)
        sums.append((batch * times).sum(1))
    return torch.cat(sums).unsqueeze(dim)


def draw(
    shape: tuple[int, int],
    count: int,
    generator: torch.Generator,
    importance: Tensor | None = None,
    replacement: bool = False,
) -> Tensor:
    """Draw `count` entries of each row of a matrix of this shape.

    Args:
        shape: (rows, width).
        count: Entries drawn from each row, 1 to width.
        generator: Source of randomness; its device is that of the result.
        importance: Sampling weight of each entry, broadcast to `shape`, not negative; None samples uniformly, and so
            does a row whose importance is all zero.
        replacement: Sample with replacement.

    Returns:
        How often each entry was drawn, `shape`: float32 with replacement, bool without.
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
        return _draw_distinct(rows, width, count, generator)
    # The first arrivals of Poisson processes with these rates are a sample without replacement by these weights.
    arrival = torch.empty(shape, device=device).exponential_(generator=generator) / importance
    first = arrival.topk(count, dim=1, largest=False).indices
    return torch.zeros(shape, dtype=torch.bool, device=device).scatter_(1, first, True)


def _draw_distinct(rows: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    """Mark `count` distinct entries of each row, every set equally likely, by redrawing duplicates.

    Much cheaper than ranking a random matrix: it draws about `count` numbers per row and not `width`.
    """
    device = generator.device
    marked = min(count, width - count)
    drawn = torch.zeros(rows, width + 1, dtype=torch.bool, device=device)  # the last column takes surplus draws
    missing = torch.full((rows, 1), marked, device=device)
    while most := int(missing.max()):
        index = torch.randint(width, (rows, most), generator=generator, device=device)
        index.masked_fill_(torch.arange(most, device=device) >= missing, width)
        drawn.scatter_(1, index, True)
        missing = marked - drawn[:, :width].sum(1, keepdim=True)
    return drawn[:, :width] if marked == count else ~drawn[:, :width]
