"""The loop over decoder blocks: each one is observed, pruned, tuned, and run once more to feed the next one."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from eggs_ptp.engine.blocks.inputs import BlockInputs
from eggs_ptp.engine.blocks.run_block import run_block
from eggs_ptp.engine.context import BlockResult, BlockState, RunContext
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.planning.plan import MatrixPlan, matrices_by_activation, refresh_rounds
from eggs_ptp.engine.prune_block import prune_groups
from eggs_ptp.engine.resources import trim_memory
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics, all_reduce_statistics
from eggs_ptp.engine.statistics.dense_stream import DenseStream, DenseTarget
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.output_cache import ModuleOutputCache
from eggs_ptp.engine.statistics.requests import requests_for
from eggs_ptp.engine.tune_block import tune_block

Groups = Mapping[str, list[MatrixPlan]]  # matrices by the input activation that they share


def prune_blocks(
    context: RunContext,
    inputs: BlockInputs | None,
    permutations: Mapping[str, Tensor] | None,
    keep: Callable[[BlockResult, DenseStream | None], None],
    *,
    start: int = 0,
    dense: Tensor | None = None,
) -> None:
    """Prune block after block; only one block's weights are in memory at a time.

    Args:
        context: The run.
        inputs: Inputs of block `start`, whose hidden states are overwritten; None if no method needs activations.
        permutations: Permutations of the whole model by space, where permutations are folded; otherwise None.
        keep: Receives each block as soon as it is finished, with the dense model's stream at its output.
        start: The first block to prune.
        dense: The dense model's hidden states at block `start`, if they differ from the pruned model's.
    """
    hidden = inputs.hidden if inputs else None
    shard = inputs.shard if inputs else WindowShard.single(0, 1)
    stream = None
    if hidden is not None and context.plan.needs_dense:
        stream = DenseStream(hidden if dense is None else dense, context.store)
    for index in range(start, context.plan.blocks):
        block, kwargs = context.skeleton.blocks[index], inputs.kwargs[index] if inputs else {}
        state = BlockState(index, block, kwargs, hidden, shard, stream, permutations, BlockResult(index))
        with context.loaded_block(index) if hidden is not None else nullcontext():
            prune_block(context, state)
        keep(state.result, stream)
        trim_memory()
        context.notify("block", index + 1)


def prune_block(context: RunContext, state: BlockState) -> None:
    """Prune one block, and replace the hidden states by what the pruned block makes of them."""
    groups = matrices_by_activation(context.plan.of_block(state.index))
    targets = advance_dense_stream(context, state, groups)
    next_hidden = dense_outputs(context, state)
    family = context.skeleton.of_block(state.index)
    hidden_shape = () if state.hidden is None else state.hidden.shape
    cache = ModuleOutputCache(
        family.residual_producers if context.refresh_statistics else (), hidden_shape, context.store
    )
    pending = [matrix.path for matrices in groups.values() for matrix in matrices]
    for matrices in filter(None, refresh_rounds(groups) if context.refresh_statistics else [groups]):
        cache.mark_pending(pending)
        statistics = collect(context, state, matrices, targets, cache)
        context.notify("stage", state.index, "prune")
        prune_groups(context, state, matrices, statistics)
        pruned = {matrix.path for consumers in matrices.values() for matrix in consumers}
        pending = [path for path in pending if path not in pruned]
    cache.mark_pending([linear.path for linear in family.linears] if state.masks else pending)
    tune_block(context, state)
    copy_unpruned_tensors(context, state)
    if next_hidden is None:
        propagate(context, state, cache)
    elif state.hidden is not None:
        with torch.inference_mode():
            state.hidden.copy_(next_hidden)


def advance_dense_stream(context: RunContext, state: BlockState, groups: Groups) -> dict[str, DenseTarget]:
    """Run the dense block on the dense model's hidden states; return its activations where methods compare them."""
    if state.dense is None:
        return {}
    compared = [name for name, matrices in groups.items() if any(matrix.compares for matrix in matrices)]
    context.notify("stage", state.index, "dense")
    with context.times.timed("dense"):
        family = context.skeleton.of_block(state.index)
        targets = state.dense.advance(state.block, state.kwargs, family, compared, state.shard)
    context.check_finite(state.dense.hidden, state.index)
    return targets


def dense_outputs(context: RunContext, state: BlockState) -> Tensor | None:
    """Return the dense block's outputs, where the next block is to be fed them."""
    if not context.propagate_dense or state.hidden is None or is_last(context, state):
        return None
    outputs = context.store.copy(state.hidden)
    _run_over(context, state, outputs, ModuleOutputCache((), outputs.shape))
    return outputs


def collect(
    context: RunContext,
    state: BlockState,
    groups: Groups,
    targets: Mapping[str, DenseTarget],
    cache: ModuleOutputCache,
) -> dict[str, ActivationStatistics]:
    """Collect the statistics that the matrices' methods need, over the windows of all processes."""
    if state.hidden is None:
        return {}
    context.notify("stage", state.index, "observe")
    with context.times.timed("observe"):
        requests = requests_for(groups, lambda method: method.statistics, targets)
        token_mask = context.token_filter.mask(state.hidden)
        statistics = collect_statistics(
            state.block, state.hidden, state.kwargs, requests, state.shard, output_cache=cache, token_mask=token_mask
        )
    with context.times.timed("wait"):
        context.group.barrier()
    with context.times.timed("sum"):
        all_reduce_statistics(statistics, context.group)
    return statistics


def copy_unpruned_tensors(context: RunContext, state: BlockState) -> None:
    """Copy what nothing has happened to from the checkpoint into the result."""
    with context.times.timed("read"):
        for name in context.stored_tensors(state.index):
            if name not in state.result.tensors:
                state.result.tensors[name] = context.reader.read_sound(name)


def propagate(context: RunContext, state: BlockState, cache: ModuleOutputCache) -> None:
    """Replace the hidden states by the outputs of the pruned block, unless it is the last."""
    if state.hidden is not None and not is_last(context, state):
        _run_over(context, state, state.hidden, cache)


def is_last(context: RunContext, state: BlockState) -> bool:
    """Whether no block follows."""
    return state.index + 1 == context.plan.blocks


def _run_over(context: RunContext, state: BlockState, hidden: Tensor, cache: ModuleOutputCache) -> None:
    """Run the block over all windows of `hidden`, in place."""
    context.notify("stage", state.index, "propagate")
    with context.times.timed("propagate"), cache.on(state.block), torch.inference_mode():
        for windows in state.shard.batches:
            cache.windows = windows
            batch = hidden[windows]
            batch.copy_(run_block(state.block, batch.to(context.device), state.kwargs))
    context.check_finite(hidden, state.index)
