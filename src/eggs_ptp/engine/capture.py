"""What reaches the first decoder block, and the keyword arguments that every block is called with."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.load import Skeleton

# A block called again with the cache of its first call would attend to that call's keys.
_CACHES = ("past_key_values", "past_key_value", "layer_past")


class _LastBlock(Exception):  # noqa: N818 - a signal, not an error
    """Every block has been passed: what follows is not needed."""


class _Recorder(nn.Module):
    """Stands in for a block: hands the hidden states on and keeps what it was called with."""

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a submodule: its attributes are looked up, its weights are not here
        self.last = last
        self.hidden: Tensor | None = None
        self.kwargs: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args:
            raise TypeError("decoder blocks are expected to take everything but the hidden states by keyword")
        self.hidden, self.kwargs = hidden_states, kwargs
        if self.last:
            raise _LastBlock
        return hidden_states


def capture(
    skeleton: Skeleton, shards: Shards, tokens: Tensor, dtype: torch.dtype, device: torch.device, batch: int
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Run everything before the first block.

    Returns the hidden states (windows, seqlen, hidden) in `dtype`, and per block the keyword arguments it is
    called with, made for one window so that they fit any batch.

    Raises:
        NumericsError: the embeddings give NaN or infinity.
    """
    with _embedding(skeleton, shards, dtype, device), torch.inference_mode():
        _, kwargs = _pass(skeleton, tokens[:1].to(device))
        hidden = torch.cat([_pass(skeleton, part.to(device))[0] for part in tokens.split(batch)])
    if not torch.isfinite(hidden).all():
        raise NumericsError(f"{skeleton.folder}: the embeddings of the calibration tokens hold NaN or infinity")
    return hidden, [_clean(given) for given in kwargs]


def _pass(skeleton: Skeleton, tokens: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    blocks = skeleton.blocks
    originals = list(blocks)
    recorders = [_Recorder(block, last=index == len(originals) - 1) for index, block in enumerate(originals)]
    try:
        for index, recorder in enumerate(recorders):
            blocks[index] = recorder
        skeleton.inner(input_ids=tokens, use_cache=False)
    except _LastBlock:
        pass
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block
    hidden = recorders[0].hidden
    assert hidden is not None  # noqa: S101 - the forward has passed block 0 to reach the last one
    return hidden, [recorder.kwargs for recorder in recorders]


def _clean(kwargs: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in kwargs.items() if key not in _CACHES}
    return {**kept, "use_cache": False} if "use_cache" in kept else kept


@contextmanager
def _embedding(skeleton: Skeleton, shards: Shards, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Bring in what runs before the blocks, in its stored type, with embeddings handed on in `dtype`."""
    prefix, inner = _name_of(skeleton), skeleton.inner
    inside = skeleton.family.blocks.removeprefix(f"{prefix}.").split(".")[0]
    with ExitStack() as stack:
        for name, child in inner.named_children():
            if name == inside:
                continue
            stack.enter_context(resident(child, f"{prefix}.{name}", shards, None, device))
            if isinstance(child, nn.Embedding):
                hook = child.register_forward_hook(lambda _module, _args, output: output.to(dtype))
                stack.callback(hook.remove)
        yield


def _name_of(skeleton: Skeleton) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in skeleton.model.named_modules()}
    return names[skeleton.inner]
