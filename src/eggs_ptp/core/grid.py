"""Grids: whole numbers times a scale, in the place of kept values.

A group of values with the scale a (its largest magnitude, in the values' type) becomes q = round(w / a * top), top 127
or 7; read back it is w' = a q / top, in float64, rounded once to the type of the scale. As some q of every group is
+-top, a is the largest magnitude of w' too: quantising w' gives the same q and a again, whatever its type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError


@dataclass(frozen=True)
class Grid:
    """Whole numbers from -top to top; one scale for `group` values of a row, or for the row (None)."""

    name: str
    top: int
    group: int | None

    def run(self, pattern: Pattern, kept: int) -> int:
        """Values that share a scale, of the `kept` ones of a row: whole groups of the pattern, `group` at most."""
        return kept if self.group is None else min(kept, max(1, self.group // pattern.keep) * pattern.keep)

    def count(self, pattern: Pattern, kept: int) -> int:
        """Scales of a row."""
        return -(-kept // self.run(pattern, kept)) if kept else 0


GRIDS: Mapping[str, Grid] = MappingProxyType({"int8": Grid("int8", 127, None), "int4": Grid("int4", 7, 64)})


def find_grid(name: str) -> Grid:
    """The grid of a name.

    Raises:
        PatternError: there is none.
    """
    if name not in GRIDS:
        raise PatternError(f"values {name!r}: expected one of {', '.join(GRIDS)}, or none for those of the source")
    return GRIDS[name]


def scales_of(values: Tensor, run: int) -> Tensor:
    """Largest magnitudes (rows, groups) of every `run` values (rows, kept), the last group maybe shorter."""
    short = -values.shape[1] % run
    return torch.nn.functional.pad(values.abs(), (0, short)).view(values.shape[0], -1, run).amax(-1)


def quantise(values: Tensor, scales: Tensor, grid: Grid, run: int) -> Tensor:
    """The nearest whole numbers, int8 (rows, kept); of two the even one. Beyond the scale it is +-top."""
    wide = _spread(scales, run, values.shape[1])
    share = values.double() * grid.top / torch.where(wide > 0, wide, 1.0)
    return share.round_().clamp_(-grid.top, grid.top).to(torch.int8)


def restore(numbers: Tensor, scales: Tensor, grid: Grid, run: int) -> Tensor:
    """The values (rows, kept) that whole numbers (rows, kept) stand for, in the type of the scales."""
    return (_spread(scales, run, numbers.shape[1]) * numbers / grid.top).to(scales.dtype)


def join_nibbles(numbers: Tensor) -> Tensor:
    """Two whole numbers a byte, the first in the lower half, each plus 8: (rows, kept) int8 to (rows, kept / 2)."""
    raised = (numbers + 8).view(torch.uint8)
    return raised[:, ::2] | raised[:, 1::2] << 4


def split_nibbles(joined: Tensor) -> Tensor:
    """The whole numbers of `join_nibbles`, int8."""
    raised = torch.stack((joined & 15, joined >> 4), dim=-1).view(joined.shape[0], -1)
    return raised.view(torch.int8) - 8


def _spread(scales: Tensor, run: int, kept: int) -> Tensor:
    """A scale for every value, float64: (rows, kept), or (rows, 1) where a row has one."""
    wide = scales.double()
    return wide if scales.shape[1] == 1 else wide.repeat_interleave(run, dim=1)[:, :kept]
