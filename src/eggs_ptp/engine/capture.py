"""What reaches the first decoder block, and the keyword arguments that every block is called with."""

import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.core.finite import finite
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.shelf import Shelf
from eggs_ptp.engine.through import Given, Signal
from eggs_ptp.errors import ModelError, NumericsError
from eggs_ptp.models.load import Skeleton, first_line

# A block called again with the cache of its first call would attend to that call's keys.
_CACHES = ("past_key_values", "past_key_value", "layer_past")


@dataclass(frozen=True)
class Inputs:
    """What the first block is fed: hidden states (windows, seqlen, hidden), and every block's keyword arguments.

    The windows are those of this rank.
    """

    hidden: Tensor
    kwargs: list[dict[str, Any]]
    cut: Cut  # of the windows that the hidden states are of

    def copy(self) -> "Inputs":
        """The same with hidden states of its own, which a run overwrites."""
        return replace(self, hidden=self.hidden.clone())

    def every(self, stride: int) -> "Inputs":
        """One window of so many, on all ranks together; the hidden states are the same."""
        windows, cut = self.cut.every(stride)
        return replace(self, hidden=self.hidden[windows], cut=cut)


class _LastBlock(Signal):
    """Every block has been passed: what follows is not needed."""


class StandIn(nn.Module):
    """Stands in for a block, and gives the hidden states by themselves, or the first of a tuple."""

    def __init__(self, block: nn.Module, tuples: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a submodule: its attributes are looked up, its weights are not here
        self.tuples = tuples

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def give(self, hidden: Tensor) -> Tensor | tuple[Tensor]:
        """Hidden states as the model expects them of a block."""
        return (hidden,) if self.tuples else hidden


class _Recorder(StandIn):
    """Hands the hidden states on, (windows, tokens, hidden), and keeps what it was called with."""

    def __init__(self, block: nn.Module, last: bool, tuples: bool) -> None:
        super().__init__(block, tuples)
        self.last = last
        self.hidden: Tensor | None = None
        self.kwargs: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        names = list(inspect.signature(self.__dict__["block"].forward).parameters)[1 : 1 + len(args)]
        if hidden_states.dim() != 3:
            raise _LastBlock
        self.hidden, self.kwargs = hidden_states, {**dict(zip(names, args, strict=True)), **kwargs}
        if self.last:
            raise _LastBlock
        return self.give(hidden_states)


def capture(
    skeleton: Skeleton,
    shards: Shards,
    tokens: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    batch: int | list[int],
    shelf: Shelf | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Run everything before the first block.

    Returns the hidden states (windows, seqlen, hidden) in `dtype`, on the `shelf`, and per block the keyword arguments
    it is called with, made for one window so that they fit any batch. `batch`: windows at once, or how many each time.

    Raises:
        ModelError: no family knows the model, and its blocks cannot be run one by one.
        NumericsError: the embeddings give NaN or infinity.
    """
    strange = not skeleton.family.known
    with _embedding(skeleton, shards, dtype, device), torch.inference_mode():
        _, kwargs = _pass(skeleton, tokens[:1].to(device))
        if strange:
            _check_alike(skeleton, kwargs, _pass(skeleton, tokens[-1:].flip(1).to(device))[1])
        if strange or any(_size(value) > 1 for given in kwargs for value in given.values()):
            _, twice = _pass(skeleton, tokens[:1].repeat(2, 1).to(device))
            _repeat(skeleton, kwargs, twice)
        hidden = (shelf or Shelf()).empty((*tokens.shape, skeleton.hidden_size), dtype, device)
        for given, part in zip(hidden.split(batch), tokens.split(batch), strict=True):
            given.copy_(_pass(skeleton, part.to(device))[0])
    if not finite(hidden):
        raise NumericsError(f"{skeleton.folder}: the embeddings of the calibration tokens hold NaN or infinity")
    return hidden, [_clean(given, _whose(skeleton) if strange else "") for given in kwargs]


def _pass(skeleton: Skeleton, tokens: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    recorders = _record(skeleton, tokens, tuples=False)
    if recorders[-1].hidden is None:  # the model takes the first of what a block gives: of a tensor, its first window
        recorders = _record(skeleton, tokens, tuples=True)
    passed = [recorder.hidden for recorder in recorders if recorder.hidden is not None]
    if len(passed) < len(recorders):
        raise ModelError(f"{_whose(skeleton)} are not all given hidden states (windows, tokens, hidden)")
    if not skeleton.family.known:
        for index, (gave, received) in enumerate(itertools.pairwise(passed)):
            if not torch.equal(gave, received):
                raise ModelError(
                    f"{_whose(skeleton)} cannot be run one by one, as the model changes what block {index} gives "
                    f"before it reaches block {index + 1}"
                )
    return passed[0], [recorder.kwargs for recorder in recorders]


def _whose(skeleton: Skeleton) -> str:
    """How an error begins that is about the blocks of a model without a family."""
    family = skeleton.family
    return f"{skeleton.folder}: model type {family.model_type!r} has no family here, and the blocks in {family.blocks}"


def _check_alike(skeleton: Skeleton, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Refuse keyword arguments that are not the same for windows of other tokens, as one window's serve all."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        for name, value in mine.items():
            pairs = itertools.zip_longest(_tensors(value), _tensors(theirs.get(name)))
            if not all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs):
                raise ModelError(
                    f"{_whose(skeleton)} cannot be run one by one, as block {index} is given {name}, which depends on "
                    "the tokens; this needs a family"
                )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _record(skeleton: Skeleton, tokens: Tensor, *, tuples: bool) -> list[_Recorder]:
    """Run the model with recorders in the place of its blocks, which give tensors, or tuples of one."""
    blocks = skeleton.blocks
    recorders = [_Recorder(block, index == len(blocks) - 1, tuples) for index, block in enumerate(blocks)]
    try:
        with instead(blocks, recorders):
            skeleton.inner(input_ids=tokens, use_cache=False)
    except _LastBlock:
        pass
    except Exception as error:
        if skeleton.family.known:
            raise
        raise ModelError(f"{_whose(skeleton)} cannot be run one by one ({first_line(error)})") from error
    return recorders


@contextmanager
def instead(blocks: nn.ModuleList, others: Sequence[nn.Module]) -> Iterator[None]:
    """While this lasts, the model has these in the place of its blocks."""
    originals = list(blocks)
    try:
        for index, other in enumerate(others):
            blocks[index] = other
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


def _size(value: Any) -> int:
    """The first dimension of a tensor; 0 for what is none."""
    return int(value.shape[0]) if isinstance(value, Tensor) and value.dim() else 0


def _repeat(skeleton: Skeleton, once: list[dict[str, Any]], twice: list[dict[str, Any]]) -> None:
    """Have blocks repeat for every window what they are given once for one, as some make ALiBi's slopes.

    Of a known family what has a first axis of 1 is right for any number of windows; others may look at its size.
    """
    least = 2 if skeleton.family.known else 1
    for block, one, two in zip(skeleton.blocks, once, twice, strict=True):
        sizes = {key: _size(value) for key, value in one.items()}
        grown = {key: size for key, size in sizes.items() if size >= least and _size(two[key]) == 2 * size}

        def repeat(
            _module: nn.Module, args: Any, kwargs: dict[str, Any], grown: dict[str, int] = grown
        ) -> tuple[Any, dict[str, Any]]:
            windows = len(args[0])
            fitting = {key: kwargs[key] for key, size in grown.items() if _size(kwargs.get(key)) == size}
            return args, {
                **kwargs,
                **{key: value.repeat(windows, *[1] * (value.dim() - 1)) for key, value in fitting.items()},
            }

        if grown:
            block.register_forward_pre_hook(repeat, with_kwargs=True)


def _clean(kwargs: dict[str, Any], whose: str) -> dict[str, Any]:
    kept = Given((key, value) for key, value in kwargs.items() if key not in _CACHES)
    if "use_cache" in kept:
        kept["use_cache"] = False
    kept.whose = whose
    return kept


@contextmanager
def _embedding(skeleton: Skeleton, shards: Shards, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Bring in what runs before the blocks: embeddings as stored, as they are large, but what they give in `dtype`."""
    with ExitStack() as stack:
        for name, module in beside(skeleton):
            embeds = isinstance(module, nn.Embedding)
            stored = shards.dtype(f"{name}.weight") if embeds else dtype
            stack.enter_context(resident(module, name, shards, stored, device))
            if embeds:
                stack.callback(module.register_forward_hook(functools.partial(_embedded, dtype)).remove)
        yield


def _embedded(dtype: torch.dtype, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """What an embedding gives in `dtype`; one that scales would do so in its stored type."""
    scale = getattr(module, "embed_scale", None)
    if scale is None:
        return output.to(dtype)
    rows = nn.functional.embedding(args[0], cast(Tensor, module.weight)).to(dtype)
    return rows * (scale.to(dtype) if isinstance(scale, Tensor) else scale)


def beside(skeleton: Skeleton) -> Iterator[tuple[str, nn.Module]]:
    """The smallest modules of the model without its head that are not in blocks, by their names in the checkpoint."""
    inside = {id(module) for module in skeleton.inner.modules()}
    for name, module in skeleton.root.named_modules():
        if id(module) in inside and not name.startswith(f"{skeleton.family.blocks}.") and not [*module.children()]:
            yield name, module
