"""Finds decoder blocks and linears in the module tree of a model whose type has no family."""

import re

from torch import nn

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Family, Linear
from eggs_ptp.sparse.linear import NMLinear, is_transposed

_IN_EXPERT = re.compile(r"(^|\.)experts\.\d+(\.|$)")


def discover(model: nn.Module, model_type: str, folder: str) -> Family:
    """Return a family made from the module tree: the list of blocks with most weights, and every linear in it.

    Which tensors share channels is not known: each linear counts as having an input activation of its own, and no
    permutation can be folded. Routers are not pruned.

    Args:
        model: The model.
        model_type: Its type, as in config.json.
        folder: Its folder, for error messages.

    Raises:
        ModelError: There is no list of blocks with linears, there are several of the same length, or the experts are
            fused into one tensor.
    """
    prefix = f"{folder}: model type {model_type!r} has no family here, and"
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: sum(p.numel() for block in blocks for p in block.parameters()) for name, blocks in lists.items()}
    name = max(sizes, key=sizes.__getitem__, default="")
    linears: dict[str, Linear] = {}
    routers: dict[str, tuple[None, None]] = {}
    for block in lists.get(name, ()):
        for path, module in block.named_modules():
            if is_linear(module) and _is_router(block, path):
                routers[f"{path}.weight"] = (None, None)
            elif is_linear(module):
                linears[path] = Linear(
                    path,
                    input_activation=path,
                    role="attention" if "att" in path else "mlp",
                    transposed=is_transposed(module),
                    optional=True,
                    routed=bool(_IN_EXPERT.search(path)),
                )
        if fused := _fused_experts(block):
            raise ModelError(
                f"{prefix} its experts ({name}.*.{fused}) are fused into one tensor, which only a family can take apart"
            )
    if not linears:
        raise ModelError(f"{prefix} no list of blocks with linears was found in it")
    for other_name, blocks in lists.items():
        is_inside = f"{other_name}.".startswith(f"{name}.")
        if len(blocks) == len(lists[name]) and not is_inside and _has_linears(blocks):
            raise ModelError(
                f"{prefix} its blocks are in two lists, {name} and {other_name}, of which only one would be pruned"
            )
    spaces = {path: path for path in linears}
    return Family(
        model_type,
        name,
        linears=tuple(linears.values()),
        spaces=spaces,
        scope=dict.fromkeys(spaces, "fixed"),
        inside=routers,
        outside={},
        known=False,
    )


def _is_router(block: nn.Module, path: str) -> bool:
    """Return whether a linear decides which tokens go to which expert."""
    *parents, name = path.split(".")
    siblings = {child for child, _ in block.get_submodule(".".join(parents)).named_children()}
    return "router" in (*parents, name) or (name == "gate" and "experts" in siblings)


def _fused_experts(block: nn.Module) -> str:
    """Return the path of the first matrix of experts that is no linear's weight; empty if there is none."""
    linears = {id(module.weight) for module in block.modules() if is_linear(module) and hasattr(module, "weight")}
    fused = (
        path
        for path, weight in block.named_parameters()
        if weight.ndim > 1 and "expert" in path and id(weight) not in linears
    )
    return next(fused, "")


def _has_linears(module: nn.Module) -> bool:
    return any(is_linear(child) for child in module.modules())


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a matrix product: a linear layer, packed or not, or GPT-2's with transposed weight."""
    return isinstance(module, nn.Linear | NMLinear) or is_transposed(module)
