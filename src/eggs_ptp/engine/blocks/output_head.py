"""The modules after the last block, which turn hidden states into logits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.engine.blocks.inputs import BlockStandIn, modules_outside_blocks, replaced_blocks
from eggs_ptp.engine.blocks.run_block import StopForward
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import Skeleton


@contextmanager
def output_head(
    skeleton: Skeleton, reader: CheckpointReader, dtype: torch.dtype, device: torch.device
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Load what follows the last block, as a function from hidden states (tokens, channels) to logits (tokens, vocab).

    It is the model itself with stand-ins for its blocks, so final norms, projections, scales and bounds of logits are
    the model's own. Token embeddings are not needed and not read, unless they are the output head.
    """
    model = skeleton.model
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = dict(modules_outside_blocks(skeleton))
    modules |= {name: module for name, module in model.named_modules() if module is head}

    def logits(hidden: Tensor, *, tuples: bool) -> Tensor:
        stand_ins = [_ConstantBlock(block, hidden[:, None], tuples) for block in skeleton.blocks]  # a window per token
        embedded = hidden.new_zeros(len(hidden), 1, embedding.embedding_dim)
        with replaced_blocks(skeleton.blocks, stand_ins):
            output: Tensor = model(inputs_embeds=embedded, use_cache=False).logits
        return output.flatten(0, -2)

    with ExitStack() as stack:
        for name, module in modules.items():
            if module is not embedding:
                stack.enter_context(loaded_weights(module, name, reader, dtype, device))
        probe = torch.zeros(2, skeleton.hidden_size, dtype=dtype, device=device)
        tuples = False
        try:
            tuples = len(logits(probe, tuples=False)) != len(probe)
        except _ExpectsTuples:
            tuples = True
        yield lambda hidden: logits(hidden, tuples=tuples)


class _ConstantBlock(BlockStandIn):
    """Returns the same hidden states for any input."""

    def __init__(self, block: Any, hidden: Tensor, tuples: bool) -> None:
        super().__init__(block, tuples)
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
        if hidden_states.dim() != self.hidden.dim():  # the model took the first window of a bare tensor
            raise _ExpectsTuples
        return self.output(self.hidden)


class _ExpectsTuples(StopForward):
    """The model expects its blocks to return tuples."""
