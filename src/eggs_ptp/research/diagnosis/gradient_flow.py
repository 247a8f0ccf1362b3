"""How each block of a model amplifies changes of its input, and the gradient of the loss on its way back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eggs_ptp.engine.blocks.output_head import output_head
from eggs_ptp.research.diagnosis.blockwise_model import BlockwiseModel
from eggs_ptp.research.graph.jacobian import JacobianNorms, jacobian_norms


@dataclass(frozen=True)
class BlockGradientFlow:
    """The gradient flow through one block.

    Attributes:
        jacobian: Norms of its Jacobian at the hidden states of the first window.
        gradient_in: ||dL / dh|| over all windows, h the input of the block.
        gradient_out: The same for its output.
    """

    jacobian: JacobianNorms
    gradient_in: float
    gradient_out: float

    @property
    def gradient_ratio(self) -> float:
        """Factor by which the gradient grows on its way back through the block."""
        return self.gradient_in / self.gradient_out if self.gradient_out else 0.0


def gradient_flow_of(model: BlockwiseModel, tokens: Tensor, on_progress: Callable[[], None]) -> list[BlockGradientFlow]:
    """Measure each block's Jacobian in a forward pass, and the gradient norms in a backward pass.

    The loss L is the mean cross-entropy of the next tokens. One block is in memory at a time, so every block is read
    twice; its inputs are kept, blocks x tokens x channels numbers.

    Args:
        model: At its first block.
        tokens: The token ids that it was built with, (windows, seqlen).
        on_progress: Called after each block of each pass.

    Returns:
        One entry per block.
    """
    blocks = len(model.skeleton.blocks)
    inputs = []
    jacobians = []
    for index in range(blocks):
        inputs.append(model.hidden.clone())
        with model.loaded_block(index) as block:
            jacobians.append(jacobian_norms(model.differentiable(index, block), inputs[-1][:1]))
            model.advance(index, block)
        on_progress()
    gradient = _loss_gradient(model, tokens)
    norms = [float(gradient.norm())]
    for index in reversed(range(blocks)):
        with model.loaded_block(index) as block:
            function = model.differentiable(index, block)
            windows = zip(inputs[index].split(1), gradient.split(1), strict=True)
            gradient = torch.cat([torch.func.vjp(function, x)[1](g)[0] for x, g in windows])
        norms.append(float(gradient.norm()))
        on_progress()
    norms.reverse()
    return [BlockGradientFlow(jacobian, norms[index], norms[index + 1]) for index, jacobian in enumerate(jacobians)]


def _loss_gradient(model: BlockwiseModel, tokens: Tensor) -> Tensor:
    """Return the gradient of the loss with respect to the outputs of the last block."""
    gradients = []
    with output_head(model.skeleton, model.reader, model.dtype, model.device) as head:
        for window, ids in zip(model.hidden.split(1), tokens.to(model.device), strict=True):
            hidden = window.clone().requires_grad_()
            loss = cross_entropy(head(hidden[0])[:-1].float(), ids[1:]) / len(tokens)
            gradients.append(torch.autograd.grad(loss, hidden)[0])
    return torch.cat(gradients)
