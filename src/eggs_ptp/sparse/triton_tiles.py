"""Triton kernels that make packed matrices dense tile by tile, for tensor cores or in memory."""

import triton
import triton.language as tl

from eggs_ptp.sparse.triton_kernel import first_values, spread


@triton.jit
def _dense(
    values,
    bits,
    row,
    start,
    carry,
    rows,
    end,
    value_stride,
    bit_stride,
    keep: tl.constexpr,
    group: tl.constexpr,
    width: tl.constexpr,
):
    """A tile of the matrix with its zeros, (rows, 8 width), and how many values there were up to its end."""
    if (keep == 2) & (group == 4):
        return _dense_2_of_4(values, bits, row, start, rows, end, value_stride, bit_stride, width), carry
    byte = start + tl.arange(0, width)[None, :]
    wide = row.to(tl.int64)
    packed = tl.load(bits + wide * bit_stride + byte, mask=(row < rows) & (byte < end), other=0).to(tl.int32)
    first, carry = first_values(byte, packed, carry, keep, group)
    bit = tl.arange(0, 8)[None, None, :]
    before = ((spread(packed) * 0x11111110)[:, :, None] >> (4 * bit).to(tl.uint32)).to(tl.int32) & 15
    kept = ((packed[:, :, None] >> bit) & 1) != 0
    tile = tl.load(values + (wide * value_stride)[:, :, None] + first[:, :, None] + before, mask=kept, other=0.0)
    return tl.reshape(tile, (row.shape[0], width * 8)), carry


@triton.jit
def _dense_2_of_4(values, bits, row, start, rows, end, value_stride, bit_stride, width: tl.constexpr):
    """The same for 2:4: a pair of values is read at once, and each of four columns takes one of them or none."""
    quad = start * 2 + tl.arange(0, 2 * width)[None, :]  # four columns, half a byte
    wide = row.to(tl.int64)
    inside = (row < rows) & (quad < 2 * end)
    packed = tl.load(bits + wide * bit_stride + quad // 2, mask=inside, other=0).to(tl.int32) >> (4 * (quad % 2))
    one, two, three, four = (packed & 1) != 0, (packed & 2) != 0, (packed & 4) != 0, (packed & 8) != 0
    inside = inside & (one | two | three)  # the half byte past the last column has no values
    pair = (wide * value_stride + quad * 2)[:, :, None] + tl.arange(0, 2)[None, None, :]
    first, second = tl.split(tl.load(values + pair, mask=inside[:, :, None], other=0.0))
    none = tl.zeros_like(first)
    inner = tl.join(tl.where(two, tl.where(one, second, first), none), tl.where(four, second, none))
    outer = tl.join(tl.where(one, first, none), tl.where(three, tl.where(four, first, second), none))
    return tl.reshape(tl.join(outer, inner), (row.shape[0], width * 8))


@triton.jit
def by_tiles(
    x,
    values,
    bits,
    out,
    rows,
    columns,
    value_stride,
    bit_stride,
    split_bytes,
    batch,
    keep: tl.constexpr,
    group: tl.constexpr,
    inputs: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """out[split, b, r] = the sum over a split's columns of x[b, c] W[r, c]: made dense a tile at a time."""
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    which = tl.arange(0, inputs)[None, :]
    begin = tl.program_id(1) * split_bytes
    end = tl.minimum(begin + split_bytes, tl.cdiv(columns, 8))
    carry = tl.zeros((height,), tl.int32) + begin * 8 // group * keep
    total = tl.zeros((height, inputs), tl.float32)
    for start in range(begin, end, width):
        tile, carry = _dense(values, bits, row, start, carry, rows, end, value_stride, bit_stride, keep, group, width)
        column = start * 8 + tl.arange(0, width * 8)[:, None]
        valid = (column < tl.minimum(end * 8, columns)) & (which < batch)
        taken = tl.load(x + which.to(tl.int64) * columns + column, mask=valid, other=0.0)
        total = tl.dot(tile, taken, total, input_precision="ieee")
    place = (tl.program_id(1) * batch + which).to(tl.int64) * rows + row
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row < rows) & (which < batch))


@triton.jit
def unpack(
    values,
    bits,
    out,
    rows,
    columns,
    value_stride,
    bit_stride,
    split_bytes,
    keep: tl.constexpr,
    group: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """out[r, c] = W[r, c], zeros included."""
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    begin = tl.program_id(1) * split_bytes
    end = tl.minimum(begin + split_bytes, tl.cdiv(columns, 8))
    carry = tl.zeros((height,), tl.int32) + begin * 8 // group * keep
    for start in range(begin, end, width):
        tile, carry = _dense(values, bits, row, start, carry, rows, end, value_stride, bit_stride, keep, group, width)
        column = start * 8 + tl.arange(0, width * 8)[None, :]
        valid = (row < rows) & (column < tl.minimum(end * 8, columns))
        tl.store(out + row.to(tl.int64) * columns + column, tile, mask=valid)


@triton.jit
def add_splits(partial, out, size, splits: tl.constexpr, block: tl.constexpr):
    """out[i] = the sum over the splits of partial[split, i], one after the other."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for split in range(splits):
        total += tl.load(partial + split * size + place, mask=place < size, other=0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=place < size)
