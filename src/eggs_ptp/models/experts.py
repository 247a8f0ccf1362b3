"""Experts as modules of their own, as checkpoints have them, where transformers fuses them into one tensor."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.models.moe import Layout


class Experts(nn.Module):
    """Takes the place of the fused experts of a decoder block: child `3.w1` is a linear of expert 3.

    An expert sees the tokens that the router sends it. Those in `everything` run on all tokens of the layer, for
    whoever watches what they read; what they add to the layer's output is the same.
    """

    def __init__(self, fused: nn.Module, gate: str, up: str, down: str) -> None:
        super().__init__()
        weight = cast(Tensor, fused.down_proj)
        count, width, inside = weight.shape
        self.everything: frozenset[int] = frozenset()
        for number in range(count):
            expert = Expert(cast(Any, fused.act_fn), gate, up, down)
            for name, shape in ((gate, (width, inside)), (up, (width, inside)), (down, (inside, width))):
                expert.add_module(name, nn.Linear(*shape, bias=False, device="meta", dtype=weight.dtype))
            self.add_module(str(number), expert)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """What the experts give, weighted and added up, (tokens, width); of `hidden_states` (tokens, width)."""
        added = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.children()):
            token, place = torch.where(top_k_index == number)
            cast(Expert, expert).tokens = token
            if number in self.everything:
                output = expert(hidden_states)[token]
            elif token.numel():
                output = expert(hidden_states[token])
            else:
                continue
            added.index_add_(0, token, (output * top_k_weights[token, place, None]).to(added.dtype))
        return added


class Expert(nn.Module):
    """One expert: a gated MLP. `tokens` are those that it is sent, by their place among those of all windows."""

    tokens: Tensor

    def __init__(self, act: Any, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.act, self.names = act, (gate, up, down)

    def forward(self, hidden: Tensor) -> Tensor:
        """What it gives, (tokens, width); of `hidden` (tokens, width)."""
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return cast(Tensor, down(self.act(gate(hidden)) * up(hidden)))


def take_apart(block: nn.Module, layout: Layout, *, rename: bool = True) -> None:
    """Put `Experts` in the place of a block's fused ones, by the names that checkpoints have for them.

    With `rename` the layer that has them gets its name in checkpoints, too. A block without experts stays as it is.
    """
    layer: Any = getattr(block, "mlp")  # noqa: B009 - by the name that transformers gives it
    if not hasattr(layer, "experts"):
        return
    layer.experts = Experts(layer.experts, layout.gate, layout.up, layout.down)
    if rename and layout.layer != "mlp":
        del block._modules["mlp"]
        block.add_module(layout.layer, layer)
        block.__dict__["mlp"] = layer  # what the block's forward calls, but no second module
