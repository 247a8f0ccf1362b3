"""The loop: each block is observed unpruned, pruned, and run again for the next one."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.core.mask import density
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.event import Event, Listener
from eggs_ptp.engine.masks import MaskFile
from eggs_ptp.engine.observe import Observation, Want, observe
from eggs_ptp.engine.plan import BATCH_TOKENS, MatrixPlan, Plan, matrices_by_activation
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.usage import Stages
from eggs_ptp.errors import NumericsError
from eggs_ptp.method.apply import Job, Pruned, prune_readers
from eggs_ptp.models.load import Skeleton


@dataclass
class BlockResult:
    """One pruned block: every tensor of it in its stored type, the orders of permuted matrices, the records."""

    index: int
    tensors: dict[str, Tensor]
    orders: dict[str, Tensor]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """What the first block is fed: hidden states (windows, seqlen, hidden), and every block's keyword arguments."""

    hidden: Tensor
    kwargs: list[dict[str, Any]]

    def copy(self) -> "Inputs":
        """The same with hidden states of its own, which a run overwrites."""
        return Inputs(self.hidden.clone(), self.kwargs)


@dataclass
class Run:
    """Everything a run holds on to between blocks."""

    plan: Plan
    skeleton: Skeleton
    shards: Shards
    seed: int
    share_order: bool
    device: torch.device
    dtype: torch.dtype
    listener: Listener
    batch_tokens: int = BATCH_TOKENS
    refresh: bool = False  # statistics are taken again before each group of readers
    dense_stream: bool = False  # blocks are fed what the dense model gives
    masks: MaskFile | None = None  # masks from outside instead of chosen ones
    stages: Stages = field(default_factory=Stages)

    def inputs(self, windows: Windows) -> Inputs:
        """Run what comes before the blocks."""
        self._tell("stage", 0, "embedding")
        with self.stages.timed("embedding"):
            batch = self._batch(windows.tokens)
            return Inputs(*capture(self.skeleton, self.shards, windows.tokens, self.dtype, self.device, batch))

    def blocks(self, inputs: Inputs | None, keep: Callable[[BlockResult], None]) -> None:
        """Prune block after block; `keep` receives each one as soon as it is finished.

        `inputs` None is for methods that need no statistics. Their hidden states are overwritten.
        """
        hidden = inputs.hidden if inputs else None
        kwargs = inputs.kwargs if inputs else [{} for _ in self.skeleton.blocks]
        for index, block in enumerate(self.skeleton.blocks):
            keep(self._block(index, block, hidden, kwargs[index]))
            self._tell("block", index + 1)

    def _block(self, index: int, block: nn.Module, hidden: Tensor | None, kwargs: Mapping[str, Any]) -> BlockResult:
        name = self.skeleton.block_name(index)
        result = BlockResult(index, {}, {}, [])
        groups = matrices_by_activation(self.plan.of_block(index))
        with ExitStack() as stack:
            if hidden is not None:
                with self.stages.timed("read"):
                    stack.enter_context(resident(block, name, self.shards, self.dtype, self.device))
            goes_on = hidden is not None and index + 1 < len(self.skeleton.blocks)
            after = None
            if goes_on and self.dense_stream:
                after = self._propagate(block, cast(Tensor, hidden).clone(), kwargs, index)
            rounds = [{reads: groups[reads]} for reads in groups] if self.refresh else [groups]
            for together in filter(None, rounds):  # a block that is skipped whole is not observed
                seen = self._observe(block, hidden, kwargs, together, index)
                self._tell("stage", index, "prune")
                for reads, matrices in together.items():
                    self._prune_group(block, matrices, reads, seen, result)
            with self.stages.timed("read"):
                stored = [tensor for tensor in self.shards.names if tensor.startswith(f"{name}.")]
                result.tensors.update({t: self.shards.read_sound(t) for t in stored if t not in result.tensors})
            if after is not None:
                with torch.inference_mode():
                    cast(Tensor, hidden).copy_(after)
            elif goes_on:
                self._propagate(block, cast(Tensor, hidden), kwargs, index)
        return result

    def _observe(
        self,
        block: nn.Module,
        hidden: Tensor | None,
        kwargs: Mapping[str, Any],
        groups: Mapping[str, list[MatrixPlan]],
        index: int,
    ) -> dict[str, Observation]:
        if hidden is None:
            return {}
        self._tell("stage", index, "observe")
        with self.stages.timed("observe"):
            return observe(block, hidden, kwargs, _wants(groups), self._batch(hidden))

    def _prune_group(
        self,
        block: nn.Module,
        matrices: list[MatrixPlan],
        reads: str,
        seen: Mapping[str, Observation],
        result: BlockResult,
    ) -> None:
        start = time.perf_counter()
        jobs = []
        for matrix in matrices:
            assert matrix.resolved is not None  # noqa: S101 - groups hold only matrices that will be pruned
            weight = self.shards.read(f"{matrix.name}.weight").to(self.device, torch.float32)
            given = self.masks.read(matrix.name, matrix.rows, matrix.columns).to(self.device) if self.masks else None
            method, pattern = matrix.resolved.method, matrix.resolved.pattern
            jobs.append(Job(matrix.name, weight, pattern, method, matrix.role, given))

        def statistic(matrix: str, wanted: str) -> Tensor:
            activation = reads if STATISTICS[wanted].side == "input" else matrix
            return seen[activation].moments.read(wanted, matrix)

        pruned = prune_readers(jobs, statistic, seed=self.seed, share_order=self.share_order)
        share = (time.perf_counter() - start) / len(jobs)
        for matrix, job in zip(matrices, jobs, strict=True):
            self._keep(block, matrix, job, pruned[job.name], seen.get(reads), share, result)

    def _keep(
        self,
        block: nn.Module,
        matrix: MatrixPlan,
        job: Job,
        pruned: Pruned,
        seen: Observation | None,
        seconds: float,
        result: BlockResult,
    ) -> None:
        tensor = f"{matrix.name}.weight"
        stored = pruned.weight.to(self.shards.dtype(tensor))  # the one cast
        error = None
        if seen is not None:  # the block is in memory, and will run again
            # Replaced, never written to: what is there now may be the mapped file itself.
            linear = cast(nn.Linear, block.get_submodule(matrix.path))
            linear.weight = nn.Parameter(stored.to(self.dtype), requires_grad=False)
            with self.stages.timed("error"):
                error = _output_error(seen.sample, job.weight, stored.float())
        for slot, spent in pruned.seconds.items():
            self.stages.add(slot, spent)
        result.tensors[tensor] = stored.cpu()
        if pruned.order is not None:
            result.orders[matrix.name] = pruned.order.to("cpu", torch.int32)
        record = {
            "name": matrix.name,
            "shape": [matrix.rows, matrix.columns],
            "pattern": str(job.pattern),
            "method": job.method.method.name,
            "density": density(pruned.mask),
            "nonzero": int(stored.count_nonzero()),
            "permuted": pruned.order is not None,
            "updated": "update" in job.method.steps,
            "output_error": error,
            "seconds": seconds,
            **pruned.facts,
        }
        if self.masks is not None:
            record["mask"] = str(self.masks.path)  # not the method's own choice
        result.records.append(record)
        self.listener(Event("matrix", matrix.block, self.plan.blocks, "prune", record))

    def _propagate(self, block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any], index: int) -> Tensor:
        """Replace the hidden states by what the block makes of them."""
        self._tell("stage", index, "propagate")
        with self.stages.timed("propagate"), torch.inference_mode():
            for part in hidden.split(self._batch(hidden)):
                output = block(part, **kwargs)
                part.copy_(output[0] if isinstance(output, tuple) else output)
        if not torch.isfinite(hidden).all():
            raise NumericsError(
                f"{self.skeleton.block_name(index)}: its outputs hold NaN or infinity; try --dtype float32, or "
                "check the checkpoint"
            )
        return hidden

    def _batch(self, windows: Tensor) -> int:
        return max(1, self.batch_tokens // int(windows.shape[1]))

    def _tell(self, kind: str, block: int, stage: str = "") -> None:
        self.listener(Event(kind, block, self.plan.blocks, stage))


def _wants(groups: Mapping[str, list[MatrixPlan]]) -> dict[str, Want]:
    wants = {}
    for reads, matrices in groups.items():
        asked = {matrix.name: matrix.resolved.method.statistics for matrix in matrices if matrix.resolved}
        wants[reads] = Want(matrices[0].path, matrices[0].columns, _of_side("input", *asked.values()))
        for matrix in matrices:
            if outputs := _of_side("output", asked[matrix.name]):
                wants[matrix.name] = Want(matrix.path, matrix.rows, outputs, "output")
    return wants


def _of_side(side: str, *asked: frozenset[str]) -> frozenset[str]:
    return frozenset(name for names in asked for name in names if STATISTICS[name].side == side)


def _output_error(sample: Tensor, dense: Tensor, pruned: Tensor) -> float:
    """||X (W - W')^T||^2 / ||X W^T||^2 over the sampled tokens; 0 where both vanish."""
    lost = (sample @ (dense - pruned).T).square().sum(dtype=torch.float64)
    whole = (sample @ dense.T).square().sum(dtype=torch.float64)
    return float(lost / whole) if whole > 0 else 0.0
