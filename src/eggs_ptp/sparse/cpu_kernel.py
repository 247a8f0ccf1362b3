"""The CPU kernels: packed rows times a few inputs, and packed rows made dense, compiled by numba for this processor.

Threads take rows from a shared counter. A row is summed by one thread, always in the same order, so results do not
depend on how many threads there are.
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
from eggs_ptp.sparse.cpu_job import AT_ONCE, GROUP

_AHEAD, _BITS_AHEAD = 8192, 1024  # bytes that reading one row at a time prefetches: hardware stops at a page's end
_UNROLLED = 4  # blocks of a single row that are summed apart
_SIGNATURE = types.void(types.intp)
# Numba compiles anew when this file changes; what the code is made of elsewhere has to be part of its name.
_SOURCES = b"".join(Path(str(module.__file__)).read_bytes() for module in (cpu_block, cpu_job))
_VERSION = hashlib.sha256(_SOURCES).hexdigest()[:16]


def compiled(task: str, tier: str, kind: str, inputs: int, held: str = "float") -> Any:
    """The kernel of a task ("product", "unpack"), a tier, a type, its values ("float", "int8") and 1, 4 or 8 inputs.

    Compiled once and kept on disk by numba, beside this file or in the user's cache, for this file and processor.
    """
    rows = {1: 1, 4: 2 if tier == "avx2" else 4, 8: 2}[inputs]  # sums that 16 or 32 registers hold
    spec = f"{task} {tier} {kind} {held} {rows} {inputs} {_VERSION}"

    def kernel(job: Any) -> None:
        _code(job, spec)

    try:
        return cfunc(_SIGNATURE, cache=True)(kernel)
    except RuntimeError:  # numba found no folder that it may write to
        return cfunc(_SIGNATURE)(kernel)


def _emit(_context: Any, _job: Any, spec: Any) -> Any:
    task, tier, kind, held, *numbers, _ = spec.literal_value.split()

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kernel = _Kernel(builder, arguments[0], tier, kind, held, *map(int, numbers))
        kernel.share(kernel.product() if task == "product" else kernel.unpack)
        return context.get_dummy_value()

    return types.void(types.intp, spec), codegen


_code: Any = intrinsic(prefer_literal=True)(_emit)


class _Kernel(Emitter):
    """Keeps a tile of `rows` times `inputs` sums in registers."""

    def __init__(self, builder: Any, job: Any, tier: str, kind: str, held: str, rows: int, inputs: int) -> None:
        super().__init__(builder, job, tier, kind, held, inputs)
        self.rows, self.inputs, self.unrolled = rows, inputs, _UNROLLED if rows == 1 else 1
        self.value_bytes, self.bit_bytes = self.machine.columns // 2 * self.value_size, self.machine.columns // 8
        self.spare = [cgutils.alloca_once(builder, ir.ArrayType(BYTE, size), zfill=True) for size in (64, 8, 256)]

    def share(self, work: Callable[[Any, Any], None]) -> None:
        """Take rows until none are left: `work(first row of a group, whether the next group is this thread's too)`."""
        b, f = self.b, self.f
        take, busy, done = (b.append_basic_block(name) for name in ("take", "busy", "done"))
        b.branch(take)
        b.position_at_end(take)
        start = b.atomic_rmw("add", self.pointer(self.job, LONG), f["grab"], "monotonic")
        b.cbranch(b.icmp_signed("<", start, f["rows"]), busy, done)
        b.position_at_end(busy)
        stop = self.smaller(self.add(start, f["grab"]), f["rows"])
        groups = b.sdiv(self.add(b.sub(stop, start), GROUP - 1), self.long(GROUP))
        with cgutils.for_range(b, groups) as loop:
            more = b.icmp_signed("<", self.add(loop.index, 1), groups)
            work(self.add(start, self.mul(loop.index, GROUP)), more)
        b.branch(take)
        b.position_at_end(done)

    def row(self, number: Any) -> tuple[Any, Any, Any]:
        """A row's number and the addresses of its values and bits; past the end, the last row once more."""
        number = self.smaller(number, self.add(self.f["rows"], -1))
        values = self.add(self.f["values"], self.mul(number, self.f["values_stride"]))
        return number, values, self.add(self.f["bits"], self.mul(number, self.f["bits_stride"]))

    def last_block(self, row: tuple[Any, Any, Any]) -> Any:
        """The columns that fill no block, from a copy: a whole block would reach beyond the tensors."""
        copies = []
        for spare, start, size, name in zip(
            self.spare, row[1:], (self.value_bytes, self.bit_bytes), ("tail_values", "tail_bits"), strict=False
        ):
            source = self.pointer(self.add(start, self.mul(self.f["blocks"], size)))
            target = self.b.bitcast(spare, BYTE.as_pointer())
            cgutils.raw_memcpy(self.b, target, source, self.f[name], 1)
            copies.append(self.address(spare))
        return self.dense(*copies)

    def product(self) -> Callable[[Any, Any], None]:
        """Y (inputs, rows) = x W^T; a group's rows by panels of columns, so that x stays in the cache."""
        b, f = self.b, self.f
        apart = self.unrolled * self.parts if self.rows * self.inputs < 8 else 1  # enough to hide the latency of fma
        sums = [
            [[cgutils.alloca_once(b, self.vector) for _ in range(apart)] for _ in range(self.inputs)]
            for _ in range(self.rows)
        ]
        tile_bytes = self.rows * self.inputs * self.machine.lanes * 4
        kept = self.address(cgutils.alloca_once(b, ir.ArrayType(self.vector, GROUP * AT_ONCE)))

        def work(first: Any, more: Any) -> None:
            tiles = GROUP // self.rows
            cgutils.memset(b, self.pointer(kept), self.mul(f["chunks"], tiles * tile_bytes), 0)
            with (
                cgutils.for_range(b, f["panels"]) as panel,
                cgutils.for_range(b, f["chunks"]) as chunk,
                cgutils.for_range(b, self.long(tiles)) as tile,
            ):
                start = self.mul(panel.index, f["panel"])
                stop = self.smaller(self.add(start, f["panel"]), f["blocks"])
                number = self.add(first, self.mul(tile.index, self.rows))
                rows = [self.row(self.add(number, place)) for place in range(self.rows)]
                x = self.add(f["x"], self.mul(chunk.index, f["chunk_stride"]))
                here = self.add(kept, self.mul(self.add(self.mul(chunk.index, tiles), tile.index), tile_bytes))
                self.resume(sums, here)
                fetch = b.and_(more, b.icmp_signed("==", chunk.index, self.long(0)))
                self.span(rows, x, start, stop, sums, fetch)
                last = b.icmp_signed("==", stop, f["blocks"])
                with b.if_then(b.and_(last, b.icmp_signed(">", f["tail_bits"], self.long(0)))):
                    self.accumulate([self.weights(self.last_block(row)) for row in rows], x, f["blocks"], sums, 0)
                self.pause(sums, here)
                with b.if_then(last):
                    self.finish(rows, self.mul(chunk.index, self.inputs), here)

        return work

    def resume(self, sums: Any, here: Any) -> None:
        """Registers start from what earlier panels left."""
        for place, sum_ in enumerate(each for row in sums for each in row):
            for apart in sum_:
                self.b.store(ir.Constant(self.vector, None), apart)
            self.b.store(self.load(self.add(here, place * self.machine.lanes * 4), self.vector, 4), sum_[0])

    def pause(self, sums: Any, here: Any) -> None:
        """Registers are left for the next panel."""
        for place, sum_ in enumerate(each for row in sums for each in row):
            total = self.b.load(sum_[0])
            for apart in sum_[1:]:
                total = self.b.fadd(total, self.b.load(apart))
            self.store(total, self.add(here, place * self.machine.lanes * 4), 4)

    def span(self, rows: Any, x: Any, start: Any, stop: Any, sums: Any, fetch: Any) -> None:
        """Sum the blocks from `start` to `stop`, as many at a turn as are unrolled, then one by one."""
        b = self.b
        turns = b.sdiv(b.sub(stop, start), self.long(self.unrolled))
        ahead = [self.add(self.mul(self.f[f"{name}_stride"], GROUP), 0) for name in ("values", "bits")]
        if self.rows == 1:
            ahead = [self.long(_AHEAD), self.long(_BITS_AHEAD)]
        ahead = [b.select(fetch, distance, self.long(0)) for distance in ahead]

        def turn(index: Any, unrolled: int) -> None:
            for _, values, bits in rows:
                offset = self.add(values, ahead[0], self.mul(index, self.value_bytes))
                for line in range(0, unrolled * self.value_bytes, 64):
                    self.prefetch(self.add(offset, line))
                self.prefetch(self.add(bits, ahead[1], self.mul(index, self.bit_bytes)))
            for step in range(unrolled):
                at = self.add(index, step)
                value, bit = self.mul(at, self.value_bytes), self.mul(at, self.bit_bytes)
                blocks = [self.dense(self.add(values, value), self.add(bits, bit)) for _, values, bits in rows]
                self.accumulate([self.weights(block) for block in blocks], x, at, sums, step)

        with cgutils.for_range(b, turns) as loop:
            turn(self.add(start, self.mul(loop.index, self.unrolled)), self.unrolled)
        if self.unrolled > 1:
            rest = self.add(start, self.mul(turns, self.unrolled))
            with cgutils.for_range(b, b.sub(stop, rest)) as loop:
                turn(self.add(rest, loop.index), 1)

    def accumulate(self, blocks: Any, x: Any, at: Any, sums: Any, apart: int) -> None:
        """Add every row's block times every input's to the sums."""
        wide = self.machine.columns * self.size
        x = self.add(x, self.mul(at, self.inputs * wide))
        for place in range(self.inputs):
            inputs = self.inputs_at(self.add(x, place * wide))
            for parts, row in zip(blocks, sums, strict=True):
                for part, weights in enumerate(parts):
                    target = row[place][(apart * self.parts + part) % len(row[place])]
                    self.b.store(self.multiplied(weights, inputs[part], self.b.load(target)), target)

    def finish(self, rows: Any, first_input: Any, here: Any) -> None:
        """Add up each register and put it into y."""
        name = f"llvm.vector.reduce.fadd.v{self.machine.lanes}f32"
        for place, (number, _, _) in enumerate(rows):
            for each in range(self.inputs):
                offset = (place * self.inputs + each) * self.machine.lanes * 4
                register = self.load(self.add(here, offset), self.vector, 4)
                total = self.call(name, FLOAT, ir.Constant(FLOAT, 0.0), register, fastmath=("reassoc",))
                if self.whole:
                    total = self.b.fmul(total, self.load(self.add(self.f["scales"], self.mul(number, 4)), FLOAT, 4))
                line = self.add(self.f["y"], self.mul(self.add(first_input, each), self.f["y_stride"]))
                self.store(self.rounded(total), self.add(line, self.mul(number, self.size)), self.size)

    def unpack(self, first: Any, _more: Any) -> None:
        """Y (rows, columns) = the dense rows, in the values' type; whole numbers as float32, without their scales."""
        b, wide = self.b, self.machine.columns * self.size
        held = ir.VectorType(ir.IntType(8 * self.size), self.machine.columns)

        def put(block: Any, y: Any, align: int) -> None:
            if not self.whole:
                self.store(block if block.type == held else b.trunc(block, held), y, align)
                return
            for part, floats in enumerate(self.weights(block)):
                self.store(floats, self.add(y, part * self.machine.lanes * 4), 4)

        with cgutils.for_range(b, self.long(GROUP)) as loop:
            row = number, values, bits = self.row(self.add(first, loop.index))
            y = self.add(self.f["y"], self.mul(number, self.f["y_stride"]))
            with cgutils.for_range(b, self.f["blocks"]) as at:
                block = self.dense(
                    self.add(values, self.mul(at.index, self.value_bytes)),
                    self.add(bits, self.mul(at.index, self.bit_bytes)),
                )
                put(block, self.add(y, self.mul(at.index, wide)), self.size)
            with b.if_then(b.icmp_signed(">", self.f["tail_bits"], self.long(0))):
                put(self.last_block(row), self.address(self.spare[2]), 8)
                target = self.pointer(self.add(y, self.mul(self.f["blocks"], wide)))
                source = b.bitcast(self.spare[2], BYTE.as_pointer())
                cgutils.raw_memcpy(b, target, source, self.f["tail_y"], 1)
