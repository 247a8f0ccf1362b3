"""Flow: how each block of a model passes changes on, and the gradient of the loss back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eggs_ptp.engine.head import head_of
from eggs_ptp.engine.walk import Walk
from eggs_ptp.graph.jacobian import Gain, gain


@dataclass(frozen=True)
class BlockFlow:
    """A block: its Jacobian at the hidden states of the first window, and the gradient norms at its two ends."""

    gain: Gain
    gradient_in: float  # ||dL / dh|| over all windows, h what reaches the block
    gradient_out: float  # the same behind it

    @property
    def gradient_ratio(self) -> float:
        """By how much the gradient grows on its way back through the block."""
        return self.gradient_in / self.gradient_out if self.gradient_out else 0.0


def flow_of(walk: Walk, tokens: Tensor, told: Callable[[], None]) -> list[BlockFlow]:
    """Run a model forward, looking at each block's Jacobian, and its gradient back, one block in memory at a time.

    L is the mean cross-entropy of the next tokens of `tokens`, the windows that `walk` begins with. Every block is
    read twice, and its inputs are kept: blocks x tokens x channels numbers. `told` is called after each block, either
    way.
    """
    blocks = len(walk.skeleton.blocks)
    inputs, gains = [], []
    for index in range(blocks):
        inputs.append(walk.hidden.clone())
        with walk.at(index) as block:
            gains.append(gain(walk.function(index, block), inputs[-1][:1]))
            walk.onward(index, block)
        told()
    gradient = _of_loss(walk, tokens)
    norms = [float(gradient.norm())]
    for index in reversed(range(blocks)):
        with walk.at(index) as block:
            call = walk.function(index, block)
            gradient = torch.cat(
                [
                    torch.func.vjp(call, x)[1](g)[0]
                    for x, g in zip(inputs[index].split(1), gradient.split(1), strict=True)
                ]
            )
        norms.append(float(gradient.norm()))
        told()
    norms.reverse()
    return [BlockFlow(found, norms[index], norms[index + 1]) for index, found in enumerate(gains)]


def _of_loss(walk: Walk, tokens: Tensor) -> Tensor:
    """The gradient of the loss at what the last block gives, like the hidden states."""
    parts = []
    with head_of(walk) as head:
        for window, ids in zip(walk.hidden.split(1), tokens.to(walk.device), strict=True):
            hidden = window.clone().requires_grad_()
            loss = cross_entropy(head(hidden[0])[:-1].float(), ids[1:]) / len(tokens)
            parts.append(torch.autograd.grad(loss, hidden)[0])
    return torch.cat(parts)
