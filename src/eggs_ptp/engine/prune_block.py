"""Prunes the matrices of a block by their methods and puts them into the block."""

import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.core.mask import count_nonzeros, density
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.context import BlockState, RunContext
from eggs_ptp.engine.distributed.process_group import NamedTensors
from eggs_ptp.engine.distributed.work_assignment import assign_work
from eggs_ptp.engine.event import Event
from eggs_ptp.engine.permutations import permutation_source, statistic_of
from eggs_ptp.engine.planning.plan import MatrixPlan
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics
from eggs_ptp.method.apply import Job, Pruned, SharedPermutation, prune_consumers
from eggs_ptp.models.fold import space_key


def prune_groups(
    context: RunContext,
    state: BlockState,
    groups: Mapping[str, list[MatrixPlan]],
    statistics: Mapping[str, ActivationStatistics],
) -> None:
    """Prune matrices, divided over the processes, and put them into the block on all of them.

    Args:
        context: The run.
        state: The block.
        groups: The matrices by the input activation that they share.
        statistics: By activation; {} if no method needs any.
    """
    for concurrent in context.group.concurrent(groups):
        owners = assign_work(concurrent, context.group)
        results: dict[str, NamedTensors] = {}
        # Matrices that all ranks prune together come first, while no rank has begun with work of its own.
        by_sharing = sorted(concurrent.items(), key=lambda item: item[1][0].name in owners)
        for activation, matrices in by_sharing:
            results.update(_prune(context, state, activation, matrices, statistics, owners))
        own_results = {name: result for name, result in results.items() if name in owners}
        with context.times.timed("share"):
            results.update(context.group.all_gather_tensors(own_results))
        for activation, matrices in concurrent.items():
            for matrix in matrices:
                tensors, record = results.pop(matrix.name)
                _keep(context, state, matrix, tensors, record, runs_again=activation in statistics)


def _prune(
    context: RunContext,
    state: BlockState,
    activation: str,
    matrices: list[MatrixPlan],
    statistics: Mapping[str, ActivationStatistics],
    owners: Mapping[str, int],
) -> dict[str, NamedTensors]:
    """Prune this process's matrices among the consumers of one activation; return their tensors and records."""
    start = time.perf_counter()
    group = context.group
    jobs = [
        context.job(
            matrix,
            is_local=owners.get(matrix.name, group.rank) == group.rank,
            is_split=matrix.name not in owners,
        )
        for matrix in matrices
    ]
    source = None
    if state.permutations is not None:
        is_fixed = any(matrix.scope == "fixed" for matrix in matrices)
        source = (
            SharedPermutation() if is_fixed else permutation_source(context.skeleton, activation, state.permutations)
        )
    weights = {job.name: job.weight for job in jobs}

    def statistic(matrix: str, name: str) -> Tensor:
        value = statistic_of(statistics, activation, matrix, name)
        if STATISTICS[name].side != "dense" or not statistics[activation].compares_inputs:
            return value
        # The dense model's inputs were summed; the step wants its outputs.
        outputs = torch.empty_like(weights[matrix])
        row_tiles = LOCAL_ROW_TILES if matrix in owners else group
        row_tiles.fill(outputs, lambda rows: (weights[matrix][rows] @ value,), outputs)
        return outputs

    def share_score(matrix: str, score: Tensor | None) -> Tensor:
        return group.broadcast_from(owners[matrix], score) if matrix in owners else cast(Tensor, score)

    pruned = prune_consumers(
        jobs,
        statistic,
        seed=context.seed,
        share_permutation=context.share_permutation,
        shared_permutation=source,
        share_score=share_score,
        row_tiles=group,
    )
    seconds = (time.perf_counter() - start) / max(1, len(pruned))
    return {
        job.name: _stored(context, state, matrix, job, pruned[job.name], statistics.get(activation), seconds)
        for matrix, job in zip(matrices, jobs, strict=True)
        if job.name in pruned
    }


def _stored(
    context: RunContext,
    state: BlockState,
    matrix: MatrixPlan,
    job: Job,
    pruned: Pruned,
    statistics: ActivationStatistics | None,
    seconds: float,
) -> NamedTensors:
    """Return a pruned matrix in its stored type, with its record."""
    weight = pruned.weight.to(context.reader.dtype(f"{matrix.name}.weight"))  # the only cast
    tensors = {"weight": weight}
    if matrix.tune:
        tensors["mask"] = pruned.mask
    if pruned.permutation is not None:
        tensors["permutation"] = pruned.permutation
    output_error = None
    if statistics is not None:
        with context.times.timed("error"):
            output_error = statistics.output_error(job.weight, weight, context.dtype)
    for slot, slot_seconds in pruned.seconds.items():
        context.times.add(slot, slot_seconds)
    is_folded = state.permutations is not None
    record = {
        "name": matrix.name,
        "shape": [matrix.rows, matrix.columns],
        "pattern": str(job.pattern),
        "method": job.method.method.name,
        "density": density(pruned.mask),
        "nonzero": count_nonzeros(weight),
        "permuted": pruned.permutation is not None,
        "in_order": isinstance(job.pattern, Pattern) and (pruned.permutation is None or is_folded),
        "updated": job.method.updates,
        "output_error": output_error,
        "seconds": seconds,
        **pruned.diagnostics,
    }
    if matrix.transposed:
        record["transposed"] = True
    if matrix.routed:
        record["routed"] = True
        if statistics:
            record["tokens"] = statistics.moments.tokens
            record["all_tokens"] = statistics.saw_all_tokens
    if context.given_masks is not None:
        record["mask"] = str(context.given_masks.path)  # not the method's own choice
    return tensors, record


def _keep(
    context: RunContext,
    state: BlockState,
    matrix: MatrixPlan,
    tensors: Mapping[str, Tensor],
    record: dict[str, Any],
    *,
    runs_again: bool,
) -> None:
    """Put a pruned matrix into the result, and into the block if that is in memory and runs again."""
    weight = tensors["weight"].T.contiguous() if matrix.transposed else tensors["weight"]
    if runs_again:
        # Replaced, never written to: the present parameter may be the dense weight that others still use.
        linear = cast(nn.Linear, state.block.get_submodule(matrix.path))
        linear.weight = nn.Parameter(weight.to(context.dtype), requires_grad=False)
    state.result.tensors[f"{matrix.name}.weight"] = weight.cpu()
    if matrix.tune:
        state.masks[matrix.path] = tensors["mask"].T if matrix.transposed else tensors["mask"]
    if "permutation" in tensors:
        _keep_permutation(context, state, matrix, tensors["permutation"])
    state.result.records.append(record)
    context.listener(Event("matrix", matrix.block, context.plan.blocks, "prune", record))


def _keep_permutation(context: RunContext, state: BlockState, matrix: MatrixPlan, permutation: Tensor) -> None:
    """Keep a permutation by the matrix's name, or, where it is to be folded, by its space."""
    key = matrix.name
    if state.permutations is not None:
        family = context.skeleton.family
        key = space_key(family, context.skeleton.block_name(matrix.block), matrix.space)
        if key in state.permutations:
            return  # of the whole model, known from the start
        if family.scope[matrix.space] == "head":
            permutation = context.skeleton.heads.gather(permutation)
    state.result.permutations[key] = permutation.to("cpu", torch.int32)
