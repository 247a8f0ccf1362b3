"""What a run starts with: its context, its calibration windows, and the inputs of the first block."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.calibration.windows import Windows, calibration_windows
from eggs_ptp.engine.blocks.inputs import BlockInputs, capture_block_inputs
from eggs_ptp.engine.context import RunContext
from eggs_ptp.engine.distributed.process_group import ProcessGroup
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.event import Listener, ignore
from eggs_ptp.engine.planning.device import find_dtype
from eggs_ptp.engine.planning.plan import Plan
from eggs_ptp.engine.statistics.token_filter import TokenFilter
from eggs_ptp.engine.tensors.activation_store import ActivationStore
from eggs_ptp.engine.tensors.masks import MaskFile
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import Skeleton
from eggs_ptp.recipe.recipe import Recipe


def make_context(
    plan: Plan,
    skeleton: Skeleton,
    reader: CheckpointReader,
    recipe: Recipe,
    *,
    listener: Listener,
    group: ProcessGroup,
    output: Path,
) -> RunContext:
    """Put together the context of a run.

    Args:
        plan: The plan of the run.
        skeleton: The model without weights.
        reader: Its checkpoint.
        recipe: The recipe that the plan was made from.
        listener: Is notified of progress, on the main process.
        group: The processes of the run. All take the main process's batch size, whatever memory each has left, as it
            shows in the last bits.
        output: Activations that do not fit into memory go to files on this folder's disk.
    """
    batch_tokens = group.broadcast_object(lambda: plan.budget.batch_tokens)
    disk = next(parent for parent in output.resolve().parents if parent.exists())
    statistics = recipe.calibration.statistics or ("group" if plan.compares else "block")
    return RunContext(
        plan=plan.with_batch_tokens(batch_tokens),
        skeleton=skeleton,
        reader=reader,
        seed=recipe.seed,
        share_permutation=recipe.share == "consumers",
        device=torch.device(plan.device),
        dtype=find_dtype(plan.dtype),
        listener=listener if group.is_main_process else ignore,
        refresh_statistics=statistics == "group",
        propagate_dense=recipe.calibration.propagate == "dense",
        given_masks=MaskFile(Path(recipe.mask)) if recipe.mask else None,
        token_filter=TokenFilter(recipe.calibration.skip_first, recipe.calibration.massive),
        store=ActivationStore(plan.budget.allowance, disk),
        group=group,
    )


def draw_windows(
    skeleton: Skeleton, recipe: Recipe, plan: Plan, builtin: Sequence[str] | None, tokenizer: Tokenizer | None
) -> Windows:
    """Draw the calibration windows of a run.

    Args:
        skeleton: The model.
        recipe: Names the text and how windows are drawn from it.
        plan: Has the length of the windows.
        builtin: The documents of the built-in text, if that is the calibration text.
        tokenizer: The model's tokenizer; may be None where the text is a file of token windows.

    Raises:
        CalibrationError: There is no text, or it is too short.
    """
    return calibration_windows(
        recipe.calibration,
        tokenizer,
        seqlen=plan.seqlen,
        seed=recipe.seed if recipe.calibration.seed is None else recipe.calibration.seed,
        vocab_size=skeleton.vocab_size,
        builtin=builtin,
    )


def first_block_inputs(context: RunContext, windows: Windows) -> BlockInputs:
    """Run what comes before the first block on this process's windows."""
    context.notify("stage", 0, "embedding")
    with context.times.timed("embedding"):
        shard = WindowShard.of(len(windows.tokens), context.batch_windows(windows.tokens), context.group)
        hidden, kwargs = capture_block_inputs(
            context.skeleton,
            context.reader,
            windows.tokens[shard.local],
            context.dtype,
            context.device,
            shard.batch_sizes,
            context.store,
        )
        return BlockInputs(hidden, kwargs, shard)


class SharedInputs:
    """What several runs on one model share: calibration windows and the first block's inputs, whatever the method."""

    def __init__(self) -> None:
        self._windows_key: tuple[Any, ...] = ()
        self._windows: Windows | None = None
        self._inputs_key: tuple[str, ...] = ()
        self._inputs: BlockInputs | None = None

    def windows(self, folder: Path, recipe: Recipe, plan: Plan, draw: Callable[[], Windows]) -> Windows:
        """Return the calibration windows, drawn once for the same model, text, length and seed."""
        key = (folder, repr(recipe.calibration), plan.seqlen, recipe.seed)
        if self._windows is None or key != self._windows_key:
            self._windows_key = key
            self._windows = draw()
        return self._windows

    def inputs(self, context: RunContext, windows: Windows) -> BlockInputs:
        """Return the inputs of the first block, computed once for the same model, windows, type and device."""
        key = (str(context.skeleton.folder), windows.digest, str(context.dtype), str(context.device))
        if self._inputs is None or key != self._inputs_key:
            self._inputs_key = key
            self._inputs = first_block_inputs(context, windows)
        return self._inputs.copy()
