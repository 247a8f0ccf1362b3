"""A family found in the module tree: for models that no family was written for."""

from torch import nn

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Family, Linear
from eggs_ptp.sparse.linear import NMLinear, is_transposed


def discover(model: nn.Module, model_type: str, where: str) -> Family:
    """Take the list of blocks that holds most weights, and every linear in it for one with inputs of its own.

    Nothing is known of who reads and writes what, so no order can be folded.

    Raises:
        ModelError: no list of blocks with linears, or one with fused experts; names the model type and `where`.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: sum(p.numel() for block in blocks for p in block.parameters()) for name, blocks in lists.items()}
    name = max(sizes, key=sizes.__getitem__, default="")
    found: dict[str, Linear] = {}
    for block in lists.get(name, ()):
        for path, module in block.named_modules():
            if is_linear(module):
                found[path] = Linear(
                    path,
                    reads=path,
                    role="attention" if "att" in path else "mlp",
                    transposed=is_transposed(module),
                    optional=True,
                )
        fused = [path for path, weight in block.named_parameters() if weight.ndim == 3 and "expert" in path]
        if fused:
            raise ModelError(
                f"{where}: model type {model_type!r} has no family here, and its experts ({name}.*.{fused[0]}) are "
                "fused matrices, which only a family tells apart"
            )
    if not found:
        raise ModelError(
            f"{where}: model type {model_type!r} has no family here, and no list of blocks with linears was found in it"
        )
    spaces = {path: path for path in found}
    return Family(
        model_type,
        name,
        linears=tuple(found.values()),
        spaces=spaces,
        reach=dict.fromkeys(spaces, "fixed"),
        inside={},
        outside={},
        known=False,
    )


def is_linear(module: nn.Module) -> bool:
    """Whether it is a matrix product: a linear layer, packed or not, or one of GPT-2's with its weight transposed."""
    return isinstance(module, nn.Linear | NMLinear) or is_transposed(module)
