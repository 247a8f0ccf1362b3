"""Which experts of a block see too few calibration tokens to be judged by them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.through import Signal
from eggs_ptp.models.experts import Experts


class _Routed(Signal):
    """The router has spoken: what the experts make of it is not needed."""


@contextmanager
def starved_on_everything(
    block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any], cut: Cut, watched: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """While this lasts, experts that would see fewer tokens than they have inputs run on all tokens of the layer.

    So many tokens are the least from which a Gram matrix of the inputs can have full rank. The tokens are counted by
    running the block over all windows, (windows, seqlen, hidden), up to its experts, unless none of the modules at the
    paths `watched` is theirs. Gives how the paths of what is in those experts begin.
    """
    layers = {
        path: module
        for path, module in block.named_modules()
        if isinstance(module, Experts) and any(watch.startswith(f"{path}.") for watch in watched)
    }
    for experts in layers.values():
        counts = _counts(block, experts, hidden, kwargs, cut)
        experts.everything = frozenset((counts < hidden.shape[-1]).nonzero().flatten().tolist())
    try:
        yield tuple(f"{path}.{number}." for path, experts in layers.items() for number in experts.everything)
    finally:
        for experts in layers.values():
            experts.everything = frozenset()


def _counts(block: nn.Module, experts: Experts, hidden: Tensor, kwargs: Mapping[str, Any], cut: Cut) -> Tensor:
    """Tokens that each expert is sent, of all ranks' windows."""
    device = next(block.parameters()).device
    total = torch.zeros(len([*experts.children()]), dtype=torch.long, device=device)

    def count(_module: nn.Module, args: Any) -> None:
        total.add_(torch.bincount(args[1].flatten(), minlength=len(total)))
        raise _Routed

    with ExitStack() as stack, torch.inference_mode():
        stack.callback(experts.register_forward_pre_hook(count).remove)
        for windows in (windows for leaf in cut for windows in leaf):
            with suppress(_Routed):
                block(hidden[windows].to(device), **kwargs)
    return cut.ranks.total(total)
