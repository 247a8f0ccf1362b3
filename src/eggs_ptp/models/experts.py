"""Experts as separate modules, as checkpoints store them; transformers fuses those of a layer into one tensor."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.models.moe import Layout


class Experts(nn.Module):
    """The experts of a layer: child `3` is expert 3, and `3.w1` one of its linears.

    An expert runs on the tokens that the router sends to it. Those in `on_all_tokens` run on all tokens of the layer,
    so that hooks see inputs for all of them; the output of the layer is the same.

    Args:
        fused: The module of transformers with all experts in one tensor; only its shapes and activation are read.
        gate: Name of an expert's gate projection.
        up: Name of its up projection.
        down: Name of its down projection.
    """

    def __init__(self, fused: nn.Module, gate: str, up: str, down: str) -> None:
        super().__init__()
        weight = cast(Tensor, fused.down_proj)
        count, width, intermediate = weight.shape
        self.on_all_tokens: frozenset[int] = frozenset()
        for number in range(count):
            expert = Expert(cast(Any, fused.act_fn), gate, up, down)
            for name, shape in (
                (gate, (width, intermediate)),
                (up, (width, intermediate)),
                (down, (intermediate, width)),
            ):
                expert.add_module(name, nn.Linear(*shape, bias=False, device="meta", dtype=weight.dtype))
            self.add_module(str(number), expert)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts' outputs.

        Args:
            hidden_states: (tokens, width).
            top_k_index: Numbers of the experts that each token is sent to, (tokens, k).
            top_k_weights: Their weights, (tokens, k).

        Returns:
            (tokens, width).
        """
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.children()):
            token, choice = torch.where(top_k_index == number)
            cast(Expert, expert).tokens = token
            if number in self.on_all_tokens:
                output = expert(hidden_states)[token]
            elif token.numel():
                output = expert(hidden_states[token])
            else:
                continue
            total.index_add_(0, token, (output * top_k_weights[token, choice, None]).to(total.dtype))
        return total


class Expert(nn.Module):
    """One expert: a gated MLP.

    Attributes:
        tokens: Indices of the tokens that the router has sent to it, among those of all windows.

    Args:
        act: The activation function.
        gate: Name of the gate projection.
        up: Name of the up projection.
        down: Name of the down projection.
    """

    tokens: Tensor

    def __init__(self, act: Any, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.act = act
        self.names = (gate, up, down)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the expert's output, (tokens, width), for `hidden` (tokens, width)."""
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return cast(Tensor, down(self.act(gate(hidden)) * up(hidden)))


def take_apart(block: nn.Module, layout: Layout, *, rename: bool = True) -> None:
    """Replace a block's fused experts by separate ones, in place. A block without experts is left as it is.

    Args:
        block: A decoder block.
        layout: The names of the linears in checkpoints.
        rename: Whether the layer that has the experts gets its name in checkpoints, too.
    """
    layer: Any = getattr(block, "mlp")  # noqa: B009 - the name that transformers gives it
    if not hasattr(layer, "experts"):
        return
    layer.experts = Experts(layer.experts, layout.gate, layout.up, layout.down)
    if rename and layout.layer != "mlp":
        del block._modules["mlp"]
        block.add_module(layout.layer, layer)
        block.__dict__["mlp"] = layer  # the block's forward calls it by this name; it is not a second child module
