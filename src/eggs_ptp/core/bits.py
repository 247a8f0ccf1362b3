"""Bit masks: eight entries of a boolean mask in one byte, and back."""

import functools

import torch
from torch import Tensor

from eggs_ptp.core.pattern import Pattern

# The int64 of eight bytes that are 0 or 1, times this factor, has byte j as bit j of its highest byte: byte j times
# 2^(56 - 7j) lands on bit 56 + j, and all other products land on distinct bits, so that nothing carries.
_GATHER_BITS = sum(1 << (56 - 7 * j) for j in range(8))


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a boolean mask into bytes, the first of eight columns in the lowest bit.

    Args:
        mask: (rows, columns), bool.

    Returns:
        (rows, ceil(columns / 8)), uint8; bits past the last column are 0.
    """
    padding = -mask.shape[1] % 8
    if padding:
        mask = torch.nn.functional.pad(mask, (0, padding))
    return (mask.contiguous().view(torch.int64) * _GATHER_BITS).bitwise_right_shift(56).to(torch.uint8)


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """Unpack the mask that `pack_bits` packed.

    Args:
        bits: (rows, ceil(columns / 8)), uint8.
        columns: Columns of the mask.

    Returns:
        (rows, columns), bool.
    """
    table = byte_bits().view(torch.int64).view(256).to(bits.device)  # int64: the eight entries of a byte in one copy
    flat = bits.reshape(-1).int()
    return table.index_select(0, flat).view(torch.bool).view(bits.shape[0], 8 * bits.shape[1])[:, :columns]


def flat_indices(mask: Tensor) -> Tensor:
    """Return the flat indices of the True entries, ascending."""
    if mask.device.type == "cpu":  # numpy is several times faster
        return torch.from_numpy(mask.numpy().reshape(-1).nonzero()[0])
    return mask.reshape(-1).nonzero().view(-1)


@functools.cache
def byte_bits() -> Tensor:
    """Return the table of the eight bits of every byte, the lowest first: (256, 8), uint8."""
    return (torch.arange(256)[:, None].bitwise_right_shift(torch.arange(8)) & 1).to(torch.uint8)


def has_exact_groups(bits: Tensor, columns: int, pattern: Pattern) -> bool:
    """Return whether every group of M columns has exactly N bits set.

    Args:
        bits: (rows, ceil(columns / 8)), uint8.
        columns: Columns of the mask.
        pattern: N:M.
    """
    if 8 % pattern.group == 0 and columns % 8 == 0:
        return bool(_exact_bytes(pattern).to(bits.device).index_select(0, bits.reshape(-1).int()).all())
    return bool((unpack_bits(bits, columns).reshape(-1, pattern.group).sum(1) == pattern.keep).all())


@functools.cache
def _exact_bytes(pattern: Pattern) -> Tensor:
    """Return for each byte whether all its groups have exactly N bits set: (256,), bool."""
    return (byte_bits().view(256, -1, pattern.group).sum(-1) == pattern.keep).all(1)
