"""Triton kernels that multiply one input at a time by a packed matrix, with the kept values in place.

Bits are read eight columns, one byte, at a time. Where 8 is a multiple of the group, the values of byte b of a row
begin at b * 8N / M; for any other pattern they are located by counting bits from the start of a group. All sums are
float32, in an order that depends on the shapes alone.
"""

import triton
import triton.language as tl


@triton.jit
def spread(byte):
    """Move bit j of a byte to bit 4j of a word: eight counters of four bits each."""
    byte = byte.to(tl.uint32)
    byte = (byte | (byte << 12)) & 0x000F000F
    byte = (byte | (byte << 6)) & 0x03030303
    return (byte | (byte << 3)) & 0x11111111


@triton.jit
def _counts(byte):
    """Count the set bits of a byte."""
    return ((spread(byte) * 0x11111111) >> 28).to(tl.int32)


@triton.jit
def first_values(byte, mask, carry, keep: tl.constexpr, group: tl.constexpr):
    """Locate the values of each byte in its row.

    Args:
        byte: Indices of the bytes, (..., bytes).
        mask: Contents of the bytes, (..., bytes).
        carry: Index of the first value of the first byte, (...).
        keep: N.
        group: M.

    Returns:
        Index of the first value of each byte, (..., bytes), and the carry for the bytes that follow.
    """
    if 8 % group == 0:
        return byte * (8 * keep // group) + mask * 0, carry
    counts = _counts(mask)
    axis: tl.constexpr = len(mask.shape) - 1
    first = tl.expand_dims(carry, axis) + tl.cumsum(counts, axis) - counts
    return first, carry + tl.sum(counts, axis)


@triton.jit
def product(
    x,
    values,
    bits,
    positions,
    out,
    rows,
    columns,
    value_stride,
    bit_stride,
    split_bytes,
    part_bytes,
    keep: tl.constexpr,
    group: tl.constexpr,
    full_bytes: tl.constexpr,
    slots: tl.constexpr,
    parts: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Compute out[split, b, r] = sum over a split's columns of x[b, c] W[r, c]: inputs are gathered for kept values.

    A tile is (parts, height, width, slots): parts of the split's columns, one per warp; rows; bytes; values of a byte.

    Args:
        x: Inputs, (batch, columns).
        values: Values of the packed matrix.
        bits: Its bits.
        positions: For each byte, the columns of its set bits, four bits each, (256,).
        out: (splits, batch, rows).
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        value_stride: Values from row to row.
        bit_stride: Bytes of bits from row to row.
        split_bytes: Bytes of bits in a split of the columns.
        part_bytes: Bytes of bits in a part of a split.
        keep: N.
        group: M.
        full_bytes: Whether all bytes have the same number of values.
        slots: The most values of a byte, rounded up to a power of two.
        parts: Parts of a split.
        height: Rows of a tile.
        width: Bytes of bits of a tile.
    """
    row = tl.program_id(0) * height + tl.arange(0, height)[None, :, None]
    row64 = row.to(tl.int64)
    in_rows = row < rows
    x += tl.program_id(2) * columns
    end = tl.minimum((tl.program_id(1) + 1) * split_bytes, tl.cdiv(columns, 8))
    part = tl.program_id(1) * split_bytes + tl.arange(0, parts)[:, None, None] * part_bytes
    part_end = tl.minimum(part + part_bytes, end)
    slot = tl.arange(0, slots)[None, None, None, :]
    carry = tl.broadcast_to(tl.reshape(part * 8 // group * keep, (parts, 1)), (parts, height))
    total = tl.zeros((parts, height, width), tl.float32)
    for start in range(0, part_bytes, width):
        byte = part + start + tl.arange(0, width)[None, None, :]
        inside = in_rows & (byte < part_end)
        mask = tl.load(bits + row64 * bit_stride + byte, mask=inside, other=0).to(tl.int32)
        first, carry = first_values(byte, mask, carry, keep, group)
        valid = (
            inside[:, :, :, None] & (slot < 8 * keep // group) if full_bytes else slot < _counts(mask)[:, :, :, None]
        )
        weight = tl.load((values + row64 * value_stride + first)[:, :, :, None] + slot, mask=valid, other=0.0)
        column = byte[:, :, :, None] * 8 + ((tl.load(positions + mask)[:, :, :, None] >> (4 * slot)) & 7)
        gathered = tl.load(x + column, mask=valid, other=0.0)
        total += tl.sum(weight.to(tl.float32) * gathered.to(tl.float32), 3)
    if _has_nonfinite(x, tl.program_id(1) * split_bytes * 8, end * 8, columns):
        for start in range(0, part_bytes, width):
            byte = part + start + tl.arange(0, width)[None, None, :]
            inside = in_rows & (byte < part_end)
            mask = tl.load(bits + row64 * bit_stride + byte, mask=inside, other=0).to(tl.int32)
            total += _pruned_terms(x, byte, mask, inside, columns)
    summed = tl.sum(tl.sum(total, 2), 0)
    row = tl.program_id(0) * height + tl.arange(0, height)
    line = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * rows
    tl.store(out + line + row, summed.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def product_2_of_4(
    x,
    values,
    bits,
    out,
    rows,
    columns,
    value_stride,
    bit_stride,
    split_bytes,
    part_bytes,
    full_bytes: tl.constexpr,
    parts: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Compute the same for 2:4, by selecting among the four inputs of a group; arguments as of `product`.

    A tile is (height, parts, width): each thread loads its inputs once, for all rows of the tile.
    """
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None, None]
    row64 = row.to(tl.int64)
    in_rows = row < rows
    x += tl.program_id(2) * columns
    end = tl.minimum((tl.program_id(1) + 1) * split_bytes, tl.cdiv(columns, 8))
    part = tl.program_id(1) * split_bytes + tl.arange(0, parts)[None, :, None] * part_bytes
    part_end = tl.minimum(part + part_bytes, end)
    total = tl.zeros((height, parts, width), tl.float32)
    for start in range(0, part_bytes, width):
        byte = part + start + tl.arange(0, width)[None, None, :]
        inside = in_rows & (byte < part_end)
        mask = tl.load(bits + row64 * bit_stride + byte, mask=inside, other=0).to(tl.int32)
        total = _add_selected(
            total, x, values + row64 * value_stride, byte, mask, inside, part_end, columns, full_bytes
        )
    if _has_nonfinite(x, tl.program_id(1) * split_bytes * 8, end * 8, columns):
        for start in range(0, part_bytes, width):
            byte = part + start + tl.arange(0, width)[None, None, :]
            inside = in_rows & (byte < part_end)
            mask = tl.load(bits + row64 * bit_stride + byte, mask=inside, other=0).to(tl.int32)
            total += _pruned_terms(x, byte, mask, inside, columns)
    summed = tl.sum(tl.sum(total, 2), 1)
    row = tl.program_id(0) * height + tl.arange(0, height)
    line = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * rows
    tl.store(out + line + row, summed.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _add_selected(total, x, values, byte, mask, inside, part_end, columns, full_bytes: tl.constexpr):
    """Add the products of some bytes' values to a total: bits select among the inputs of each group of four."""
    slot = tl.arange(0, 4)[None, None, None, :]
    bit = tl.arange(0, 8)[None, None, None, :]
    column = byte[:, :, :, None] * 8 + bit
    inputs = tl.load(x + column, mask=(byte < part_end)[:, :, :, None] & (column < columns), other=0.0).to(tl.float32)
    valid = inside[:, :, :, None]
    if not full_bytes:  # the last byte may have the columns of one group alone
        valid = valid & ((slot < 2) | (mask > 15)[:, :, :, None])
    weight = tl.load((values + byte * 4)[:, :, :, None] + slot, mask=valid, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(weight, (weight.shape[0], weight.shape[1], weight.shape[2], 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    even, odd = tl.split(tl.reshape(inputs, (inputs.shape[0], inputs.shape[1], inputs.shape[2], 4, 2)))
    x0, x4, x2, x6 = _split_four(even)
    x1, x5, x3, x7 = _split_four(odd)
    total = _add_group(total, mask, w0, w1, x0, x1, x2, x3)
    return _add_group(total, mask >> 4, w2, w3, x4, x5, x6, x7)


@triton.jit
def _split_four(entries):
    """Split the last axis into its four entries, in the order first, third, second, fourth."""
    even, odd = tl.split(tl.reshape(entries, (entries.shape[0], entries.shape[1], entries.shape[2], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, third, second, fourth


@triton.jit
def _add_group(total, mask, first, second, x0, x1, x2, x3):
    """Add two values times their inputs: the first has one of columns 0, 1 and 2, the second one of 1, 2 and 3."""
    low = tl.where((mask & 1) != 0, x0, tl.where((mask & 2) != 0, x1, x2))
    high = tl.where((mask & 8) != 0, x3, tl.where((mask & 4) != 0, x2, x1))
    return total + first * low + second * high


@triton.jit
def _has_nonfinite(x, start, end, columns):
    """Return whether an input of these columns is infinite or NaN: only such an input times zero is not zero."""
    zeros = tl.zeros((1024,), tl.float32)
    for first in range(start, end, 1024):
        column = first + tl.arange(0, 1024)
        zeros += tl.load(x + column, mask=column < tl.minimum(end, columns), other=0.0).to(tl.float32) * 0.0
    return tl.sum(zeros) != 0.0


@triton.jit
def _pruned_terms(x, byte, mask, inside, columns):
    """Return what the pruned weights of some bytes add, zero times x, (parts, height, width)."""
    bit = tl.arange(0, 8)[None, None, None, :]
    column = byte[:, :, :, None] * 8 + bit
    zeros = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32) * 0.0
    pruned = inside[:, :, :, None] & (((mask[:, :, :, None] >> bit) & 1) == 0)
    return tl.sum(tl.where(pruned, zeros, 0.0), 3)
