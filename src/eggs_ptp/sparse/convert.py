"""Whole models: dense N:M linears become packed ones in memory, and back."""

from collections import Counter
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from eggs_ptp.core.mask import violations
from eggs_ptp.core.pack import FLOATS, quantise, structured
from eggs_ptp.core.pack import pack as pack_weight
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.contents import Contents
from eggs_ptp.sparse.linear import NMLinear, is_transposed, parts_of

Model = TypeVar("Model", bound=nn.Module)
# The sparsest first, and of equals the finest: a 2:4 matrix is 4:8 as well.
PATTERNS = tuple(Pattern(*pair) for pair in ((1, 4), (2, 8), (2, 4), (4, 8), (8, 16), (5, 8), (3, 4), (6, 8), (7, 8)))


@torch.no_grad()
def pack(model: Model, pattern: Pattern | str | None = None, values: str | None = None) -> Model:
    """Replace every linear layer of a model that is N:M by an `NMLinear`, in place; returns the model.

    Without a `pattern` each matrix gets the first of `PATTERNS` that it fits. What fits none stays as it is, and so
    does a matrix that is also used elsewhere, as heads tied to the embeddings are. A model of transformers can be
    saved by `save_pretrained` afterwards, as a packed checkpoint. `values`, "int8" or "int4", puts the values of these
    matrices on a grid, the nearest numbers; see docs/format.md.

    Raises:
        PatternError: the pattern is unstructured, no matrix of the model has it, or its values cannot be quantised.
    """
    candidates = PATTERNS
    if pattern is not None:
        asked = parse_pattern(pattern) if isinstance(pattern, str) else pattern
        candidates = (structured(asked, type(model).__name__),)
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, linear in [*model.named_modules()]:
        if (type(linear) is nn.Linear or is_transposed(linear)) and uses[id(linear.weight)] == 1:
            weight, bias, transposed = parts_of(linear)
            found = next((pattern for pattern in candidates if _fits(weight, pattern)), None)
            if found is not None:
                packed = pack_weight(weight, found, name=name)
                packed = quantise(packed, values, name) if values else packed
                replace(model, name, NMLinear(packed, bias, transposed=transposed))
    contents = contents_of(model)
    if not contents.matrices:
        wanted = ", ".join(map(str, candidates))
        raise PatternError(f"no linear of this {type(model).__name__} is N:M ({wanted}); prune it first: eggs prune")
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.quantization_config = contents.to_dict()
    return model


def unpack(model: Model) -> Model:
    """Replace every `NMLinear` of a model by the dense layer with its zeros, in place; returns the model."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, NMLinear):
            replace(model, name, _dense(module))
    config: Any = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return model


def contents_of(model: nn.Module) -> Contents:
    """Which modules of a model are packed."""
    packed = {name: module for name, module in model.named_modules() if isinstance(module, NMLinear)}
    ordered = frozenset(name for name, module in packed.items() if module.order is not None)
    values = {name: module.packed.kind for name, module in packed.items() if module.scales is not None}
    transposed = frozenset(name for name, module in packed.items() if module.transposed)
    return Contents({name: module.pattern for name, module in packed.items()}, ordered, values, transposed)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of this name; it keeps the mode, training or not."""
    parent, _, last = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), last, module)


def _dense(module: NMLinear) -> nn.Module:
    """The layer that a packed one stands for, of the class that it had."""
    linear = module.dense()
    if module.transposed is None:
        return linear
    with torch.device("meta"):
        layer: Any = module.transposed(module.out_features, module.in_features)
    layer.weight = nn.Parameter(linear.weight.T.contiguous(), requires_grad=False)
    layer.bias = linear.bias
    return cast(nn.Module, layer)


def _fits(weight: Tensor, pattern: Pattern) -> bool:
    if weight.shape[1] % pattern.group or weight.dtype not in FLOATS:
        return False
    share = int(weight[:64].count_nonzero()) / max(1, weight[:64].numel())  # a dense matrix is found out at once
    return share <= pattern.density and not violations(weight != 0, pattern)
