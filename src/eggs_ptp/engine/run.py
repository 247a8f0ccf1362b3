"""The loop: each block is observed unpruned, pruned, and run again for the next one."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.core.finite import finite
from eggs_ptp.core.mask import nonzeros
from eggs_ptp.engine.block_result import BlockResult
from eggs_ptp.engine.capture import Inputs, capture
from eggs_ptp.engine.counted import Counted
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.dense import DenseStream, Target
from eggs_ptp.engine.event import Event, Listener
from eggs_ptp.engine.masks import MaskFile
from eggs_ptp.engine.observe import Observation, join, observe
from eggs_ptp.engine.plan import MatrixPlan, Plan, in_turn, matrices_by_activation
from eggs_ptp.engine.ranks import ALONE, Ranks
from eggs_ptp.engine.readers import prune_groups
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.settled import Settled
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.shelf import Shelf
from eggs_ptp.engine.through import through
from eggs_ptp.engine.tuning import tune_block
from eggs_ptp.engine.usage import Stages, give_back
from eggs_ptp.engine.wants import wants_of
from eggs_ptp.errors import NumericsError
from eggs_ptp.method.apply import Job
from eggs_ptp.method.step import Bound
from eggs_ptp.models.load import Skeleton


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
    dense: DenseStream | None = None  # the dense model's hidden states, where something asks for them
    refresh: bool = False  # statistics are taken again before each group of readers
    dense_stream: bool = False  # blocks are fed what the dense model gives
    masks: MaskFile | None = None  # masks from outside instead of chosen ones
    folded: dict[str, Tensor] | None = None  # orders of spaces that span the model; None: no order will be folded
    counted: Counted = field(default_factory=Counted)
    shelf: Shelf = field(default_factory=Shelf)  # where activations of all windows stand
    ranks: Ranks = ALONE
    cut: Cut = field(default_factory=lambda: Cut.whole(0, 1))  # of the windows that run
    stages: Stages = field(default_factory=Stages)

    def inputs(self, windows: Windows) -> Inputs:
        """Run what comes before the blocks."""
        self.tell("stage", 0, "embedding")
        with self.stages.timed("embedding"):
            cut = Cut.of(len(windows.tokens), self.batch(windows.tokens), self.ranks)
            tokens, place = windows.tokens[cut.mine], (self.dtype, self.device)
            return Inputs(*capture(self.skeleton, self.shards, tokens, *place, cut.sizes, self.shelf), cut)

    def blocks(
        self, inputs: Inputs | None, keep: Callable[[BlockResult], None], start: int = 0, dense: Tensor | None = None
    ) -> None:
        """Prune block after block from `start` on; `keep` receives each one as soon as it is finished.

        `inputs` of block `start`: None is for methods that need no statistics; their hidden states are overwritten.
        `dense` is what the dense model has there, if it is not the same.
        """
        hidden = inputs.hidden if inputs else None
        self.cut = inputs.cut if inputs else self.cut
        kwargs = inputs.kwargs if inputs else [{} for _ in self.skeleton.blocks]
        beside = hidden if dense is None else dense
        self.dense = DenseStream(beside, self.shelf) if beside is not None and self.plan.needs_dense else None
        for index, block in list(enumerate(self.skeleton.blocks))[start:]:
            keep(self._block(index, block, hidden, kwargs[index]))
            give_back()
            self.tell("block", index + 1)

    def _block(self, index: int, block: nn.Module, hidden: Tensor | None, kwargs: Mapping[str, Any]) -> BlockResult:
        name = self.skeleton.block_name(index)
        result = BlockResult(index)
        groups = matrices_by_activation(self.plan.of_block(index))
        with ExitStack() as stack:
            if hidden is not None:
                with self.stages.timed("read"):
                    stack.enter_context(resident(block, name, self.shards, self.dtype, self.device))
            goes_on = hidden is not None and index + 1 < len(self.skeleton.blocks)
            targets = self._advance_dense(block, kwargs, groups, index) if self.dense else {}
            after = None
            if goes_on and self.dense_stream:
                after = self._propagate(block, self.shelf.copy(cast(Tensor, hidden)), kwargs, index)
            rounds = in_turn(groups) if self.refresh else [groups]
            family = self.skeleton.of_block(index)
            settled = Settled(
                family.writers if self.refresh else (), () if hidden is None else hidden.shape, self.shelf
            )
            changing = [matrix.path for matrices in groups.values() for matrix in matrices]
            for together in filter(None, rounds):  # a block that is skipped whole is not observed
                settled.settle(changing)
                seen = self._observe(block, hidden, kwargs, together, targets, index, settled)
                self.tell("stage", index, "prune")
                prune_groups(self, block, together, seen, result)
                stand = {matrix.path for matrices in together.values() for matrix in matrices}
                changing = [path for path in changing if path not in stand]
            settled.settle([linear.path for linear in family.linears] if result.masks else changing)
            if result.masks:
                self._tune(index, cast(Tensor, hidden), kwargs, result)
            with self.stages.timed("read"):
                rest = [tensor for tensor in self._stored(index) if tensor not in result.tensors]
                result.tensors.update({tensor: self.shards.read_sound(tensor) for tensor in rest})
            if after is not None:
                with torch.inference_mode():
                    cast(Tensor, hidden).copy_(after)
            elif goes_on:
                self._propagate(block, cast(Tensor, hidden), kwargs, index, settled)
        return result

    def job(self, matrix: MatrixPlan, *, here: bool = True, shared: bool = False) -> Job:
        """A matrix that will be pruned, with its weight in float32, or without where another rank prunes it.

        If `shared`, all ranks do.
        """
        assert matrix.resolved is not None  # noqa: S101 - nothing else is asked for
        if not here:
            weight, how = torch.empty(matrix.rows, matrix.columns, device="meta"), matrix.resolved
            return Job(matrix.name, weight, how.pattern, how.method, matrix.role)
        weight = self.shards.read(f"{matrix.name}.weight").to(self.device, torch.float32)
        weight = weight.T.contiguous() if matrix.transposed else weight
        given = self.masks.read(matrix.name, matrix.rows, matrix.columns).to(self.device) if self.masks else None
        slabs = self.ranks if shared else ALONE
        return Job(matrix.name, weight, matrix.resolved.pattern, matrix.resolved.method, matrix.role, given, slabs)

    def _observe(
        self,
        block: nn.Module,
        hidden: Tensor | None,
        kwargs: Mapping[str, Any],
        groups: Mapping[str, list[MatrixPlan]],
        targets: Mapping[str, Target],
        index: int,
        settled: Settled,
    ) -> dict[str, Observation]:
        if hidden is None:
            return {}
        self.tell("stage", index, "observe")
        with self.stages.timed("observe"):
            wants = wants_of(groups, lambda method: method.statistics, targets)
            counted = self.counted.tokens(hidden)
            seen = observe(block, hidden, kwargs, wants, self.cut, settled=settled, counted=counted)
        with self.stages.timed("wait"):
            self.ranks.wait()
        with self.stages.timed("sum"):
            join(seen, self.ranks)
        return seen

    def _tune(self, index: int, hidden: Tensor, kwargs: Mapping[str, Any], result: BlockResult) -> None:
        self.tell("stage", index, "tune")
        step, target = self.plan.tune(index), cast(DenseStream, self.dense).hidden
        with self.stages.timed("tune"):
            found, facts = tune_block(self, index, cast(Bound, step), result.masks, hidden, target, kwargs)
        result.tensors.update({name: tensor.cpu() for name, tensor in found.items()})
        result.tuned.update(found)
        tuned = {f"{self.skeleton.block_name(index)}.{path}" for path in result.masks}
        for record in result.records:
            if record["name"] in tuned:
                nonzero = nonzeros(result.tensors[f"{record['name']}.weight"])
                record.update(tune=facts, nonzero=nonzero, updated=True)
        result.masks.clear()

    def _advance_dense(
        self, block: nn.Module, kwargs: Mapping[str, Any], groups: Mapping[str, list[MatrixPlan]], index: int
    ) -> dict[str, Target]:
        dense = cast(DenseStream, self.dense)
        asked = [reads for reads, matrices in groups.items() if any(matrix.compares for matrix in matrices)]
        self.tell("stage", index, "dense")
        with self.stages.timed("dense"):
            targets = dense.advance(block, kwargs, self.skeleton.of_block(index), asked, self.cut)
        self.check_finite(dense.hidden, index)
        return targets

    def _propagate(
        self,
        block: nn.Module,
        hidden: Tensor,
        kwargs: Mapping[str, Any],
        index: int,
        settled: Settled | None = None,
    ) -> Tensor:
        """Replace the hidden states by what the block makes of them."""
        self.tell("stage", index, "propagate")
        settled = settled or Settled((), hidden.shape)
        with self.stages.timed("propagate"), settled.on(block), torch.inference_mode():
            for windows in (windows for leaf in self.cut for windows in leaf):
                part, settled.windows = hidden[windows], windows
                part.copy_(through(block, part.to(self.device), kwargs))
        self.check_finite(hidden, index)
        return hidden

    def check_finite(self, hidden: Tensor, index: int) -> None:
        """Refuse what a block has made of the hidden states if it is not finite.

        Raises:
            NumericsError: it holds NaN or infinity; names the tensor that does so too, or else the block.
        """
        if not self.ranks.all(finite(hidden)):
            for name in self._stored(index):
                self.shards.read_sound(name)
            raise NumericsError(
                f"{self.skeleton.block_name(index)}: its outputs hold NaN or infinity; try --dtype float32, or "
                "check the checkpoint"
            )

    def _stored(self, index: int) -> list[str]:
        return [name for name in self.shards.names if name.startswith(f"{self.skeleton.block_name(index)}.")]

    def batch(self, windows: Tensor) -> int:
        """Windows that run through a block at once."""
        return max(1, self.plan.budget.batch_tokens // int(windows.shape[1]))

    def tell(self, kind: str, block: int, stage: str = "") -> None:
        """Tell whoever listens."""
        self.listener(Event(kind, block, self.plan.blocks, stage))
