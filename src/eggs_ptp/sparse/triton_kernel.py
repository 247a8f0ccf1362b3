"""Triton kernels that multiply one input after the other by a packed matrix, kept values where they are.

Bits are read eight columns at a time. Where 8 is a multiple of the group, byte b of a row has its values from
b * 8N / M on; in every other pattern the values are found by counting bits, from the start of a group on. All sums are
float32, in an order that depends on the shapes alone.
"""

import triton
import triton.language as tl


@triton.jit
def spread(byte):
    """Bit j of a byte to bit 4j of a word: eight counters of four bits."""
    byte = byte.to(tl.uint32)
    byte = (byte | (byte << 12)) & 0x000F000F
    byte = (byte | (byte << 6)) & 0x03030303
    return (byte | (byte << 3)) & 0x11111111


@triton.jit
def _counts(byte):
    """Bits of a byte that are 1."""
    return ((spread(byte) * 0x11111111) >> 28).to(tl.int32)


@triton.jit
def first_values(byte, packed, carry, keep: tl.constexpr, group: tl.constexpr):
    """Where in its row each byte's values begin, and how many values there were up to the last byte.

    `byte` and `packed`, with what the bytes hold, are (..., bytes), `carry` (...).
    """
    if 8 % group == 0:
        return byte * (8 * keep // group) + packed * 0, carry
    counts = _counts(packed)
    axis: tl.constexpr = len(packed.shape) - 1
    first = tl.expand_dims(carry, axis) + tl.cumsum(counts, axis) - counts
    return first, carry + tl.sum(counts, axis)


@triton.jit
def product(
    x,
    values,
    bits,
    table,
    out,
    rows,
    columns,
    value_stride,
    bit_stride,
    split_bytes,
    part_bytes,
    keep: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
    slots: tl.constexpr,
    parts: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """out[split, b, r] = the sum over a split's columns of x[b, c] W[r, c]: every kept value where it stands.

    A tile is (parts, height, width, slots): parts of the split's columns, one a warp; rows; bytes; a byte's values.
    `whole` says that every byte has as many values. `table` has the places of a byte's ones, four bits each.
    """
    row = tl.program_id(0) * height + tl.arange(0, height)[None, :, None]
    wide, in_rows = row.to(tl.int64), row < rows
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
        packed = tl.load(bits + wide * bit_stride + byte, mask=inside, other=0).to(tl.int32)
        first, carry = first_values(byte, packed, carry, keep, group)
        valid = inside[:, :, :, None] & (slot < 8 * keep // group) if whole else slot < _counts(packed)[:, :, :, None]
        weight = tl.load((values + wide * value_stride + first)[:, :, :, None] + slot, mask=valid, other=0.0)
        column = byte[:, :, :, None] * 8 + ((tl.load(table + packed)[:, :, :, None] >> (4 * slot)) & 7)
        taken = tl.load(x + column, mask=valid, other=0.0)
        total += tl.sum(weight.to(tl.float32) * taken.to(tl.float32), 3)
    if _is_odd(x, tl.program_id(1) * split_bytes * 8, end * 8, columns):
        for start in range(0, part_bytes, width):
            byte = part + start + tl.arange(0, width)[None, None, :]
            inside = in_rows & (byte < part_end)
            packed = tl.load(bits + wide * bit_stride + byte, mask=inside, other=0).to(tl.int32)
            total += _times_zero(x, byte, packed, inside, columns)
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
    whole: tl.constexpr,
    parts: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """The same for 2:4. A tile is (height, parts, width): each thread has its inputs once, for all rows of the tile."""
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None, None]
    wide, in_rows = row.to(tl.int64), row < rows
    x += tl.program_id(2) * columns
    end = tl.minimum((tl.program_id(1) + 1) * split_bytes, tl.cdiv(columns, 8))
    part = tl.program_id(1) * split_bytes + tl.arange(0, parts)[None, :, None] * part_bytes
    part_end = tl.minimum(part + part_bytes, end)
    total = tl.zeros((height, parts, width), tl.float32)
    for start in range(0, part_bytes, width):
        byte = part + start + tl.arange(0, width)[None, None, :]
        inside = in_rows & (byte < part_end)
        packed = tl.load(bits + wide * bit_stride + byte, mask=inside, other=0).to(tl.int32)
        total = _selected(total, x, values + wide * value_stride, byte, packed, inside, part_end, columns, whole)
    if _is_odd(x, tl.program_id(1) * split_bytes * 8, end * 8, columns):
        for start in range(0, part_bytes, width):
            byte = part + start + tl.arange(0, width)[None, None, :]
            inside = in_rows & (byte < part_end)
            packed = tl.load(bits + wide * bit_stride + byte, mask=inside, other=0).to(tl.int32)
            total += _times_zero(x, byte, packed, inside, columns)
    summed = tl.sum(tl.sum(total, 2), 1)
    row = tl.program_id(0) * height + tl.arange(0, height)
    line = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * rows
    tl.store(out + line + row, summed.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _selected(total, x, values, byte, packed, inside, part_end, columns, whole: tl.constexpr):
    """The total with what some bytes' values add: bits select among the inputs of a group."""
    slot, bit = tl.arange(0, 4)[None, None, None, :], tl.arange(0, 8)[None, None, None, :]
    column = byte[:, :, :, None] * 8 + bit
    taken = tl.load(x + column, mask=(byte < part_end)[:, :, :, None] & (column < columns), other=0.0).to(tl.float32)
    held = inside[:, :, :, None]
    if not whole:  # the last byte may have the columns of one group alone
        held = held & ((slot < 2) | (packed > 15)[:, :, :, None])
    weight = tl.load((values + byte * 4)[:, :, :, None] + slot, mask=held, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(weight, (weight.shape[0], weight.shape[1], weight.shape[2], 2, 2)))
    one, three = tl.split(even)
    two, four = tl.split(odd)
    even, odd = tl.split(tl.reshape(taken, (taken.shape[0], taken.shape[1], taken.shape[2], 4, 2)))
    x0, x4, x2, x6 = _quarters(even)
    x1, x5, x3, x7 = _quarters(odd)
    total = _group(total, packed, one, two, x0, x1, x2, x3)
    return _group(total, packed >> 4, three, four, x4, x5, x6, x7)


@triton.jit
def _quarters(four):
    """The four entries of the last axis: the first, the third, the second, the fourth."""
    even, odd = tl.split(tl.reshape(four, (four.shape[0], four.shape[1], four.shape[2], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, third, second, fourth


@triton.jit
def _group(total, packed, first, second, x0, x1, x2, x3):
    """The total and two values times their inputs: the first is at one of 0, 1 and 2, the second at one of 1, 2, 3."""
    low = tl.where((packed & 1) != 0, x0, tl.where((packed & 2) != 0, x1, x2))
    high = tl.where((packed & 8) != 0, x3, tl.where((packed & 4) != 0, x2, x1))
    return total + first * low + second * high


@triton.jit
def _is_odd(x, start, end, columns):
    """Whether an input of these columns is infinite or NaN: times zero it is no zero."""
    zeros = tl.zeros((1024,), tl.float32)
    for first in range(start, end, 1024):
        column = first + tl.arange(0, 1024)
        zeros += tl.load(x + column, mask=column < tl.minimum(end, columns), other=0.0).to(tl.float32) * 0.0
    return tl.sum(zeros) != 0.0


@triton.jit
def _times_zero(x, byte, packed, inside, columns):
    """What the pruned weights of some bytes add: their zeros times x, (parts, height, width)."""
    bit = tl.arange(0, 8)[None, None, None, :]
    column = byte[:, :, :, None] * 8 + bit
    zeros = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32) * 0.0
    pruned = inside[:, :, :, None] & (((packed[:, :, :, None] >> bit) & 1) == 0)
    return tl.sum(tl.where(pruned, zeros, 0.0), 3)
