"""Compile every kernel of the Triton backend as it is launched, for GPUs that need not be present.

test_triton.py runs this in a separate process, since a process either compiles kernels or interprets them. Writes one
JSON list with the name, the bytes of machine code and the PTX of each launch.
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


class LaunchRecorder:
    """Takes the place of a kernel and records how it is launched."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*values, **named):
            warps = named.pop("num_warps", 4)
            named.update(zip(self.kernel.arg_names, values, strict=False))
            self.launches.append((self.kernel, named, warps))

        return launch


def compiled(kernel, named, warps, capability):
    """One kernel for a target, its arguments specialised as at run time: integers that are 1 or multiples of 16."""
    signature = {}
    constants = {}
    attributes = {}
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
    requested = json.loads(sys.argv[1])
    launches = []
    for module, name in KERNELS:
        setattr(module, name, LaunchRecorder(getattr(module, name), launches))
    kernels = []
    for pattern, kind, rows, columns, batch, capability in requested:
        dtype = getattr(torch, kind)
        keep, group = map(int, pattern.split(":"))
        packed = pack(nm_matrix(rows, columns, Pattern(keep, group), dtype), Pattern(keep, group))
        backend.linear(
            torch.zeros(batch, columns, dtype=dtype),
            backend.State(packed, backend.bit_positions(packed.values.device), 132),
        )
        for kernel, named, warps in launches:
            assembly = compiled(kernel, named, warps, capability).asm
            kernels.append({"kernel": kernel.__name__, "bytes": len(assembly["cubin"]), "ptx": assembly["ptx"]})
        launches.clear()
    sys.stdout.write(json.dumps(kernels))


if __name__ == "__main__":
    main()
