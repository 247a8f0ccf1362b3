"""The smallest piece of the CPU kernels, as LLVM instructions: one block of columns of one packed row, made dense.

A block is as many columns as are put in place at once. Bit c says whether column c takes the next kept value or a
zero. Values are of the inputs' type, or whole numbers of int8 with float32 inputs. What comes out is the dense block,
so that products have the infinities and NaNs of the dense product.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils

from eggs_ptp.sparse.cpu_job import FIELDS

binding.initialize_native_asmparser()
BYTE, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_SHORT = ir.IntType(16)


@dataclass(frozen=True)
class Machine:
    """How a processor puts values in place: columns a block, floats a register, lanes of values' size or not."""

    columns: int
    lanes: int
    words: bool  # of the values' own size, not of 32 bits
    dots: bool = False  # multiplies pairs of bfloat16 as they are, flushing denormals, as the dense product does there


def machine(tier: str, kind: str, inputs: int, held: str = "float") -> Machine:
    """The machine of a tier ("avx2", "avx512", "avx512vbmi2", "avx512bf16") for a type and number of inputs.

    `held` are the values: "float", which is the inputs' type, or "int8".
    """
    if tier == "avx2":
        return Machine(8, 8, False)
    if held == "int8":  # one input: most columns an instruction; several: few registers, so that sums have theirs
        return Machine(64, 16, True) if inputs == 1 and tier != "avx512" else Machine(16, 16, False)
    if tier == "avx512" or kind == "float32":
        return Machine(16, 16, False)
    return Machine(32, 16, True, tier == "avx512bf16" and kind == "bfloat16" and inputs > 1)


class Emitter:
    """Writes instructions for one tier and type. Addresses are int64; offsets are numbers or int64."""

    def __init__(self, builder: Any, job: Any, tier: str, kind: str, held: str, inputs: int) -> None:
        self.b, self.job, self.kind, self.whole = builder, job, kind, held == "int8"
        self.machine = machine(tier, kind, inputs, held)
        self.size = 4 if kind == "float32" else 2  # of inputs and outputs
        self.value_size = 1 if self.whole else self.size
        self.parts = 1 if self.machine.dots else self.machine.columns // self.machine.lanes
        self.vector = ir.VectorType(FLOAT, self.machine.lanes)
        self.f = {name: self.load(self.add(job, 8 * place), LONG, 8) for place, name in enumerate(FIELDS)}

    def long(self, value: Any) -> Any:
        """A number as a constant; a value as it is."""
        return ir.Constant(LONG, value) if isinstance(value, int) else value

    def add(self, *terms: Any) -> Any:
        """The sum of an int64 value and further terms."""
        total = terms[0]
        for term in terms[1:]:
            total = self.b.add(total, self.long(term))
        return total

    def mul(self, left: Any, right: Any) -> Any:
        """The product of two int64."""
        return self.b.mul(self.long(left), self.long(right))

    def smaller(self, left: Any, right: Any) -> Any:
        """The smaller of two int64."""
        return self.b.select(self.b.icmp_signed("<", left, right), left, right)

    def pointer(self, address: Any, kind: Any = BYTE) -> Any:
        """An address as a pointer."""
        return self.b.inttoptr(address, kind.as_pointer())

    def address(self, pointer: Any) -> Any:
        """A pointer as an address."""
        return self.b.ptrtoint(pointer, LONG)

    def load(self, address: Any, kind: Any, align: int) -> Any:
        """What stands at an address."""
        value = self.b.load(self.pointer(address, kind))
        value.align = align
        return value

    def store(self, value: Any, address: Any, align: int) -> None:
        """Put a value at an address."""
        self.b.store(value, self.pointer(address, value.type)).align = align

    def call(self, name: str, result: Any, *arguments: Any, **options: Any) -> Any:
        """Call one of LLVM's intrinsics."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), arguments, **options)

    def prefetch(self, address: Any) -> None:
        """Ask for the cache line of an address: to be read once, so that it should push nothing out of the cache."""
        self.call("llvm.prefetch.p0", ir.VoidType(), self.pointer(address), *(ir.Constant(INT, n) for n in (0, 0, 1)))

    def dense(self, values: Any, bits: Any) -> Any:
        """The block at these addresses, as integers: of the values' own size if two share a lane, else of 32 bits."""
        columns, held = self.machine.columns, ir.IntType(8 * self.value_size)
        lane = held if self.machine.words else INT
        read = self.load(values, ir.VectorType(held, columns // 2), self.value_size)
        if held.width < lane.width:
            read = (self.b.sext if self.whole else self.b.zext)(read, ir.VectorType(lane, columns // 2))
        full = ir.VectorType(lane, columns)
        wide = self.b.shuffle_vector(read, ir.Constant(read.type, None), _indices(range(columns)))  # values, zeros
        if columns == 8:
            entry = self.mul(self.b.zext(self.load(bits, BYTE, 1), LONG), 8)
            places = self.load(self.add(self.address(self.places()), entry), ir.VectorType(BYTE, 8), 8)
            return self.call("llvm.x86.avx2.permd", full, wide, self.b.zext(places, full))
        mask = self.b.bitcast(self.load(bits, ir.IntType(columns), 1), ir.VectorType(ir.IntType(1), columns))
        name = f"llvm.x86.avx512.mask.expand.v{columns}i{lane.width}"
        return self.call(name, full, wide, ir.Constant(full, None), mask)

    def places(self) -> Any:
        """A table in the code: for every byte of bits, which of its values a column takes, or 7, a zero."""
        module, name = self.b.module, "eggs_places"
        if name not in module.globals:
            bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
            table = np.where(bits, bits.cumsum(axis=1) - 1, 7).astype(np.uint8)
            content = ir.Constant(ir.ArrayType(BYTE, table.size), bytearray(table.tobytes()))
            cgutils.global_constant(self.b, name, content).align = 64
        return module.globals[name]

    def weights(self, block: Any) -> list[Any]:
        """The block as registers of floats: whole numbers in the order of columns, others as `floats` has them."""
        if not self.whole:
            return self.floats(block)
        lanes = self.machine.lanes
        cuts = [_indices(range(lanes * part, lanes * (part + 1))) for part in range(self.parts)]
        parts = [self.b.shuffle_vector(block, block, cut) for cut in cuts]
        if self.machine.words:
            parts = [self.b.sext(part, ir.VectorType(INT, lanes)) for part in parts]
        return [self.b.sitofp(part, self.vector) for part in parts]

    def floats(self, block: Any) -> list[Any]:
        """The block as registers of floats. Of two, the first has bfloat16's even columns, or float16's lower half."""
        lanes = self.machine.lanes
        ints = ir.VectorType(INT, lanes)
        if self.kind == "float32" or self.machine.dots:
            return [self.b.bitcast(block, self.vector)]
        if self.kind == "bfloat16":
            pairs = self.b.bitcast(block, ints)
            halves = [self.b.shl(pairs, ir.Constant(ints, [16] * lanes))]
            if self.machine.words:
                halves.append(self.b.and_(pairs, ir.Constant(ints, [-65536] * lanes)))
            return [self.b.bitcast(half, self.vector) for half in halves]
        half = ir.VectorType(ir.HalfType(), lanes)
        words = block if self.machine.words else self.b.trunc(block, ir.VectorType(_SHORT, lanes))
        cuts = [_indices(range(lanes * part, lanes * (part + 1))) for part in range(self.parts)]
        shorts = [self.b.shuffle_vector(words, words, cut) for cut in cuts]
        return [self.b.fpext(self.b.bitcast(short, half), self.vector) for short in shorts]

    def inputs_at(self, address: Any) -> list[Any]:
        """As many inputs as a block has columns, in registers as the block's."""
        if self.whole:
            return [
                self.load(self.add(address, 4 * self.machine.lanes * part), self.vector, 4)
                for part in range(self.parts)
            ]
        if self.machine.words or self.size == 4:
            lane = ir.IntType(8 * self.size)
            return self.floats(self.load(address, ir.VectorType(lane, self.machine.columns), self.size))
        shorts = self.load(address, ir.VectorType(_SHORT, self.machine.columns), 2)
        return self.floats(self.b.zext(shorts, ir.VectorType(INT, self.machine.columns)))

    def rounded(self, total: Any) -> Any:
        """A float in the values' type: to the nearest, of two to the even one."""
        if self.kind == "float32":
            return total
        if self.kind == "float16":
            return self.b.fptrunc(total, ir.HalfType())
        raw = self.b.bitcast(total, INT)
        high = self.b.lshr(raw, ir.Constant(INT, 16))
        half = self.b.add(self.b.and_(high, ir.Constant(INT, 1)), ir.Constant(INT, 0x7FFF))
        nearest = self.b.lshr(self.b.add(raw, half), ir.Constant(INT, 16))
        quiet = self.b.or_(high, ir.Constant(INT, 0x40))  # adding might carry a NaN beyond its exponent
        return self.b.trunc(self.b.select(self.b.fcmp_unordered("uno", total, total), quiet, nearest), _SHORT)

    def multiplied(self, weights: Any, inputs: Any, total: Any) -> Any:
        """`total` and the products of two registers."""
        if not self.machine.dots:
            return self.call(f"llvm.fma.v{self.machine.lanes}f32", self.vector, weights, inputs, total)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.b.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, weights, inputs])


def _indices(numbers: Iterable[int]) -> Any:
    listed = list(numbers)
    return ir.Constant(ir.VectorType(INT, len(listed)), listed)
