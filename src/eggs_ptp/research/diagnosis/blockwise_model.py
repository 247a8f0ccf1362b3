"""A model that runs block by block over given tokens, with one block in memory at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eggs_ptp.core.finite import is_finite
from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.run_block import BlockKwargs, run_block, trainable
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.planning.plan import BATCH_TOKENS
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.load import Skeleton


class BlockwiseModel:
    """A model at the start of a block-by-block forward pass.

    Args:
        skeleton: The model without weights.
        reader: Its checkpoint.
        tokens: Token ids, (windows, seqlen).
        dtype: Of weights and hidden states.
        device: Where blocks run.

    Attributes:
        hidden: The input of the next block, (windows, seqlen, channels).
        kwargs: For each block, its other arguments.

    Raises:
        NumericsError: The embeddings give NaN or infinity.
    """

    def __init__(
        self, skeleton: Skeleton, reader: CheckpointReader, tokens: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.skeleton = skeleton
        self.reader = reader
        self.dtype = dtype
        self.device = device
        self._shard = WindowShard.single(len(tokens), max(1, BATCH_TOKENS // int(tokens.shape[1])))
        hidden, self.kwargs = capture_block_inputs(skeleton, reader, tokens, dtype, device, self._shard.batch_windows)
        self.hidden = hidden.clone()  # made outside of inference mode, so that gradients can flow through it

    @contextmanager
    def loaded_block(self, index: int) -> Iterator[nn.Module]:
        """Load the weights of a block while the context lasts."""
        block = self.skeleton.blocks[index]
        with loaded_weights(block, self.skeleton.block_name(index), self.reader, self.dtype, self.device):
            yield block

    def advance(
        self, index: int, block: nn.Module, requests: Mapping[str, StatisticRequest] | None = None
    ) -> dict[str, ActivationStatistics]:
        """Run a loaded block and replace `hidden` by its outputs.

        Args:
            index: Of the block.
            block: From `loaded_block`.
            requests: Statistics to collect, by activation name.

        Returns:
            The requested statistics.

        Raises:
            NumericsError: The outputs hold NaN or infinity; names the block.
        """
        statistics = collect_statistics(
            block, self.hidden, self.kwargs[index], requests or {}, self._shard, advance=True
        )
        if not is_finite(self.hidden):
            name = f"{self.reader.folder}: {self.skeleton.block_name(index)}"
            raise NumericsError(f"{name}: its outputs hold NaN or infinity; check the checkpoint")
        return statistics

    def differentiable(self, index: int, block: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a loaded block as a function of hidden states that gradients can flow through."""
        kwargs = BlockKwargs.map(self.kwargs[index], trainable)

        def call(hidden: Tensor) -> Tensor:
            return run_block(block, hidden, kwargs)

        return call
