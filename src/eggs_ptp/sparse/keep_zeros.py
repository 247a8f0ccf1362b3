"""Fine-tuning that keeps the pruned weights of a model at zero."""

from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.linear import is_transposed


def keep_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Set the pruned weights of a model to zero again after every step of an optimizer: W <- W * (W_0 != 0).

    W_0 (out, in) are the weights of the model's linears at the time of this call, and their zeros are the pruned
    weights. So call it after the model is loaded, in its dense form with zeros, and moved to the device where it is
    trained. Any momentum and weight decay will do: gradients and the optimizer's state are left alone. A weight that
    is all zeros is taken for a new one, such as that of an adapter before its training, and is not held. The mask
    costs one byte per weight.

    Args:
        model: The pruned model, not packed.
        optimizer: The optimizer that trains it, made from its parameters.

    Returns:
        A handle; its `remove()` lets the weights change again.

    Raises:
        PatternError: No linear of the model has zeros, or none that has is among the optimizer's parameters.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) or is_transposed(module)]
    linear_weights = [cast(nn.Parameter, module.weight) for module in linears]
    expert_weights = [weight for weight in model.parameters() if weight.ndim == 3]  # all experts of a layer in one
    zero_masks = [(weight, weight.detach() == 0) for weight in dict.fromkeys((*linear_weights, *expert_weights))]
    pruned = [(weight, zeros) for weight, zeros in zero_masks if zeros.any() and not zeros.all()]
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
            for weight, zeros in pruned:
                weight.masked_fill_(zeros, 0)

    return optimizer.register_step_post_hook(zero_pruned_weights)
