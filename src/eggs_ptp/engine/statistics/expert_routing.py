"""Which experts of a block see too few calibration tokens for statistics of their own."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.engine.blocks.run_block import StopForward
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.models.experts import Experts


class _TokensRouted(StopForward):
    """The router has assigned the tokens: the experts themselves need not run."""


@contextmanager
def starved_experts_on_all_tokens(
    block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any], shard: WindowShard, hooked_paths: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """Run starved experts on all tokens of their layer while the context lasts.

    An expert is starved if its router sends it fewer tokens than it has inputs, the least from which a Gram matrix can
    have full rank. Tokens are counted by running the block over all windows, up to its experts.

    Args:
        block: The block, its weights in memory.
        hidden: What reaches it, (windows, seqlen, channels).
        kwargs: Its other arguments.
        shard: This process's windows.
        hooked_paths: Paths of the linears whose activations are requested; layers without one are left alone.

    Yields:
        The path prefixes of the starved experts.
    """
    layers = {
        path: module
        for path, module in block.named_modules()
        if isinstance(module, Experts) and any(hooked.startswith(f"{path}.") for hooked in hooked_paths)
    }
    for experts in layers.values():
        counts = _tokens_per_expert(block, experts, hidden, kwargs, shard)
        experts.on_all_tokens = frozenset((counts < hidden.shape[-1]).nonzero().flatten().tolist())
    try:
        yield tuple(f"{path}.{number}." for path, experts in layers.items() for number in experts.on_all_tokens)
    finally:
        for experts in layers.values():
            experts.on_all_tokens = frozenset()


def _tokens_per_expert(
    block: nn.Module, experts: Experts, hidden: Tensor, kwargs: Mapping[str, Any], shard: WindowShard
) -> Tensor:
    """Count the tokens that each expert is sent, over the windows of all processes."""
    device = next(block.parameters()).device
    counts = torch.zeros(len([*experts.children()]), dtype=torch.long, device=device)

    def count(_module: nn.Module, args: Any) -> None:
        counts.add_(torch.bincount(args[1].flatten(), minlength=len(counts)))
        raise _TokensRouted

    with ExitStack() as stack, torch.inference_mode():
        stack.callback(experts.register_forward_pre_hook(count).remove)
        for windows in shard.batches:
            with suppress(_TokensRouted):
                block(hidden[windows].to(device), **kwargs)
    return shard.group.all_reduce(counts)
