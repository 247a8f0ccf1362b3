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

from eggs_ptp.core.finite import is_finite
from eggs_ptp.engine.blocks.run_block import BlockKwargs, StopForward
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.tensors.activation_store import ActivationStore
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import ModelError, NumericsError
from eggs_ptp.models.load import Skeleton, first_line

# A block that is called again with the key-value cache of its first call would attend to that call's keys.
_CACHES = ("past_key_values", "past_key_value", "layer_past")


@dataclass(frozen=True)
class BlockInputs:
    """The inputs of the first block, for the calibration windows of this process.

    Args:
        hidden: Hidden states, (windows, seqlen, channels).
        kwargs: The keyword arguments of every block.
        shard: Which windows these are.
    """

    hidden: Tensor
    kwargs: list[dict[str, Any]]
    shard: WindowShard

    def copy(self) -> "BlockInputs":
        """Return a copy with hidden states that a run may overwrite."""
        return replace(self, hidden=self.hidden.clone())

    def strided(self, stride: int) -> "BlockInputs":
        """Return every `stride`-th window, counted over all processes; the hidden states are shared."""
        windows, shard = self.shard.strided(stride)
        return replace(self, hidden=self.hidden[windows], shard=shard)


class _LastBlock(StopForward):
    """The last block has been reached: what follows is not needed."""


class BlockStandIn(nn.Module):
    """Stands in for a block and returns hidden states, bare or as a tuple of one."""

    def __init__(self, block: nn.Module, tuples: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a submodule: its attributes are looked up, its weights are not here
        self.tuples = tuples

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def output(self, hidden: Tensor) -> Tensor | tuple[Tensor]:
        """Return hidden states in the form that the model expects of a block."""
        return (hidden,) if self.tuples else hidden


class _Recorder(BlockStandIn):
    """Passes the hidden states on, (windows, tokens, channels), and records its arguments."""

    def __init__(self, block: nn.Module, is_last: bool, tuples: bool) -> None:
        super().__init__(block, tuples)
        self.is_last = is_last
        self.hidden: Tensor | None = None
        self.kwargs: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        if hidden_states.dim() != 3:
            raise _LastBlock
        names = list(inspect.signature(self.__dict__["block"].forward).parameters)[1 : 1 + len(args)]
        self.hidden = hidden_states
        self.kwargs = {**dict(zip(names, args, strict=True)), **kwargs}
        if self.is_last:
            raise _LastBlock
        return self.output(hidden_states)


def capture_block_inputs(
    skeleton: Skeleton,
    reader: CheckpointReader,
    tokens: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    batch: int | list[int],
    store: ActivationStore | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Run everything before the first block.

    Args:
        skeleton: The model without weights.
        reader: Its checkpoint.
        tokens: Token ids, (windows, seqlen).
        dtype: Of the hidden states.
        device: Where the embeddings run.
        batch: Windows at once, or the sizes of all batches.
        store: Allocates the hidden states.

    Returns:
        Hidden states (windows, seqlen, channels), and for each block its keyword arguments, recorded with one window so
        that they fit batches of any size.

    Raises:
        ModelError: The model has no family, and its blocks cannot be run one by one.
        NumericsError: The embeddings give NaN or infinity.
    """
    is_unknown = not skeleton.family.known
    with _loaded_embeddings(skeleton, reader, dtype, device), torch.inference_mode():
        _, kwargs = _record_inputs(skeleton, tokens[:1].to(device))
        if is_unknown:
            _, kwargs_of_other_tokens = _record_inputs(skeleton, tokens[-1:].flip(1).to(device))
            _check_equal(skeleton, kwargs, kwargs_of_other_tokens)
        if is_unknown or any(_first_axis(value) > 1 for block_kwargs in kwargs for value in block_kwargs.values()):
            _, kwargs_of_two = _record_inputs(skeleton, tokens[:1].repeat(2, 1).to(device))
            _repeat_per_window(skeleton, kwargs, kwargs_of_two)
        hidden = (store or ActivationStore()).empty((*tokens.shape, skeleton.hidden_size), dtype, device)
        for target, windows in zip(hidden.split(batch), tokens.split(batch), strict=True):
            target.copy_(_record_inputs(skeleton, windows.to(device))[0])
    if not is_finite(hidden):
        raise NumericsError(f"{skeleton.folder}: the embeddings of the calibration tokens hold NaN or infinity")
    unknown_model = _unknown_model(skeleton) if is_unknown else ""
    return hidden, [_without_caches(block_kwargs, unknown_model) for block_kwargs in kwargs]


def _record_inputs(skeleton: Skeleton, tokens: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    recorders = _run_recorders(skeleton, tokens, tuples=False)
    if recorders[-1].hidden is None:  # the model takes element 0 of a block's output: of a bare tensor, a window
        recorders = _run_recorders(skeleton, tokens, tuples=True)
    recorded = [recorder.hidden for recorder in recorders if recorder.hidden is not None]
    if len(recorded) < len(recorders):
        raise ModelError(f"{_unknown_model(skeleton)} are not all given hidden states (windows, tokens, channels)")
    if not skeleton.family.known:
        for index, (output, next_input) in enumerate(itertools.pairwise(recorded)):
            if not torch.equal(output, next_input):
                raise ModelError(
                    f"{_unknown_model(skeleton)} cannot be run one by one, as the model changes the output of block "
                    f"{index} before it reaches block {index + 1}"
                )
    return recorded[0], [recorder.kwargs for recorder in recorders]


def _unknown_model(skeleton: Skeleton) -> str:
    """How errors about the blocks of a model without a family begin."""
    family = skeleton.family
    return f"{skeleton.folder}: model type {family.model_type!r} has no family here, and the blocks in {family.blocks}"


def _check_equal(skeleton: Skeleton, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Refuse keyword arguments that depend on the tokens, as those of one window are used for all."""
    for index, (first_kwargs, second_kwargs) in enumerate(zip(first, second, strict=True)):
        for name, value in first_kwargs.items():
            pairs = itertools.zip_longest(_tensors(value), _tensors(second_kwargs.get(name)))
            if not all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs):
                raise ModelError(
                    f"{_unknown_model(skeleton)} cannot be run one by one, as block {index} is given {name}, which "
                    "depends on the tokens; this needs a family"
                )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _run_recorders(skeleton: Skeleton, tokens: Tensor, *, tuples: bool) -> list[_Recorder]:
    """Run the model with recorders in place of its blocks, which return bare tensors or tuples."""
    blocks = skeleton.blocks
    recorders = [_Recorder(block, index == len(blocks) - 1, tuples) for index, block in enumerate(blocks)]
    try:
        with replaced_blocks(blocks, recorders):
            skeleton.inner(input_ids=tokens, use_cache=False)
    except _LastBlock:
        pass
    except Exception as error:
        if skeleton.family.known:
            raise
        raise ModelError(f"{_unknown_model(skeleton)} cannot be run one by one ({first_line(error)})") from error
    return recorders


@contextmanager
def replaced_blocks(blocks: nn.ModuleList, replacements: Sequence[nn.Module]) -> Iterator[None]:
    """Replace the blocks of a model while the context lasts."""
    originals = list(blocks)
    try:
        for index, replacement in enumerate(replacements):
            blocks[index] = replacement
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


def _first_axis(value: Any) -> int:
    """The size of a tensor's first axis; 0 for anything else."""
    return int(value.shape[0]) if isinstance(value, Tensor) and value.dim() else 0


def _repeat_per_window(
    skeleton: Skeleton, kwargs_of_one: list[dict[str, Any]], kwargs_of_two: list[dict[str, Any]]
) -> None:
    """Have blocks repeat arguments recorded with one window for every window, such as the slopes of ALiBi.

    In a known family an argument whose first axis is 1 fits any number of windows; an unknown model may look at its
    size, so there it is repeated too.
    """
    least = 2 if skeleton.family.known else 1
    for block, one, two in zip(skeleton.blocks, kwargs_of_one, kwargs_of_two, strict=True):
        sizes = {key: _first_axis(value) for key, value in one.items()}
        per_window = {key: size for key, size in sizes.items() if size >= least and _first_axis(two[key]) == 2 * size}

        def repeat(
            _module: nn.Module, args: Any, kwargs: dict[str, Any], per_window: dict[str, int] = per_window
        ) -> tuple[Any, dict[str, Any]]:
            windows = len(args[0])
            values = {key: kwargs[key] for key, size in per_window.items() if _first_axis(kwargs.get(key)) == size}
            repeated = {key: value.repeat(windows, *[1] * (value.dim() - 1)) for key, value in values.items()}
            return args, {**kwargs, **repeated}

        if per_window:
            block.register_forward_pre_hook(repeat, with_kwargs=True)


def _without_caches(kwargs: dict[str, Any], unknown_model: str) -> dict[str, Any]:
    cleaned = BlockKwargs((key, value) for key, value in kwargs.items() if key not in _CACHES)
    if "use_cache" in cleaned:
        cleaned["use_cache"] = False
    cleaned.unknown_model = unknown_model
    return cleaned


@contextmanager
def _loaded_embeddings(
    skeleton: Skeleton, reader: CheckpointReader, dtype: torch.dtype, device: torch.device
) -> Iterator[None]:
    """Load what runs before the blocks; embeddings, which are large, in their stored type, with outputs in `dtype`."""
    with ExitStack() as stack:
        for name, module in modules_outside_blocks(skeleton):
            is_embedding = isinstance(module, nn.Embedding)
            weight_dtype = reader.dtype(f"{name}.weight") if is_embedding else dtype
            stack.enter_context(loaded_weights(module, name, reader, weight_dtype, device))
            if is_embedding:
                stack.callback(module.register_forward_hook(functools.partial(_cast_embedding, dtype)).remove)
        yield


def _cast_embedding(dtype: torch.dtype, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Return the output of an embedding in `dtype`; one that scales its output has to do so in `dtype` too."""
    scale = getattr(module, "embed_scale", None)
    if scale is None:
        return output.to(dtype)
    rows = nn.functional.embedding(args[0], cast(Tensor, module.weight)).to(dtype)
    return rows * (scale.to(dtype) if isinstance(scale, Tensor) else scale)


def modules_outside_blocks(skeleton: Skeleton) -> Iterator[tuple[str, nn.Module]]:
    """Yield the leaf modules outside the blocks, without the output head, by their names in the checkpoint."""
    inner_modules = {id(module) for module in skeleton.inner.modules()}
    for name, module in skeleton.root.named_modules():
        is_outside = id(module) in inner_modules and not name.startswith(f"{skeleton.family.blocks}.")
        if is_outside and not [*module.children()]:
            yield name, module
