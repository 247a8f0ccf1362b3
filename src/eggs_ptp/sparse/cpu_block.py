"""The innermost part of the CPU kernels, as LLVM instructions: one block of columns of a packed row is unpacked.

A block is as many columns as one instruction expands at once. Bit c says whether column c takes the next kept value or
a zero. Values have the inputs' type, or are int8 with float32 inputs. The block comes out dense, zeros included, so
that products have the infinities and NaNs of the dense product.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils

from eggs_ptp.sparse.cpu_job import FIELDS

binding.initialize_native_asmparser()
BYTE = ir.IntType(8)
INT = ir.IntType(32)
LONG = ir.IntType(64)
FLOAT = ir.FloatType()
_SHORT = ir.IntType(16)


@dataclass(frozen=True)
class BlockLayout:
    """How a tier unpacks a block.

    Attributes:
        columns: Columns of a block.
        lanes: Floats in a register.
        value_sized_lanes: Whether values are expanded in lanes of their own size, not of 32 bits.
        bfloat16_dot: Whether pairs of bfloat16 are multiplied by one instruction, which flushes denormals, as torch's
            dense product does on such a processor.
    """

    columns: int
    lanes: int
    value_sized_lanes: bool
    bfloat16_dot: bool = False


def block_layout(tier: str, dtype_name: str, inputs: int, value_kind: str = "float") -> BlockLayout:
    """Return the layout of blocks for a kernel.

    Args:
        tier: Instruction set: "avx2", "avx512", "avx512vbmi2" or "avx512bf16".
        dtype_name: Type of inputs and outputs: "float32", "bfloat16" or "float16".
        inputs: How many inputs are multiplied at once.
        value_kind: Kind of the packed values: "float" (of that type) or "int8".
    """
    if tier == "avx2":
        return BlockLayout(8, 8, False)
    if value_kind == "int8":
        # One input: as many columns per instruction as possible. Several: few registers per block, as sums need them.
        return BlockLayout(64, 16, True) if inputs == 1 and tier != "avx512" else BlockLayout(16, 16, False)
    if tier == "avx512" or dtype_name == "float32":
        return BlockLayout(16, 16, False)
    return BlockLayout(32, 16, True, tier == "avx512bf16" and dtype_name == "bfloat16" and inputs > 1)


class Emitter:
    """Emits instructions for one tier and type. Addresses are int64 values; offsets are ints or int64 values.

    Args:
        builder: llvmlite's IRBuilder.
        job: Address of the job, int64.
        tier: As of `block_layout`.
        dtype_name: As of `block_layout`.
        value_kind: As of `block_layout`.
        inputs: As of `block_layout`.
    """

    def __init__(self, builder: Any, job: Any, tier: str, dtype_name: str, value_kind: str, inputs: int) -> None:
        self.b = builder
        self.job = job
        self.dtype_name = dtype_name
        self.is_int8 = value_kind == "int8"
        self.layout = block_layout(tier, dtype_name, inputs, value_kind)
        self.size = 4 if dtype_name == "float32" else 2  # bytes of an input or output
        self.value_size = 1 if self.is_int8 else self.size
        self.registers = 1 if self.layout.bfloat16_dot else self.layout.columns // self.layout.lanes  # of a block
        self.vector = ir.VectorType(FLOAT, self.layout.lanes)
        self.f = {name: self.load(self.add(job, 8 * index), LONG, 8) for index, name in enumerate(FIELDS)}

    def long(self, value: Any) -> Any:
        """Return an int as an int64 constant; a value as it is."""
        return ir.Constant(LONG, value) if isinstance(value, int) else value

    def add(self, *terms: Any) -> Any:
        """Emit the sum of an int64 value and further terms."""
        total = terms[0]
        for term in terms[1:]:
            total = self.b.add(total, self.long(term))
        return total

    def mul(self, left: Any, right: Any) -> Any:
        """Emit the product of two int64."""
        return self.b.mul(self.long(left), self.long(right))

    def smaller(self, left: Any, right: Any) -> Any:
        """Emit the smaller of two int64."""
        return self.b.select(self.b.icmp_signed("<", left, right), left, right)

    def pointer(self, address: Any, kind: Any = BYTE) -> Any:
        """Emit the conversion of an address to a pointer to a type."""
        return self.b.inttoptr(address, kind.as_pointer())

    def address(self, pointer: Any) -> Any:
        """Emit the conversion of a pointer to an address."""
        return self.b.ptrtoint(pointer, LONG)

    def load(self, address: Any, kind: Any, align: int) -> Any:
        """Emit a load of a type from an address that is a multiple of `align`."""
        value = self.b.load(self.pointer(address, kind))
        value.align = align
        return value

    def store(self, value: Any, address: Any, align: int) -> None:
        """Emit a store of a value to an address that is a multiple of `align`."""
        self.b.store(value, self.pointer(address, value.type)).align = align

    def call(self, name: str, result: Any, *arguments: Any, **options: Any) -> Any:
        """Emit a call of an LLVM intrinsic with a result type."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), arguments, **options)

    def prefetch(self, address: Any) -> None:
        """Emit a prefetch of the cache line of an address; it is read once, so it should displace nothing."""
        self.call("llvm.prefetch.p0", ir.VoidType(), self.pointer(address), *(ir.Constant(INT, n) for n in (0, 0, 1)))

    def dense(self, values: Any, bits: Any) -> Any:
        """Emit the unpacking of the block at these addresses.

        The result is a vector of `columns` integers that hold the bits of the values: of the values' size with
        `value_sized_lanes`, otherwise of 32 bits.
        """
        columns = self.layout.columns
        value_type = ir.IntType(8 * self.value_size)
        lane = value_type if self.layout.value_sized_lanes else INT
        kept = self.load(values, ir.VectorType(value_type, columns // 2), self.value_size)
        if value_type.width < lane.width:
            kept = (self.b.sext if self.is_int8 else self.b.zext)(kept, ir.VectorType(lane, columns // 2))
        block_type = ir.VectorType(lane, columns)
        kept_and_zeros = self.b.shuffle_vector(kept, ir.Constant(kept.type, None), _indices(range(columns)))
        if columns == 8:
            entry = self.mul(self.b.zext(self.load(bits, BYTE, 1), LONG), 8)
            sources = self.load(self.add(self.address(self.source_table()), entry), ir.VectorType(BYTE, 8), 8)
            return self.call("llvm.x86.avx2.permd", block_type, kept_and_zeros, self.b.zext(sources, block_type))
        mask = self.b.bitcast(self.load(bits, ir.IntType(columns), 1), ir.VectorType(ir.IntType(1), columns))
        name = f"llvm.x86.avx512.mask.expand.v{columns}i{lane.width}"
        return self.call(name, block_type, kept_and_zeros, ir.Constant(block_type, None), mask)

    def source_table(self) -> Any:
        """Return a table (256, 8) in the code: for each byte of bits, which value a column takes; 7 is a zero."""
        module = self.b.module
        name = "eggs_places"
        if name not in module.globals:
            bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
            table = np.where(bits, bits.cumsum(axis=1) - 1, 7).astype(np.uint8)
            content = ir.Constant(ir.ArrayType(BYTE, table.size), bytearray(table.tobytes()))
            cgutils.global_constant(self.b, name, content).align = 64
        return module.globals[name]

    def weights(self, block: Any) -> list[Any]:
        """Emit the conversion of a block to registers of floats: int8 in the order of columns, others as `floats`."""
        if not self.is_int8:
            return self.floats(block)
        lanes = self.layout.lanes
        index_ranges = [_indices(range(lanes * part, lanes * (part + 1))) for part in range(self.registers)]
        parts = [self.b.shuffle_vector(block, block, indices) for indices in index_ranges]
        if self.layout.value_sized_lanes:
            parts = [self.b.sext(part, ir.VectorType(INT, lanes)) for part in parts]
        return [self.b.sitofp(part, self.vector) for part in parts]

    def floats(self, block: Any) -> list[Any]:
        """Emit the conversion of a block to registers of floats.

        Of two registers, the first has the even columns of bfloat16, or the lower half of float16.
        """
        lanes = self.layout.lanes
        ints = ir.VectorType(INT, lanes)
        if self.dtype_name == "float32" or self.layout.bfloat16_dot:
            return [self.b.bitcast(block, self.vector)]
        if self.dtype_name == "bfloat16":
            pairs = self.b.bitcast(block, ints)
            halves = [self.b.shl(pairs, ir.Constant(ints, [16] * lanes))]
            if self.layout.value_sized_lanes:
                halves.append(self.b.and_(pairs, ir.Constant(ints, [-65536] * lanes)))
            return [self.b.bitcast(half, self.vector) for half in halves]
        half = ir.VectorType(ir.HalfType(), lanes)
        words = block if self.layout.value_sized_lanes else self.b.trunc(block, ir.VectorType(_SHORT, lanes))
        index_ranges = [_indices(range(lanes * part, lanes * (part + 1))) for part in range(self.registers)]
        shorts = [self.b.shuffle_vector(words, words, indices) for indices in index_ranges]
        return [self.b.fpext(self.b.bitcast(short, half), self.vector) for short in shorts]

    def inputs_at(self, address: Any) -> list[Any]:
        """Emit the load of one input's columns of a block, in registers like those of `weights`."""
        if self.is_int8:
            return [
                self.load(self.add(address, 4 * self.layout.lanes * part), self.vector, 4)
                for part in range(self.registers)
            ]
        if self.layout.value_sized_lanes or self.size == 4:
            lane = ir.IntType(8 * self.size)
            return self.floats(self.load(address, ir.VectorType(lane, self.layout.columns), self.size))
        shorts = self.load(address, ir.VectorType(_SHORT, self.layout.columns), 2)
        return self.floats(self.b.zext(shorts, ir.VectorType(INT, self.layout.columns)))

    def rounded(self, total: Any) -> Any:
        """Emit the rounding of a float to the output type: to the nearest, ties to even."""
        if self.dtype_name == "float32":
            return total
        if self.dtype_name == "float16":
            return self.b.fptrunc(total, ir.HalfType())
        raw = self.b.bitcast(total, INT)
        high = self.b.lshr(raw, ir.Constant(INT, 16))
        half = self.b.add(self.b.and_(high, ir.Constant(INT, 1)), ir.Constant(INT, 0x7FFF))
        nearest = self.b.lshr(self.b.add(raw, half), ir.Constant(INT, 16))
        quiet = self.b.or_(high, ir.Constant(INT, 0x40))  # adding might carry a NaN beyond its exponent
        return self.b.trunc(self.b.select(self.b.fcmp_unordered("uno", total, total), quiet, nearest), _SHORT)

    def multiply_add(self, weights: Any, inputs: Any, total: Any) -> Any:
        """Emit `total` plus the products of two registers."""
        if not self.layout.bfloat16_dot:
            return self.call(f"llvm.fma.v{self.layout.lanes}f32", self.vector, weights, inputs, total)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.b.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, weights, inputs])


def _indices(numbers: Iterable[int]) -> Any:
    """Return a constant vector of int32, as shuffles take it."""
    constants = list(numbers)
    return ir.Constant(ir.VectorType(INT, len(constants)), constants)
