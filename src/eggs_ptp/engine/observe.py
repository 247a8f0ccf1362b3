"""Statistics of the activations inside one block, collected while it runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eggs_ptp.core.stats import Moments

_SAMPLED_TOKENS = 256


class _Seen(Exception):  # noqa: N818 - a signal, not an error
    """Every activation that somebody asked for has passed: the rest of the block need not run."""


@dataclass(frozen=True)
class Want:
    """An activation to watch: the input or output of the linear at `path`, and the statistics asked for."""

    path: str
    width: int
    statistics: frozenset[str]
    side: Literal["input", "output"] = "input"


class Observation:
    """The sums over one activation, and evenly spaced tokens of it (for the output error of what is pruned)."""

    def __init__(self, want: Want, tokens: int, device: torch.device) -> None:
        self.moments = Moments(want.width, want.statistics, device)
        self._stride = max(1, tokens // _SAMPLED_TOKENS)
        self._parts: list[Tensor] = []

    def add(self, activation: Tensor) -> None:
        """Take a batch of the activation, (..., width)."""
        x = activation.reshape(-1, activation.shape[-1])
        first = -self.moments.tokens % self._stride  # counted over all tokens, whatever the batches
        self._parts.append(x[first :: self._stride].to(torch.float32, copy=True))  # a view would keep the batch alive
        self.moments.add(activation)

    @property
    def sample(self) -> Tensor:
        """About 256 tokens, (tokens, width) in float32."""
        return torch.cat(self._parts)


def observe(
    block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any], wants: Mapping[str, Want], batch: int
) -> dict[str, Observation]:
    """Run the block over all windows and collect what `wants` asks for, by activation name."""
    tokens = hidden.shape[0] * hidden.shape[1]
    seen = {reads: Observation(want, tokens, hidden.device) for reads, want in wants.items()}
    with _watching(block, wants, seen), torch.inference_mode():
        for part in hidden.split(batch):
            try:
                block(part, **kwargs)
            except _Seen:
                continue
    return seen


@contextmanager
def _watching(block: nn.Module, wants: Mapping[str, Want], seen: Mapping[str, Observation]) -> Iterator[None]:
    waiting: set[str] = set()

    def start(_module: nn.Module, _args: Any) -> None:
        waiting.update(wants)

    def take(name: str, activation: Tensor) -> None:
        seen[name].add(activation)
        waiting.discard(name)
        if not waiting:
            raise _Seen

    handles = [block.register_forward_pre_hook(start)]
    for name, want in wants.items():
        linear = block.get_submodule(want.path)
        if want.side == "input":
            handles.append(linear.register_forward_pre_hook(lambda _m, args, name=name: take(name, args[0])))
        else:
            handles.append(linear.register_forward_hook(lambda _m, _args, out, name=name: take(name, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
