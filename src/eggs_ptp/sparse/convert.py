"""Whole models: dense N:M linears are replaced by packed ones in memory, and the other way round."""

from collections import Counter
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from eggs_ptp.core.mask import count_violations
from eggs_ptp.core.pack import FLOAT_DTYPES, quantise, require_nm
from eggs_ptp.core.pack import pack as pack_weight
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.linear import NMLinear, dense_parameters, is_transposed
from eggs_ptp.sparse.packed_config import PackedConfig
from eggs_ptp.sparse.parameter_count import count_packed_parameters

Model = TypeVar("Model", bound=nn.Module)
# The sparsest first, and among equal densities the smallest group: a 2:4 matrix is also 4:8.
PATTERNS = tuple(Pattern(*pair) for pair in ((1, 4), (2, 8), (2, 4), (4, 8), (8, 16), (5, 8), (3, 4), (6, 8), (7, 8)))


@torch.no_grad()
def pack(model: Model, pattern: Pattern | str | None = None, values: str | None = None) -> Model:
    """Replace every N:M linear layer of a model by an `NMLinear`, in place.

    A matrix that does not fit stays dense, and so does one that has a second use in the model, such as a head tied to
    the embeddings. A transformers model can be saved with `save_pretrained` afterwards, as a packed checkpoint.

    Args:
        model: The model; linears are `nn.Linear` and transformers' `Conv1D`.
        pattern: The pattern of the matrices to pack. None gives each matrix the first of `PATTERNS` that it fits.
        values: "int8" or "int4" to round the kept values to a quantisation grid, to the nearest; see docs/format.md.
            None keeps them as they are.

    Returns:
        The same model.

    Raises:
        PatternError: The pattern is unstructured, no matrix of the model has it, or its values cannot be quantised.
    """
    candidates = PATTERNS
    if pattern is not None:
        requested = parse_pattern(pattern) if isinstance(pattern, str) else pattern
        candidates = (require_nm(requested, type(model).__name__),)
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, linear in [*model.named_modules()]:
        if (type(linear) is nn.Linear or is_transposed(linear)) and uses[id(linear.weight)] == 1:
            weight, bias, transposed = dense_parameters(linear)
            fitting = next((candidate for candidate in candidates if _fits(weight, candidate)), None)
            if fitting is not None:
                packed = pack_weight(weight, fitting, name=name)
                packed = quantise(packed, values, name) if values else packed
                replace(model, name, NMLinear(packed, bias, transposed=transposed))
    packed_config = packed_config_of(model)
    if not packed_config.matrices:
        patterns = ", ".join(map(str, candidates))
        raise PatternError(f"no linear of this {type(model).__name__} is N:M ({patterns}); prune it first: eggs prune")
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.quantization_config = packed_config.to_dict()
    count_packed_parameters(model)
    return model


def unpack(model: Model) -> Model:
    """Replace every `NMLinear` of a model by the dense layer with its zeros, in place.

    Returns:
        The same model.
    """
    for name, module in [*model.named_modules()]:
        if isinstance(module, NMLinear):
            replace(model, name, _dense(module))
    config: Any = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return model


def packed_config_of(model: nn.Module) -> PackedConfig:
    """Return the packed modules of a model with their patterns, as its config.json lists them."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, NMLinear)}
    return PackedConfig(
        matrices={name: layer.pattern for name, layer in layers.items()},
        ordered=frozenset(name for name, layer in layers.items() if layer.order is not None),
        values={name: layer.packed.kind for name, layer in layers.items() if layer.scales is not None},
        transposed=frozenset(name for name, layer in layers.items() if layer.transposed),
    )


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of a name by another one, which takes over the mode, training or evaluation."""
    parent, _, attribute = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), attribute, module)


def _dense(module: NMLinear) -> nn.Module:
    """Return the dense layer with the zeros of a packed one, of the class that was replaced."""
    linear = module.dense()
    if module.transposed is None:
        return linear
    with torch.device("meta"):
        layer: Any = module.transposed(module.out_features, module.in_features)
    layer.weight = nn.Parameter(linear.weight.T.contiguous(), requires_grad=False)
    layer.bias = linear.bias
    return cast(nn.Module, layer)


def _fits(weight: Tensor, pattern: Pattern) -> bool:
    """Return whether a weight can be packed with a pattern; 64 rows are enough to tell a dense one."""
    if weight.shape[1] % pattern.group or weight.dtype not in FLOAT_DTYPES:
        return False
    first_rows = weight[:64]
    density = int(first_rows.count_nonzero()) / max(1, first_rows.numel())
    return density <= pattern.density and not count_violations(weight != 0, pattern)
