"""Triton kernels that unpack a packed matrix tile by tile, for tensor cores or into memory."""

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
    """Unpack a tile, (rows of the tile, 8 width).

    Args:
        values: Values of the packed matrix.
        bits: Its bits.
        row: Indices of the tile's rows, (height, 1).
        start: Index of its first byte of bits.
        carry: Index of its first value in each row, (height,).
        rows: Rows of the matrix.
        end: Index of the byte after the last one to read.
        value_stride: Values from row to row.
        bit_stride: Bytes of bits from row to row.
        keep: N.
        group: M.
        width: Bytes of bits of a tile.

    Returns:
        The tile with its zeros, and the carry for the tile that follows.
    """
    if (keep == 2) & (group == 4):
        return _dense_2_of_4(values, bits, row, start, rows, end, value_stride, bit_stride, width), carry
    byte = start + tl.arange(0, width)[None, :]
    row64 = row.to(tl.int64)
    mask = tl.load(bits + row64 * bit_stride + byte, mask=(row < rows) & (byte < end), other=0).to(tl.int32)
    first, carry = first_values(byte, mask, carry, keep, group)
    bit = tl.arange(0, 8)[None, None, :]
    before = ((spread(mask) * 0x11111110)[:, :, None] >> (4 * bit).to(tl.uint32)).to(tl.int32) & 15
    kept = ((mask[:, :, None] >> bit) & 1) != 0
    tile = tl.load(values + (row64 * value_stride)[:, :, None] + first[:, :, None] + before, mask=kept, other=0.0)
    return tl.reshape(tile, (row.shape[0], width * 8)), carry


@triton.jit
def _dense_2_of_4(values, bits, row, start, rows, end, value_stride, bit_stride, width: tl.constexpr):
    """Unpack a tile of a 2:4 matrix: two values are loaded at once, and each of four columns takes one or none."""
    quad = start * 2 + tl.arange(0, 2 * width)[None, :]  # four columns, half a byte
    row64 = row.to(tl.int64)
    inside = (row < rows) & (quad < 2 * end)
    mask = tl.load(bits + row64 * bit_stride + quad // 2, mask=inside, other=0).to(tl.int32) >> (4 * (quad % 2))
    kept0 = (mask & 1) != 0
    kept1 = (mask & 2) != 0
    kept2 = (mask & 4) != 0
    kept3 = (mask & 8) != 0
    inside = inside & (kept0 | kept1 | kept2)  # the half byte past the last column has no values
    pair = (row64 * value_stride + quad * 2)[:, :, None] + tl.arange(0, 2)[None, None, :]
    first, second = tl.split(tl.load(values + pair, mask=inside[:, :, None], other=0.0))
    zero = tl.zeros_like(first)
    odd = tl.join(tl.where(kept1, tl.where(kept0, second, first), zero), tl.where(kept3, second, zero))
    even = tl.join(tl.where(kept0, first, zero), tl.where(kept2, tl.where(kept3, first, second), zero))
    return tl.reshape(tl.join(even, odd), (row.shape[0], width * 8))


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
    """Compute out[split, b, r] = sum over a split's columns of x[b, c] W[r, c], unpacking a tile at a time.

    Args:
        x: Inputs, (batch, columns).
        values: Values of the packed matrix.
        bits: Its bits.
        out: (splits, batch, rows).
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        value_stride: Values from row to row.
        bit_stride: Bytes of bits from row to row.
        split_bytes: Bytes of bits in a split of the columns.
        batch: Number of inputs.
        keep: N.
        group: M.
        inputs: The batch, rounded up to a power of two.
        height: Rows of a tile.
        width: Bytes of bits of a tile.
    """
    row = tl.program_id(0) * height + tl.arange(0, height)[:, None]
    input_index = tl.arange(0, inputs)[None, :]
    begin = tl.program_id(1) * split_bytes
    end = tl.minimum(begin + split_bytes, tl.cdiv(columns, 8))
    carry = tl.zeros((height,), tl.int32) + begin * 8 // group * keep
    total = tl.zeros((height, inputs), tl.float32)
    for start in range(begin, end, width):
        tile, carry = _dense(values, bits, row, start, carry, rows, end, value_stride, bit_stride, keep, group, width)
        column = start * 8 + tl.arange(0, width * 8)[:, None]
        valid = (column < tl.minimum(end * 8, columns)) & (input_index < batch)
        x_tile = tl.load(x + input_index.to(tl.int64) * columns + column, mask=valid, other=0.0)
        total = tl.dot(tile, x_tile, total, input_precision="ieee")
    offset = (tl.program_id(1) * batch + input_index).to(tl.int64) * rows + row
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=(row < rows) & (input_index < batch))


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
    """Write out[r, c] = W[r, c], zeros included; arguments as of `by_tiles`, but `out` is (rows, columns)."""
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
    """Compute out[i] = sum over the splits of partial[split, i], one split after the other.

    Args:
        partial: (splits, size), float32.
        out: (size,).
        size: Number of outputs.
        splits: Number of splits.
        block: Outputs of one program.
    """
    index = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for split in range(splits):
        total += tl.load(partial + split * size + index, mask=index < size, other=0.0)
    tl.store(out + index, total.to(out.dtype.element_ty), mask=index < size)
