"""Permutations that can be folded: one of the residual stream, from the dense model, one of each head and each MLP."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.blocks.inputs import BlockInputs
from eggs_ptp.engine.context import RunContext
from eggs_ptp.engine.planning.memory_budget import PERMUTATION_ROWS
from eggs_ptp.engine.planning.plan import MatrixPlan, matrices_by_activation, permutation_stride
from eggs_ptp.engine.resources import trim_memory
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics, all_reduce_statistics
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.requests import requests_for
from eggs_ptp.method.apply import Job, SharedPermutation, common_permute, score_of
from eggs_ptp.models.heads import Heads
from eggs_ptp.models.load import Skeleton


def find_permutations(context: RunContext, inputs: BlockInputs | None) -> dict[str, Tensor]:
    """Find one permutation for the space that spans the model, from its consumers' scores in the dense model.

    Runs every block once over evenly spaced windows (see `permutation_stride`).

    Args:
        context: The run.
        inputs: Inputs of the first block, whose hidden states are overwritten; None if no score needs statistics.

    Returns:
        The permutation by the name of its space; {} if no consumer permutes.

    Raises:
        NumericsError: A weight, activation or score is not finite; names the matrix or block.
    """
    consumers = context.plan.folding("model")
    if not consumers:
        return {}
    space = str(consumers[0].space)
    with context.times.timed("order"):
        searches = (
            (matrix.resolved.method, matrix.resolved.pattern, matrix.rows * matrix.columns)
            for matrix in consumers
            if matrix.resolved
        )
        permute = common_permute(searches, context.group)
        rows = sum(matrix.rows for matrix in consumers)
        if inputs is not None:
            inputs = inputs.strided(permutation_stride(inputs.shard.windows, inputs.hidden.shape[1]))
        permutation = residual_permutation(_scores(context, consumers, inputs), rows, permute)
        return dict(context.group.broadcast_tensors(lambda: ({space: permutation}, None))[0])


def residual_permutation(
    scored: Iterable[tuple[Job, Tensor]], rows: int, permute: Callable[[Tensor], Tensor]
) -> Tensor:
    """Find the permutation of the residual stream from the scores of all its consumers, stacked as they run.

    Args:
        scored: Each consumer's job and score (out, in), one at a time.
        rows: Rows of all consumers together; of more than 8192, that many evenly spaced ones are stacked.
        permute: The permute step as a function of scores.
    """
    count = min(PERMUTATION_ROWS, rows)
    parts = []
    passed = 0
    for _, score in scored:
        # Row i of the stack is row i * rows // count of all.
        first, last = (-(-row * count // rows) for row in (passed, passed + len(score)))
        parts.append(score[torch.arange(first, last, device=score.device) * rows // count - passed])
        passed += len(score)
    return permute(torch.cat(parts))


def _scores(
    context: RunContext, consumers: list[MatrixPlan], inputs: BlockInputs | None
) -> Iterator[tuple[Job, Tensor]]:
    """Yield the consumers' scores in the dense model, loading one block at a time."""
    last = max(matrix.block for matrix in consumers)
    for index in range(last + 1):
        groups = matrices_by_activation([matrix for matrix in consumers if matrix.block == index])
        context.notify("stage", index, "order")
        statistics = {}
        if inputs:
            statistics = _dense_statistics(context, index, groups, inputs, advance=index < last)
        for activation, matrices in groups.items():
            for matrix in matrices:
                job = context.job(matrix)
                read = functools.partial(statistic_of, statistics, activation)
                yield job, score_of(job, read, seed=context.seed)
        trim_memory()
        if inputs:
            context.check_finite(inputs.hidden, index)


def _dense_statistics(
    context: RunContext,
    index: int,
    groups: Mapping[str, list[MatrixPlan]],
    inputs: BlockInputs,
    *,
    advance: bool,
) -> dict[str, ActivationStatistics]:
    """Collect the statistics that scores need from a dense block; with `advance`, run it whole for the next one."""
    requests = requests_for(groups, lambda method: method.steps["score"].statistics)
    with context.loaded_block(index) as block:
        statistics = collect_statistics(
            block,
            inputs.hidden,
            inputs.kwargs[index],
            requests,
            inputs.shard,
            advance=advance,
            token_mask=context.token_filter.mask(inputs.hidden),
        )
        all_reduce_statistics(statistics, context.group)
        return statistics


def statistic_of(
    statistics: Mapping[str, ActivationStatistics], input_activation: str, matrix: str, name: str
) -> Tensor:
    """Return a statistic of a matrix: of its own output, or of the input activation that it shares with others."""
    activation = matrix if STATISTICS[name].side == "output" else input_activation
    return statistics[activation].moments.read(name, matrix)


def permutation_source(
    skeleton: Skeleton, input_activation: str, permutations: Mapping[str, Tensor]
) -> SharedPermutation:
    """Return how the consumers of an activation get the permutation of its space, where permutations are folded.

    Args:
        skeleton: The model.
        input_activation: Name of the activation.
        permutations: The permutations of the whole model by space.
    """
    family = skeleton.family
    space = family.spaces[input_activation]
    if family.scope[space] == "model":
        return SharedPermutation(given=permutations.get(space))
    if family.scope[space] == "head":
        return SharedPermutation(search=functools.partial(permute_by_head, skeleton.heads))
    return SharedPermutation(search=lambda score, permute: permute(score))


def permute_by_head(heads: Heads, score: Tensor, permute: Callable[[Tensor], Tensor]) -> Tensor:
    """Find a permutation inside each key/value head, from the stacked scores of its query heads.

    Args:
        heads: Numbers of query and key/value heads, and their width.
        score: (out, query heads * width); the query heads of one key/value head are adjacent.
        permute: The permute step as a function of scores.

    Returns:
        The permutation of all query heads' channels.
    """
    rows = len(score)
    # (key/value heads, query heads of each, out, width)
    by_head = score.view(rows, heads.value, -1, heads.width).permute(1, 2, 0, 3)
    permutations = [permute(scores.reshape(-1, heads.width)) for scores in by_head]
    first = torch.arange(heads.value, device=score.device)[:, None] * heads.width
    return heads.spread((torch.stack(permutations) + first).reshape(-1))
