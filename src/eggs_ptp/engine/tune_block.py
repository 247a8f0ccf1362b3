"""Tunes the kept weights of a pruned block towards the dense model's block."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn

from eggs_ptp.core.mask import count_nonzeros
from eggs_ptp.core.seed import generator_for
from eggs_ptp.core.step_result import Diagnostic
from eggs_ptp.engine.blocks.output_head import output_head
from eggs_ptp.engine.blocks.run_block import BlockKwargs, run_block, trainable
from eggs_ptp.engine.context import BlockState, RunContext
from eggs_ptp.engine.statistics.dense_stream import DenseStream
from eggs_ptp.errors import NumericsError
from eggs_ptp.method.step import BoundStep


def tune_block(context: RunContext, state: BlockState) -> None:
    """Tune a pruned block by its methods' tune step, if they have one, and update the result.

    Raises:
        NumericsError: The loss is not finite; names the block.
    """
    if not state.masks:
        return
    step = cast(BoundStep, context.plan.tune(state.index))
    context.notify("stage", state.index, "tune")
    with context.times.timed("tune"):
        tensors, diagnostics = _tune(context, state, step)
    state.result.tensors.update({name: tensor.cpu() for name, tensor in tensors.items()})
    state.result.tuned.update(tensors)
    tuned_matrices = {f"{context.skeleton.block_name(state.index)}.{path}" for path in state.masks}
    for record in state.result.records:
        if record["name"] in tuned_matrices:
            nonzero = count_nonzeros(state.result.tensors[f"{record['name']}.weight"])
            record.update(tune=diagnostics, nonzero=nonzero, updated=True)


def _tune(
    context: RunContext, state: BlockState, step: BoundStep
) -> tuple[dict[str, Tensor], Mapping[str, Diagnostic]]:
    """Run the step on the main process with all windows, and put what it returns into the block on all processes.

    Each of its steps needs the weights of the one before, so the work cannot be divided.

    Returns:
        The changed tensors by their names in the checkpoint, in their stored types, and diagnostics.
    """
    block = state.block
    name = context.skeleton.block_name(state.index)
    kwargs = BlockKwargs.map(state.kwargs, trainable)
    inputs = context.group.gather_windows(cast(Tensor, state.hidden))
    target = context.group.gather_windows(cast(DenseStream, state.dense).hidden)

    def run(windows: Tensor) -> Tensor:
        return run_block(block, windows.to(context.device), kwargs)

    def tune() -> tuple[dict[str, Tensor], Any]:
        data: dict[str, Any] = {
            "block": block,
            "masks": state.masks,
            "inputs": inputs,
            "target": target,
            "call": run,
            "generator": generator_for(context.seed, name, context.device),
            "logits": None,
        }
        is_last = state.index + 1 == len(context.skeleton.blocks)
        with ExitStack() as stack:
            if is_last and "logits" in step.data:
                head = output_head(context.skeleton, context.reader, context.dtype, context.device)
                data["logits"] = stack.enter_context(head)
            try:
                tensors, diagnostics = step(data.__getitem__)
            except NumericsError as error:
                raise NumericsError(f"{name}: {error}") from error
        return tensors, diagnostics

    tuned, diagnostics = context.group.broadcast_tensors(tune)
    stored = {}
    for tensor, value in tuned.items():
        path, _, parameter = tensor.rpartition(".")
        key = f"{name}.{tensor}"
        stored[key] = value.to(context.reader.dtype(key))
        replacement = nn.Parameter(stored[key].to(context.dtype), requires_grad=False)
        setattr(block.get_submodule(path), parameter, replacement)
    return stored, diagnostics
