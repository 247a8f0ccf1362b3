"""Fine-tuning that keeps the pruned weights of a model at zero."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eggs_ptp.core.json_file import read_json
from eggs_ptp.core.mask import count_violations
from eggs_ptp.errors import EggsError, PatternError
from eggs_ptp.sparse.convert import PATTERNS
from eggs_ptp.sparse.linear import is_transposed

_RECORD = "eggs.json"
_PARTS = 4  # "layers.0.mlp.up_proj": what identifies a linear wherever the model is nested


def keep_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Set the pruned weights of a model to zero again after every step of an optimizer: W <- W * (W_0 != 0).

    W_0 (out, in) are the weights of the model's pruned linears at the time of this call, and their zeros are the pruned
    weights. So call it after the model is loaded, in its dense form with zeros, before or after `accelerator.prepare`.
    Pruned linears are those that the `eggs.json` of the folder names which the model was loaded from (`name_or_path`).
    Without one they are those that are N:M in every group; a few zeros elsewhere are taken for trained values. Any
    momentum and weight decay will do: gradients and the optimizer's state are left alone. A weight that is all zeros is
    taken for a new one, such as that of an adapter before its training, and is not held. The mask costs one byte per
    weight.

    Args:
        model: The pruned model, not packed; it may be wrapped, as by accelerate or peft.
        optimizer: The optimizer that trains it, made from its parameters; it may be wrapped by accelerate.

    Returns:
        A handle; its `remove()` lets the weights change again.

    Raises:
        PatternError: No linear of the model is pruned, or none that is pruned is among the optimizer's parameters.
    """
    pruned = [(weight, weight.detach() == 0) for weight in _pruned_weights(model)]
    if not pruned:
        raise PatternError(
            f"no linear of this {type(model).__name__} has pruned weights to keep; load a pruned folder in its dense "
            "form (packed ones: eggs export --format dense)"
        )
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(weight) in trained for weight, _ in pruned):
        raise PatternError(
            f"this {type(optimizer).__name__} has none of the {len(pruned)} pruned weights of the model; make it from "
            "model.parameters(), after the model was moved or changed"
        )

    def zero_pruned_weights(*_: Any) -> None:
        with torch.no_grad():
            for index, (weight, zeros) in enumerate(pruned):
                if zeros.device != weight.device:  # the model was moved after the call
                    pruned[index] = weight, zeros.to(weight.device)
                weight.masked_fill_(pruned[index][1], 0)

    return _innermost(optimizer).register_step_post_hook(zero_pruned_weights)


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside wrappers such as accelerate's, which have no hooks of their own."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return cast(torch.optim.Optimizer, optimizer)


def _pruned_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the pruned weights of a model: those that are recorded or, without a record, N:M in every group."""
    linears = {
        name: cast(nn.Parameter, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or is_transposed(module)
    }
    experts = {name: weight for name, weight in model.named_parameters() if weight.ndim == 3}
    recorded = _recorded_matrices(model)
    if recorded is None:
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        transposed = {name for name, module in model.named_modules() if is_transposed(module)}
        chosen = [
            weight
            for name, weight in (linears | experts).items()
            if id(weight) not in embeddings and _is_nm(weight.T if name in transposed else weight)
        ]
    else:
        endings = {ending for name in recorded for ending in _endings(name)}
        layers = {_layer_of_experts(name) for name in recorded if ".experts." in name}
        chosen = [
            weight
            for name, weight in linears.items()
            if endings & _endings(name.removesuffix(".base_layer"))  # adapters put the linear inside theirs
        ]
        chosen += [
            weight
            for name, weight in experts.items()
            if any(_layer_of_experts(name).endswith(layer) for layer in layers)
        ]
    return [weight for weight in dict.fromkeys(chosen) if _has_zeros(weight)]


def _recorded_matrices(model: nn.Module) -> frozenset[str] | None:
    """Return the names of the matrices that the record of a model's folder lists; None if there is no record."""
    folders = {getattr(module, "name_or_path", None) for module in model.modules()}
    for folder in sorted(folder for folder in folders if isinstance(folder, str) and folder):
        path = Path(folder) / _RECORD
        try:
            if path.is_file():
                return frozenset(str(matrix["name"]) for matrix in read_json(path)["matrices"])
        except (EggsError, KeyError, TypeError) as error:
            raise PatternError(f"{path}: expected the record of a pruned folder, got none ({error})") from error
    return None


def _endings(name: str) -> set[str]:
    """Return a name and its endings of at least four parts, which say where in the model a module is.

    Wrappers put parts before a name (`module.`, `base_model.model.`), and models without their head have fewer.
    """
    parts = name.split(".")
    return {name, *(".".join(parts[start:]) for start in range(len(parts) - _PARTS + 1))}


def _layer_of_experts(name: str) -> str:
    """Return the decoder layer of a module of experts; transformers renames what is between the two."""
    return name.partition(".experts")[0].rpartition(".")[0]


def _has_zeros(weight: Tensor) -> bool:
    """Return whether some but not all weights are zero."""
    zeros = weight.detach() == 0
    return bool(zeros.any()) and not bool(zeros.all())


def _is_nm(weight: Tensor) -> bool:
    """Return whether every group of a weight (..., in) is N:M for a known pattern."""
    nonzero = weight.detach().reshape(-1, weight.shape[-1]) != 0
    return any(not nonzero.shape[1] % pattern.group and not count_violations(nonzero, pattern) for pattern in PATTERNS)
