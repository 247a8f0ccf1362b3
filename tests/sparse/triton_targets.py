"""Compile every kernel of the Triton backend for GPUs that need not be there, as its launches would have it.

Run by test_triton.py in a process of its own, since kernels are either compiled or interpreted. Writes one JSON list:
what each launch was compiled to.
"""

import json
import sys

import torch
import triton
from oracles.packing import nm_matrix
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eggs_ptp.core.pack import pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import triton as backend
from eggs_ptp.sparse import triton_kernel, triton_tiles

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
KERNELS = [(triton_kernel, name) for name in ("product", "product_2_of_4")]
KERNELS += [(triton_tiles, name) for name in ("by_tiles", "unpack", "add_splits")]


class Recorded:
    """Stands for a kernel and notes how it is launched."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*values, **named):
            warps = named.pop("num_warps", 4)
            named.update(zip(self.kernel.arg_names, values, strict=False))
            self.launches.append((self.kernel, named, warps))

        return launch


def compiled(kernel, named, warps, capability):
    """One kernel for a target: arguments are specialised as at run time, integers by 1 and by multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = named[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def main():
    asked = json.loads(sys.argv[1])
    launches = []
    for module, name in KERNELS:
        setattr(module, name, Recorded(getattr(module, name), launches))
    found = []
    for pattern, kind, rows, columns, batch, capability in asked:
        dtype = getattr(torch, kind)
        keep, group = map(int, pattern.split(":"))
        packed = pack(nm_matrix(rows, columns, Pattern(keep, group), dtype), Pattern(keep, group))
        backend.linear(
            torch.zeros(batch, columns, dtype=dtype), backend.State(packed, backend._table(packed.values.device), 132)
        )
        for kernel, named, warps in launches:
            made = compiled(kernel, named, warps, capability)
            found.append({"kernel": kernel.__name__, "bytes": len(made.asm["cubin"]), "ptx": made.asm["ptx"]})
        launches.clear()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
