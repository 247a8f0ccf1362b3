"""The fixed parts of a run (`RunContext`), and what changes while one block is pruned (`BlockState`)."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.core.finite import is_finite
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.event import Event, Listener
from eggs_ptp.engine.planning.plan import MatrixPlan, Plan
from eggs_ptp.engine.resources import StageTimes
from eggs_ptp.engine.statistics.dense_stream import DenseStream
from eggs_ptp.engine.statistics.token_filter import TokenFilter
from eggs_ptp.engine.tensors.activation_store import ActivationStore
from eggs_ptp.engine.tensors.masks import MaskFile
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import NumericsError
from eggs_ptp.method.apply import Job
from eggs_ptp.models.load import Skeleton


@dataclass(frozen=True)
class RunContext:
    """The fixed parts of a run.

    Args:
        plan: What happens to every matrix.
        skeleton: The model without weights.
        reader: Its checkpoint.
        seed: Of all randomness, together with module names.
        share_permutation: Whether consumers of one activation share a permutation, where none is folded.
        device: Where blocks are computed.
        dtype: Type in which blocks are computed.
        listener: Is notified of progress.
        refresh_statistics: Whether statistics are collected again before each group of matrices.
        propagate_dense: Whether blocks are fed the dense model's hidden states instead of the pruned model's.
        given_masks: Masks from a file in place of chosen ones.
        token_filter: Which tokens are counted in statistics.
        store: Allocates the activations of all windows.
        group: The processes of the run.
        times: Seconds by stage.
    """

    plan: Plan
    skeleton: Skeleton
    reader: CheckpointReader
    seed: int
    share_permutation: bool
    device: torch.device
    dtype: torch.dtype
    listener: Listener
    refresh_statistics: bool = False
    propagate_dense: bool = False
    given_masks: MaskFile | None = None
    token_filter: TokenFilter = field(default_factory=TokenFilter)
    store: ActivationStore = field(default_factory=ActivationStore)
    group: ProcessGroup = SINGLE_PROCESS
    times: StageTimes = field(default_factory=StageTimes)

    def batch_windows(self, windows: Tensor) -> int:
        """Return how many of `windows` (windows, seqlen) run through a block at once."""
        return max(1, self.plan.budget.batch_tokens // int(windows.shape[1]))

    def notify(self, kind: str, block: int, stage: str = "") -> None:
        """Notify the listener."""
        self.listener(Event(kind, block, self.plan.blocks, stage))

    @contextmanager
    def loaded_block(self, index: int) -> Iterator[nn.Module]:
        """Load the weights of a block while the context lasts."""
        block, name = self.skeleton.blocks[index], self.skeleton.block_name(index)
        with ExitStack() as stack:
            with self.times.timed("read"):
                stack.enter_context(loaded_weights(block, name, self.reader, self.dtype, self.device))
            yield block

    def job(self, matrix: MatrixPlan, *, is_local: bool = True, is_split: bool = False) -> Job:
        """Return a matrix with its weight in float32, ready to be pruned.

        Args:
            matrix: Its plan.
            is_local: Whether this process prunes it; without, the weight is on the meta device.
            is_split: Whether all processes prune it together, row tile by row tile.
        """
        assert matrix.resolved is not None  # noqa: S101 - skipped matrices have no job
        pattern, method = matrix.resolved.pattern, matrix.resolved.method
        if not is_local:
            empty = torch.empty(matrix.rows, matrix.columns, device="meta")
            return Job(matrix.name, empty, pattern, method, matrix.role)
        weight = self.reader.read(f"{matrix.name}.weight").to(self.device, torch.float32)
        weight = weight.T.contiguous() if matrix.transposed else weight
        mask = None
        if self.given_masks:
            mask = self.given_masks.read(matrix.name, matrix.rows, matrix.columns).to(self.device)
        row_tiles = self.group if is_split else LOCAL_ROW_TILES
        return Job(matrix.name, weight, pattern, method, matrix.role, mask, row_tiles)

    def stored_tensors(self, index: int) -> list[str]:
        """Return the names of a block's tensors in the checkpoint."""
        prefix = f"{self.skeleton.block_name(index)}."
        return [name for name in self.reader.names if name.startswith(prefix)]

    def check_finite(self, hidden: Tensor, index: int) -> None:
        """Refuse outputs of a block that are not finite, on any process.

        Raises:
            NumericsError: Names the tensor of the checkpoint that is not finite either, or else the block.
        """
        if not self.group.all_true(is_finite(hidden)):
            for name in self.stored_tensors(index):
                self.reader.read_sound(name)
            raise NumericsError(
                f"{self.skeleton.block_name(index)}: its outputs hold NaN or infinity; try --dtype float32, or "
                "check the checkpoint"
            )


@dataclass
class BlockResult:
    """One pruned block.

    Args:
        index: Of the block.
        tensors: All its tensors by their names in the checkpoint, in their stored types.
        permutations: Of permuted matrices by name or, where they are to be folded, of the block's spaces.
        records: One for each pruned matrix.
        tuned: Names of the tensors that tuning has changed.
    """

    index: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    permutations: dict[str, Tensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    tuned: set[str] = field(default_factory=set)


@dataclass
class BlockState:
    """One block while it is pruned.

    Args:
        index: Of the block.
        block: The block; its weights are in memory if there are hidden states.
        kwargs: Its keyword arguments.
        hidden: What reaches it, (windows, seqlen, channels), overwritten by its outputs; None if no method needs
            activations.
        shard: The windows of this process.
        dense: The dense model's hidden states at its input, overwritten likewise; None if no method needs them.
        permutations: Permutations of the whole model by space, where permutations are folded; otherwise None.
        result: What has become of it so far.
        masks: Masks of its pruned matrices by module path, where they will be tuned.
    """

    index: int
    block: nn.Module
    kwargs: Mapping[str, Any]
    hidden: Tensor | None
    shard: WindowShard
    dense: DenseStream | None
    permutations: Mapping[str, Tensor] | None
    result: BlockResult
    masks: dict[str, Tensor] = field(default_factory=dict)
