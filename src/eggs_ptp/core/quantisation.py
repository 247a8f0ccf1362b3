"""Quantisation grids: kept values stored as integers times a scale.

The values of a group share the scale a, their largest magnitude, stored in the values' type. A value w becomes
q = round(w / a * max_level), with max_level 127 or 7, and is read back as w' = a q / max_level, computed in float64 and
rounded once to the type of the scale. As some q of every group is +-max_level, a is the largest magnitude of w' too:
quantising w' gives the same q and a again, in any type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError


@dataclass(frozen=True)
class QuantisationGrid:
    """Integers from -max_level to max_level, with one scale for up to `group` values of a row.

    Attributes:
        name: "int8" or "int4".
        max_level: Largest integer.
        group: Values that share a scale, at most; None for one scale a row.
    """

    name: str
    max_level: int
    group: int | None

    def scale_group_size(self, pattern: Pattern, kept: int) -> int:
        """Return how many values share a scale: whole groups of the pattern.

        Args:
            pattern: N:M.
            kept: Kept values of a row.
        """
        return kept if self.group is None else min(kept, max(1, self.group // pattern.keep) * pattern.keep)

    def scales_per_row(self, pattern: Pattern, kept: int) -> int:
        """Return how many scales a row of `kept` values has."""
        return -(-kept // self.scale_group_size(pattern, kept)) if kept else 0


GRIDS: Mapping[str, QuantisationGrid] = MappingProxyType(
    {"int8": QuantisationGrid("int8", 127, None), "int4": QuantisationGrid("int4", 7, 64)}
)


def find_grid(name: str) -> QuantisationGrid:
    """Return the grid called "int8" or "int4".

    Raises:
        PatternError: There is no such grid.
    """
    if name not in GRIDS:
        raise PatternError(f"values {name!r}: expected one of {', '.join(GRIDS)}, or none for those of the source")
    return GRIDS[name]


def compute_scales(values: Tensor, group_size: int) -> Tensor:
    """Return the scale of every group of values: their largest magnitude.

    Args:
        values: (rows, kept).
        group_size: Consecutive values of a row that share a scale; the last group may be shorter.

    Returns:
        (rows, ceil(kept / group_size)), in the type of the values.
    """
    padding = -values.shape[1] % group_size
    return torch.nn.functional.pad(values.abs(), (0, padding)).view(values.shape[0], -1, group_size).amax(-1)


def quantise(values: Tensor, scales: Tensor, grid: QuantisationGrid, group_size: int) -> Tensor:
    """Round values to the nearest integers of the grid, halves to even; values beyond the scale become +-max_level.

    Args:
        values: (rows, kept).
        scales: (rows, groups).
        grid: The grid.
        group_size: Values that share a scale.

    Returns:
        Integers, int8 (rows, kept).
    """
    wide = _scale_of_each_value(scales, group_size, values.shape[1])
    level = values.double() * grid.max_level / torch.where(wide > 0, wide, 1.0)
    return level.round_().clamp_(-grid.max_level, grid.max_level).to(torch.int8)


def dequantise(integers: Tensor, scales: Tensor, grid: QuantisationGrid, group_size: int) -> Tensor:
    """Return the values a q / max_level of quantised integers.

    Args:
        integers: q, int8 (rows, kept).
        scales: a, (rows, groups).
        grid: The grid.
        group_size: Values that share a scale.

    Returns:
        (rows, kept), in the type of the scales.
    """
    return (_scale_of_each_value(scales, group_size, integers.shape[1]) * integers / grid.max_level).to(scales.dtype)


def pack_nibbles(integers: Tensor) -> Tensor:
    """Pack two int4 values a byte, the first in the lower half, each plus 8.

    Args:
        integers: -7 to 7, int8 (rows, kept), `kept` even.

    Returns:
        (rows, kept / 2), uint8.
    """
    shifted = (integers + 8).view(torch.uint8)
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Unpack the integers that `pack_nibbles` packed: (rows, kept / 2), uint8, to (rows, kept), int8."""
    shifted = torch.stack((packed & 15, packed >> 4), dim=-1).view(packed.shape[0], -1)
    return shifted.view(torch.int8) - 8


def _scale_of_each_value(scales: Tensor, group_size: int, kept: int) -> Tensor:
    """Return the scale of every value in float64: (rows, kept), or (rows, 1) if a row has a single scale."""
    wide = scales.double()
    return wide if scales.shape[1] == 1 else wide.repeat_interleave(group_size, dim=1)[:, :kept]
