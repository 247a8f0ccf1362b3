"""A family found in the module tree: for models that no family was written for."""

import re

from torch import nn

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Family, Linear
from eggs_ptp.sparse.linear import NMLinear, is_transposed

_OF_AN_EXPERT = re.compile(r"(^|\.)experts\.\d+(\.|$)")


def discover(model: nn.Module, model_type: str, where: str) -> Family:
    """Take the list of blocks that holds most weights, and every linear in it for one with inputs of its own.

    Nothing is known of who reads and writes what, so no order can be folded. Routers are left as they are.

    Raises:
        ModelError: no list of blocks with linears, several that belong together, or one with fused experts; names the
            model type and `where`.
    """
    strange = f"{where}: model type {model_type!r} has no family here, and"
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: sum(p.numel() for block in blocks for p in block.parameters()) for name, blocks in lists.items()}
    name = max(sizes, key=sizes.__getitem__, default="")
    found: dict[str, Linear] = {}
    routers: dict[str, tuple[None, None]] = {}
    for block in lists.get(name, ()):
        for path, module in block.named_modules():
            if is_linear(module) and _routes(block, path):
                routers[f"{path}.weight"] = (None, None)
            elif is_linear(module):
                found[path] = Linear(
                    path,
                    reads=path,
                    role="attention" if "att" in path else "mlp",
                    transposed=is_transposed(module),
                    optional=True,
                    routed=bool(_OF_AN_EXPERT.search(path)),
                )
        if fused := _fused(block):
            raise ModelError(
                f"{strange} its experts ({name}.*.{fused}) are fused matrices, which only a family tells apart"
            )
    if not found:
        raise ModelError(f"{strange} no list of blocks with linears was found in it")
    for other, blocks in lists.items():
        if len(blocks) == len(lists[name]) and not f"{other}.".startswith(f"{name}.") and _has_linears(blocks):
            raise ModelError(f"{strange} its blocks are in two lists, {name} and {other}, of which only one was pruned")
    spaces = {path: path for path in found}
    return Family(
        model_type,
        name,
        linears=tuple(found.values()),
        spaces=spaces,
        reach=dict.fromkeys(spaces, "fixed"),
        inside=routers,
        outside={},
        known=False,
    )


def _routes(block: nn.Module, path: str) -> bool:
    """Whether a linear says which tokens go to which expert."""
    *around, last = path.split(".")
    beside = {child for child, _ in block.get_submodule(".".join(around)).named_children()}
    return "router" in (*around, last) or (last == "gate" and "experts" in beside)


def _fused(block: nn.Module) -> str:
    """The first matrix of experts that is no linear's weight, as those of several experts in one tensor are."""
    linears = {id(module.weight) for module in block.modules() if is_linear(module) and hasattr(module, "weight")}
    fused = (
        path
        for path, weight in block.named_parameters()
        if weight.ndim > 1 and "expert" in path and id(weight) not in linears
    )
    return next(fused, "")


def _has_linears(module: nn.Module) -> bool:
    return any(is_linear(part) for part in module.modules())


def is_linear(module: nn.Module) -> bool:
    """Whether it is a matrix product: a linear layer, packed or not, or one of GPT-2's with its weight transposed."""
    return isinstance(module, nn.Linear | NMLinear) or is_transposed(module)
