"""Block reconstruction in float64 on one window, from the formulas: its loss, and masked Adam on its gradient."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Function = Callable[[Mapping[str, Tensor], Tensor], Tensor]


def loss(output: Tensor, target: Tensor, head: Tensor | None = None, divergence: float = 1.0) -> Tensor:
    """Mean over tokens of ||f - y||^2 / ||y||^2 + divergence * KL(softmax(head y) || softmax(head f))."""
    total = torch.zeros((), dtype=torch.float64)
    for f, y in zip(output.double(), target.double(), strict=True):
        total = total + ((f - y) ** 2).sum() / (y**2).sum()
        if head is not None:
            p, q = (torch.softmax(head.double() @ hidden, 0) for hidden in (y, f))
            total = total + divergence * (p * torch.log(p / q)).sum()
    return total / len(target)


def masked_adam(
    function: Function,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    inputs: Tensor,
    target: Tensor,
    steps: int,
    rate: float,
    head: Tensor | None = None,
    divergence: float = 1.0,
) -> dict[str, Tensor]:
    """The weights after `steps` steps of Adam (betas 0.9 and 0.95), with a cosine schedule from `rate`."""
    current = {name: weight.double() for name, weight in weights.items()}
    size = {name: math.sqrt(float((w[masks[name]] ** 2).mean() if name in masks else (w**2).mean()))
            for name, w in current.items()}  # fmt: skip
    first = {name: torch.zeros_like(weight) for name, weight in current.items()}
    second = {name: torch.zeros_like(weight) for name, weight in current.items()}
    for step in range(1, steps + 1):
        current = {name: weight.detach().requires_grad_() for name, weight in current.items()}
        loss(function(current, inputs.double()), target, head, divergence).backward()
        for name, weight in current.items():
            gradient = weight.grad
            assert gradient is not None
            if name in masks:
                gradient = torch.where(masks[name], gradient, 0.0)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            mean = first[name] / (1 - 0.9**step)
            square = second[name] / (1 - 0.95**step)
            schedule = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
            current[name] = weight - rate * size[name] * schedule * mean / (square.sqrt() + 1e-12)
    return {name: weight.detach() for name, weight in current.items()}
