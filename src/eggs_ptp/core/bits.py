"""One bit a weight: masks in bytes, and back."""

import functools

import torch
from torch import Tensor

from eggs_ptp.core.pattern import Pattern

# Eight bytes of 0 or 1 times this have bit j of the topmost byte = byte j: byte j meets its factor 2^(56 - 7j) on bit
# 56 + j, and all other products fall on bits of their own, so that nothing is carried.
_GATHER = sum(1 << (56 - 7 * j) for j in range(8))


def join_bits(mask: Tensor) -> Tensor:
    """Eight columns a byte, the first one lowest; the last byte is filled up with zeros."""
    short = -mask.shape[1] % 8
    if short:
        mask = torch.nn.functional.pad(mask, (0, short))
    return (mask.contiguous().view(torch.int64) * _GATHER).bitwise_right_shift(56).to(torch.uint8)


def split_bits(bits: Tensor, columns: int) -> Tensor:
    """The mask (rows, columns) of bytes (rows, ceil(columns / 8))."""
    eight = bits_of_bytes().view(torch.int64).view(256).to(bits.device)  # all eight moved at once
    flat = bits.reshape(-1).int()
    return eight.index_select(0, flat).view(torch.bool).view(bits.shape[0], 8 * bits.shape[1])[:, :columns]


def places(kept: Tensor) -> Tensor:
    """Flat indices of True, rising."""
    if kept.device.type == "cpu":  # numpy finds them several times faster
        return torch.from_numpy(kept.numpy().reshape(-1).nonzero()[0])
    return kept.reshape(-1).nonzero().view(-1)


@functools.cache
def bits_of_bytes() -> Tensor:
    """For each byte its eight bits, the lowest first: (256, 8), uint8."""
    return (torch.arange(256)[:, None].bitwise_right_shift(torch.arange(8)) & 1).to(torch.uint8)


def is_exact(bits: Tensor, columns: int, pattern: Pattern) -> bool:
    """Whether every group marks exactly N columns."""
    if 8 % pattern.group == 0 and columns % 8 == 0:
        return bool(_exact_bytes(pattern).to(bits.device).index_select(0, bits.reshape(-1).int()).all())
    return bool((split_bits(bits, columns).reshape(-1, pattern.group).sum(1) == pattern.keep).all())


@functools.cache
def _exact_bytes(pattern: Pattern) -> Tensor:
    """For each byte, whether all its groups have exactly N bits."""
    return (bits_of_bytes().view(256, -1, pattern.group).sum(-1) == pattern.keep).all(1)
