"""All that follows the blocks of a model, run on hidden states from elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eggs_ptp.engine.capture import StandIn, beside, instead
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.through import Signal

if TYPE_CHECKING:
    from eggs_ptp.engine.run import Run
    from eggs_ptp.engine.walk import Walk


@contextmanager
def head_of(run: "Run | Walk") -> Iterator[Callable[[Tensor], Tensor]]:
    """What makes logits (tokens, vocabulary) of the last block's outputs (tokens, hidden), brought into memory.

    It is the model itself with others in the place of its blocks: so whatever it does to logits, it does. Embeddings of
    tokens are not needed, and not read.
    """
    skeleton, model = run.skeleton, run.skeleton.model
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    modules = dict(beside(skeleton)) | {name: module for name, module in model.named_modules() if module is head}

    def logits(hidden: Tensor, *, tuples: bool) -> Tensor:
        given = [_Given(block, hidden[:, None], tuples) for block in skeleton.blocks]  # each token as a window
        embedded = hidden.new_zeros(len(hidden), 1, embedding.embedding_dim)
        with instead(skeleton.blocks, given):
            found: Tensor = model(inputs_embeds=embedded, use_cache=False).logits
        return found.flatten(0, -2)

    with ExitStack() as stack:
        for name, module in modules.items():
            if module is not embedding:
                stack.enter_context(resident(module, name, run.shards, run.dtype, run.device))
        probe = torch.zeros(2, skeleton.hidden_size, dtype=run.dtype, device=run.device)
        tuples = False
        try:
            tuples = len(logits(probe, tuples=False)) != len(probe)
        except _Unpacked:
            tuples = True
        yield lambda hidden: logits(hidden, tuples=tuples)


class _Given(StandIn):
    """Gives the same hidden states whatever it is called with."""

    def __init__(self, block: Any, hidden: Tensor, tuples: bool) -> None:
        super().__init__(block, tuples)
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
        if hidden_states.dim() != self.hidden.dim():  # the model took the first of what is no tuple: a window
            raise _Unpacked
        return self.give(self.hidden)


class _Unpacked(Signal):
    """The model expects tuples of its blocks."""
