"""The CPU kernels, compiled by numba for this processor: packed rows times a few inputs, and packed rows unpacked.

Threads take rows from a shared counter. A row is summed by one thread, always in the same order, so results do not
depend on the number of threads.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from eggs_ptp.sparse import cpu_block, cpu_job
from eggs_ptp.sparse.cpu_block import BYTE, FLOAT, LONG, Emitter
from eggs_ptp.sparse.cpu_job import MAX_INPUTS, ROW_GROUP

# Bytes of values and of bits that are prefetched when rows are read one at a time: the hardware's own prefetching
# stops at the end of a page.
_VALUES_AHEAD = 8192
_BITS_AHEAD = 1024
_UNROLLED = 4  # blocks of a single row that are summed in separate registers
_SIGNATURE = types.void(types.intp)
# Numba recompiles when this file changes; the other files that the code is made of must be part of its name.
_SOURCES = b"".join(Path(str(module.__file__)).read_bytes() for module in (cpu_block, cpu_job))
_VERSION = hashlib.sha256(_SOURCES).hexdigest()[:16]


def compiled(task: str, tier: str, dtype_name: str, inputs: int, value_kind: str = "float") -> Any:
    """Return a compiled kernel, a function of the address of a job.

    Compiled once and cached on disk by numba, next to this file or in the user's cache, for this file and processor.

    Args:
        task: "product" or "unpack".
        tier: Instruction set, as of `cpu_block.block_layout`.
        dtype_name: Type of inputs and outputs, likewise.
        inputs: How many inputs are multiplied at once: 1, 4 or 8.
        value_kind: Kind of the packed values: "float" or "int8".
    """
    rows = {1: 1, 4: 2 if tier == "avx2" else 4, 8: 2}[inputs]  # so that 16 or 32 registers hold the sums
    spec = f"{task} {tier} {dtype_name} {value_kind} {rows} {inputs} {_VERSION}"

    def kernel(job: Any) -> None:
        _code(job, spec)

    try:
        return cfunc(_SIGNATURE, cache=True)(kernel)
    except RuntimeError:  # numba has no folder that it may write to
        return cfunc(_SIGNATURE)(kernel)


def _emit(_context: Any, _job: Any, spec: Any) -> Any:
    """Emit the kernel that a spec describes; numba calls this when it compiles `_code`."""
    task, tier, dtype_name, value_kind, rows, inputs, _ = spec.literal_value.split()

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kernel = _Kernel(builder, arguments[0], tier, dtype_name, value_kind, int(rows), int(inputs))
        kernel.for_each_group(kernel.product() if task == "product" else kernel.unpack)
        return context.get_dummy_value()

    return types.void(types.intp, spec), codegen


_code: Any = intrinsic(prefer_literal=True)(_emit)


class _Kernel(Emitter):
    """Emits a kernel that keeps a tile of `rows` times `inputs` sums in registers."""

    def __init__(
        self, builder: Any, job: Any, tier: str, dtype_name: str, value_kind: str, rows: int, inputs: int
    ) -> None:
        super().__init__(builder, job, tier, dtype_name, value_kind, inputs)
        self.rows = rows
        self.inputs = inputs
        self.unrolled = _UNROLLED if rows == 1 else 1
        self.value_bytes = self.layout.columns // 2 * self.value_size  # of a block
        self.bit_bytes = self.layout.columns // 8
        # Copies of the values, the bits and the dense columns of a last block.
        self.scratch = [cgutils.alloca_once(builder, ir.ArrayType(BYTE, size), zfill=True) for size in (64, 8, 256)]

    def for_each_group(self, work: Callable[[Any, Any], None]) -> None:
        """Emit the loop that takes rows until none are left, and works on them by groups of `ROW_GROUP`.

        Args:
            work: Called once, as (first row of the group, whether the next group is this thread's too).
        """
        b = self.b
        f = self.f
        take, busy, done = (b.append_basic_block(name) for name in ("take", "busy", "done"))
        b.branch(take)
        b.position_at_end(take)
        start = b.atomic_rmw("add", self.pointer(self.job, LONG), f["grab"], "monotonic")
        b.cbranch(b.icmp_signed("<", start, f["rows"]), busy, done)
        b.position_at_end(busy)
        stop = self.smaller(self.add(start, f["grab"]), f["rows"])
        groups = b.sdiv(self.add(b.sub(stop, start), ROW_GROUP - 1), self.long(ROW_GROUP))
        with cgutils.for_range(b, groups) as loop:
            more = b.icmp_signed("<", self.add(loop.index, 1), groups)
            work(self.add(start, self.mul(loop.index, ROW_GROUP)), more)
        b.branch(take)
        b.position_at_end(done)

    def row(self, number: Any) -> tuple[Any, Any, Any]:
        """Emit a row's number and the addresses of its values and bits; past the end, those of the last row."""
        number = self.smaller(number, self.add(self.f["rows"], -1))
        values = self.add(self.f["values"], self.mul(number, self.f["values_stride"]))
        return number, values, self.add(self.f["bits"], self.mul(number, self.f["bits_stride"]))

    def last_block(self, row: tuple[Any, Any, Any]) -> Any:
        """Emit the columns that fill no block, from a copy: reading a full block would reach beyond the tensors."""
        copies = []
        for scratch, start, size, tail in zip(
            self.scratch, row[1:], (self.value_bytes, self.bit_bytes), ("tail_values", "tail_bits"), strict=False
        ):
            source = self.pointer(self.add(start, self.mul(self.f["blocks"], size)))
            target = self.b.bitcast(scratch, BYTE.as_pointer())
            cgutils.raw_memcpy(self.b, target, source, self.f[tail], 1)
            copies.append(self.address(scratch))
        return self.dense(*copies)

    def product(self) -> Callable[[Any, Any], None]:
        """Return the work of a product: y (inputs, rows) = x W^T.

        A group's rows are multiplied by panels of columns, so that the inputs of a panel stay in the cache.
        """
        b = self.b
        f = self.f
        # Enough separate sums to hide the latency of fused multiply-adds.
        separate_sums = self.unrolled * self.registers if self.rows * self.inputs < 8 else 1
        sums = [
            [[cgutils.alloca_once(b, self.vector) for _ in range(separate_sums)] for _ in range(self.inputs)]
            for _ in range(self.rows)
        ]
        tile_bytes = self.rows * self.inputs * self.layout.lanes * 4
        saved_sums = self.address(cgutils.alloca_once(b, ir.ArrayType(self.vector, ROW_GROUP * MAX_INPUTS)))

        def work(first: Any, more: Any) -> None:
            tiles = ROW_GROUP // self.rows
            cgutils.memset(b, self.pointer(saved_sums), self.mul(f["chunks"], tiles * tile_bytes), 0)
            with (
                cgutils.for_range(b, f["panels"]) as panel,
                cgutils.for_range(b, f["chunks"]) as chunk,
                cgutils.for_range(b, self.long(tiles)) as tile,
            ):
                start = self.mul(panel.index, f["panel"])
                stop = self.smaller(self.add(start, f["panel"]), f["blocks"])
                number = self.add(first, self.mul(tile.index, self.rows))
                rows = [self.row(self.add(number, offset)) for offset in range(self.rows)]
                x = self.add(f["x"], self.mul(chunk.index, f["chunk_stride"]))
                saved = self.add(saved_sums, self.mul(self.add(self.mul(chunk.index, tiles), tile.index), tile_bytes))
                self.restore(sums, saved)
                fetch = b.and_(more, b.icmp_signed("==", chunk.index, self.long(0)))
                self.sum_blocks(rows, x, start, stop, sums, fetch)
                last = b.icmp_signed("==", stop, f["blocks"])
                with b.if_then(b.and_(last, b.icmp_signed(">", f["tail_bits"], self.long(0)))):
                    self.accumulate([self.weights(self.last_block(row)) for row in rows], x, f["blocks"], sums, 0)
                self.save(sums, saved)
                with b.if_then(last):
                    self.finish(rows, self.mul(chunk.index, self.inputs), saved)

        return work

    def restore(self, sums: Any, saved: Any) -> None:
        """Emit loads of the sums of earlier panels into the registers."""
        for index, registers in enumerate(registers for row in sums for registers in row):
            for register in registers:
                self.b.store(ir.Constant(self.vector, None), register)
            self.b.store(self.load(self.add(saved, index * self.layout.lanes * 4), self.vector, 4), registers[0])

    def save(self, sums: Any, saved: Any) -> None:
        """Emit stores of the sums for the next panel, separate sums added up."""
        for index, registers in enumerate(registers for row in sums for registers in row):
            total = self.b.load(registers[0])
            for register in registers[1:]:
                total = self.b.fadd(total, self.b.load(register))
            self.store(total, self.add(saved, index * self.layout.lanes * 4), 4)

    def sum_blocks(self, rows: Any, x: Any, start: Any, stop: Any, sums: Any, fetch: Any) -> None:
        """Emit the sum of the blocks from `start` to `stop`: first `unrolled` at a time, then one by one."""
        b = self.b
        steps = b.sdiv(b.sub(stop, start), self.long(self.unrolled))
        ahead = [self.add(self.mul(self.f[f"{name}_stride"], ROW_GROUP), 0) for name in ("values", "bits")]
        if self.rows == 1:
            ahead = [self.long(_VALUES_AHEAD), self.long(_BITS_AHEAD)]
        ahead = [b.select(fetch, distance, self.long(0)) for distance in ahead]

        def step(index: Any, unrolled: int) -> None:
            for _, values, bits in rows:
                offset = self.add(values, ahead[0], self.mul(index, self.value_bytes))
                for line in range(0, unrolled * self.value_bytes, 64):
                    self.prefetch(self.add(offset, line))
                self.prefetch(self.add(bits, ahead[1], self.mul(index, self.bit_bytes)))
            for number in range(unrolled):
                block = self.add(index, number)
                value_offset = self.mul(block, self.value_bytes)
                bit_offset = self.mul(block, self.bit_bytes)
                blocks = [
                    self.dense(self.add(values, value_offset), self.add(bits, bit_offset)) for _, values, bits in rows
                ]
                self.accumulate([self.weights(dense) for dense in blocks], x, block, sums, number)

        with cgutils.for_range(b, steps) as loop:
            step(self.add(start, self.mul(loop.index, self.unrolled)), self.unrolled)
        if self.unrolled > 1:
            rest = self.add(start, self.mul(steps, self.unrolled))
            with cgutils.for_range(b, b.sub(stop, rest)) as loop:
                step(self.add(rest, loop.index), 1)

    def accumulate(self, row_weights: Any, x: Any, block: Any, sums: Any, number: int) -> None:
        """Emit the products of one block of every row with every input, added to the sums.

        Args:
            row_weights: For each row, the block as registers of floats.
            x: Address of the inputs.
            block: Index of the block.
            sums: For each row and input, the registers of its separate sums.
            number: Which of the unrolled blocks it is.
        """
        block_bytes = self.layout.columns * self.size
        x = self.add(x, self.mul(block, self.inputs * block_bytes))
        for index in range(self.inputs):
            inputs = self.inputs_at(self.add(x, index * block_bytes))
            for registers, row_sums in zip(row_weights, sums, strict=True):
                for part, weights in enumerate(registers):
                    input_sums = row_sums[index]
                    target = input_sums[(number * self.registers + part) % len(input_sums)]
                    self.b.store(self.multiply_add(weights, inputs[part], self.b.load(target)), target)

    def finish(self, rows: Any, first_input: Any, saved: Any) -> None:
        """Emit the sum of each register and its store into y."""
        name = f"llvm.vector.reduce.fadd.v{self.layout.lanes}f32"
        for row_index, (number, _, _) in enumerate(rows):
            for input_index in range(self.inputs):
                offset = (row_index * self.inputs + input_index) * self.layout.lanes * 4
                register = self.load(self.add(saved, offset), self.vector, 4)
                total = self.call(name, FLOAT, ir.Constant(FLOAT, 0.0), register, fastmath=("reassoc",))
                if self.is_int8:
                    total = self.b.fmul(total, self.load(self.add(self.f["scales"], self.mul(number, 4)), FLOAT, 4))
                y_row = self.add(self.f["y"], self.mul(self.add(first_input, input_index), self.f["y_stride"]))
                self.store(self.rounded(total), self.add(y_row, self.mul(number, self.size)), self.size)

    def unpack(self, first: Any, _more: Any) -> None:
        """Emit y (rows, columns) = the dense rows, in the values' type; int8 as float32, without their scales."""
        b = self.b
        block_bytes = self.layout.columns * self.size
        block_type = ir.VectorType(ir.IntType(8 * self.size), self.layout.columns)

        def put(block: Any, y: Any, align: int) -> None:
            if not self.is_int8:
                self.store(block if block.type == block_type else b.trunc(block, block_type), y, align)
                return
            for part, floats in enumerate(self.weights(block)):
                self.store(floats, self.add(y, part * self.layout.lanes * 4), 4)

        with cgutils.for_range(b, self.long(ROW_GROUP)) as loop:
            row = number, values, bits = self.row(self.add(first, loop.index))
            y = self.add(self.f["y"], self.mul(number, self.f["y_stride"]))
            with cgutils.for_range(b, self.f["blocks"]) as block:
                dense = self.dense(
                    self.add(values, self.mul(block.index, self.value_bytes)),
                    self.add(bits, self.mul(block.index, self.bit_bytes)),
                )
                put(dense, self.add(y, self.mul(block.index, block_bytes)), self.size)
            with b.if_then(b.icmp_signed(">", self.f["tail_bits"], self.long(0))):
                put(self.last_block(row), self.address(self.scratch[2]), 8)
                target = self.pointer(self.add(y, self.mul(self.f["blocks"], block_bytes)))
                source = b.bitcast(self.scratch[2], BYTE.as_pointer())
                cgutils.raw_memcpy(b, target, source, self.f["tail_y"], 1)
