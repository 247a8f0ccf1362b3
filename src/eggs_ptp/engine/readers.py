"""Readers of the activations of a block on their way through their methods, and what becomes of them in the block."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.core.mask import density, nonzeros
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.engine.block_result import BlockResult
from eggs_ptp.engine.event import Event
from eggs_ptp.engine.observe import Observation
from eggs_ptp.engine.orders import order_of, statistic_of
from eggs_ptp.engine.plan import MatrixPlan
from eggs_ptp.engine.ranks import ALONE, Work
from eggs_ptp.engine.turn import dealt
from eggs_ptp.method.apply import Job, Pruned, prune_readers
from eggs_ptp.models.fold import space_key

if TYPE_CHECKING:
    from eggs_ptp.engine.run import Run


def prune_groups(
    run: "Run",
    block: nn.Module,
    groups: Mapping[str, list[MatrixPlan]],
    seen: Mapping[str, Observation],
    result: BlockResult,
) -> None:
    """Prune the matrices of each activation, shared out over the ranks, and put them into the block on all of them."""
    for together in run.ranks.at_once(groups):
        owners = dealt(together, run.ranks)
        done: dict[str, Work] = {}
        # Those that take all ranks come first, while none has begun with what others need not wait for.
        for reads, matrices in sorted(together.items(), key=lambda group: group[1][0].name in owners):
            done.update(_prune(run, reads, matrices, seen, owners))
        mine = {name: work for name, work in done.items() if name in owners}
        with run.stages.timed("share"):
            done.update(run.ranks.exchanged(mine))
        for reads, matrices in together.items():
            for matrix in matrices:
                _keep(run, block if reads in seen else None, matrix, *done.pop(matrix.name), result)


def _prune(
    run: "Run",
    reads: str,
    matrices: list[MatrixPlan],
    seen: Mapping[str, Observation],
    owners: Mapping[str, int],
) -> dict[str, Work]:
    """What this rank's matrices among the readers of one activation become, and their records."""
    start, ranks = time.perf_counter(), run.ranks
    jobs = [
        run.job(matrix, here=owners.get(matrix.name, ranks.rank) == ranks.rank, shared=matrix.name not in owners)
        for matrix in matrices
    ]
    family, heads = run.skeleton.family, run.skeleton.heads
    one_order = None if run.folded is None else order_of(family, heads, reads, run.folded)
    weights = {job.name: job.weight for job in jobs}

    def statistic(matrix: str, wanted: str) -> Tensor:
        value = statistic_of(seen, reads, matrix, wanted)
        if wanted != "cross" or not seen[reads].of_inputs:
            return value
        put_out = torch.empty_like(weights[matrix])  # what the dense model reads becomes what it puts out
        slabs = ALONE if matrix in owners else ranks
        slabs.fill(put_out, lambda rows: (weights[matrix][rows] @ value,), put_out)
        return put_out

    def everywhere(matrix: str, score: Tensor | None) -> Tensor:
        return ranks.everywhere(owners[matrix], score) if matrix in owners else cast(Tensor, score)

    pruned = prune_readers(
        jobs,
        statistic,
        seed=run.seed,
        share_order=run.share_order,
        one_order=one_order,
        everywhere=everywhere,
        slabs=ranks,
    )
    share = (time.perf_counter() - start) / max(1, len(pruned))
    return {
        job.name: _finished(run, matrix, job, pruned[job.name], seen.get(reads), share)
        for matrix, job in zip(matrices, jobs, strict=True)
        if job.name in pruned
    }


def _finished(
    run: "Run", matrix: MatrixPlan, job: Job, pruned: Pruned, seen: Observation | None, seconds: float
) -> Work:
    stored = pruned.weight.to(run.shards.dtype(f"{matrix.name}.weight"))  # the one cast
    tensors = {"weight": stored}
    if matrix.tune:
        tensors["mask"] = pruned.mask
    if pruned.order is not None:
        tensors["order"] = pruned.order
    error = None
    if seen is not None:
        with run.stages.timed("error"):
            error = seen.output_error(job.weight, stored, run.dtype)
    for slot, spent in pruned.seconds.items():
        run.stages.add(slot, spent)
    record = {
        "name": matrix.name,
        "shape": [matrix.rows, matrix.columns],
        "pattern": str(job.pattern),
        "method": job.method.method.name,
        "density": density(pruned.mask),
        "nonzero": nonzeros(stored),
        "permuted": pruned.order is not None,
        "in_order": isinstance(job.pattern, Pattern) and (pruned.order is None or run.folded is not None),
        "updated": job.method.updates,
        "output_error": error,
        "seconds": seconds,
        **pruned.facts,
    }
    record |= {"transposed": True} if matrix.transposed else {}
    if matrix.routed:
        seen_by = {"tokens": seen.moments.tokens, "all_tokens": seen.everything} if seen else {}
        record |= {"routed": True, **seen_by}
    if run.masks is not None:
        record["mask"] = str(run.masks.path)  # not the method's own choice
    return tensors, record


def _keep(
    run: "Run",
    block: nn.Module | None,
    matrix: MatrixPlan,
    tensors: Mapping[str, Tensor],
    record: dict[str, Any],
    result: BlockResult,
) -> None:
    """Put a pruned matrix into the block, if that is in memory and will run again, and into the result."""
    stored = tensors["weight"].T.contiguous() if matrix.transposed else tensors["weight"]
    if block is not None:
        # Replaced, never written to: what is there now may be the dense weight that others still look at.
        linear = cast(nn.Linear, block.get_submodule(matrix.path))
        linear.weight = nn.Parameter(stored.to(run.dtype), requires_grad=False)
    result.tensors[f"{matrix.name}.weight"] = stored.cpu()
    if matrix.tune:
        result.masks[matrix.path] = tensors["mask"].T if matrix.transposed else tensors["mask"]
    if "order" in tensors:
        _keep_order(run, matrix, tensors["order"], result)
    result.records.append(record)
    run.listener(Event("matrix", matrix.block, run.plan.blocks, "prune", record))


def _keep_order(run: "Run", matrix: MatrixPlan, order: Tensor, result: BlockResult) -> None:
    name, family = matrix.name, run.skeleton.family
    if run.folded is not None:
        name = space_key(family, run.skeleton.block_name(matrix.block), matrix.space)
        if name in run.folded:
            return  # of the whole model, known from the start
        if family.reach[matrix.space] == "head":
            order = run.skeleton.heads.gather(order)
    result.orders[name] = order.to("cpu", torch.int32)
