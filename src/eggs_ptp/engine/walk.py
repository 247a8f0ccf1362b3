"""Walk: a model run block by block over given tokens, one block in memory at a time, nothing pruned."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eggs_ptp.core.finite import finite
from eggs_ptp.engine.budget import BATCH_TOKENS
from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.observe import Observation, Want, observe
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.through import Given, through
from eggs_ptp.engine.tuning import trainable
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.load import Skeleton


class Walk:
    """`hidden` is what reaches the next block, (windows, seqlen, hidden).

    Raises:
        NumericsError: the embeddings give NaN or infinity.
    """

    def __init__(
        self, skeleton: Skeleton, shards: Shards, tokens: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.skeleton, self.shards, self.dtype, self.device = skeleton, shards, dtype, device
        self.cut = Cut.whole(len(tokens), max(1, BATCH_TOKENS // int(tokens.shape[1])))
        hidden, self.kwargs = capture(skeleton, shards, tokens, dtype, device, self.cut.at_once)
        self.hidden = hidden.clone()  # outside of inference mode, so that gradients may pass

    @contextmanager
    def at(self, index: int) -> Iterator[nn.Module]:
        """Bring a block into memory."""
        block = self.skeleton.blocks[index]
        with resident(block, self.skeleton.block_name(index), self.shards, self.dtype, self.device):
            yield block

    def onward(self, index: int, block: nn.Module, wants: Mapping[str, Want] | None = None) -> dict[str, Observation]:
        """Run a block: the hidden states become its outputs. Returns what `wants` asked to watch.

        Raises:
            NumericsError: the outputs hold NaN or infinity; names the block.
        """
        seen = observe(block, self.hidden, self.kwargs[index], wants or {}, self.cut, onward=True)
        if not finite(self.hidden):
            name = f"{self.shards.folder}: {self.skeleton.block_name(index)}"
            raise NumericsError(f"{name}: its outputs hold NaN or infinity; check the checkpoint")
        return seen

    def function(self, index: int, block: nn.Module) -> Callable[[Tensor], Tensor]:
        """A block in memory as a function of hidden states, through which gradients may pass."""
        given = Given.each(self.kwargs[index], trainable)

        def call(hidden: Tensor) -> Tensor:
            return through(block, hidden, given)

        return call
