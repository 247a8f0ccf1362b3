"""Training that keeps a pruned model pruned."""

from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.linear import is_transposed


def keep_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """After every step of the optimizer, pruned weights are exactly zero again: W <- W * (W_0 != 0).

    W_0 (out, in) are the weights of the model's linears at this call; pruned are their zeros. So call it once the
    model is loaded, dense with its zeros, and on the device where it is trained. Momentum and weight decay may be
    anything: gradients and the optimizer's state are left alone. A weight of zeros alone is not pruned but new (that
    of an adapter before training), and stays free. It costs one byte a weight. `remove()` on the handle ends it.

    Raises:
        PatternError: no linear of the model has zeros, or none that has is among the optimizer's parameters.
    """
    kinds = (module for module in model.modules() if isinstance(module, nn.Linear) or is_transposed(module))
    linears = [cast(nn.Parameter, module.weight) for module in kinds]
    experts = [weight for weight in model.parameters() if weight.ndim == 3]  # of a layer, fused into one
    zeros = [(weight, weight.detach() == 0) for weight in dict.fromkeys((*linears, *experts))]
    pruned = [(weight, mask) for weight, mask in zeros if mask.any() and not mask.all()]
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

    def restore(*_: Any) -> None:
        with torch.no_grad():
            for weight, mask in pruned:
                weight.masked_fill_(mask, 0)

    return optimizer.register_step_post_hook(restore)
