"""Logits of a batch, some rows at a time, so that those of all positions are never in memory together."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.engine.blocks.run_block import StopForward
from eggs_ptp.errors import ModelError
from eggs_ptp.evaluation.window import Batch

CHUNK_BYTES = 1 << 27  # of the logits of a chunk in float32
_MOST_ROWS = 512
_LEAST_ROWS = 16

LogitChunks = Iterator[tuple[Tensor, Tensor]]
"""Yields row numbers, and the logits (rows, vocabulary) of these rows."""


def chunk_rows(vocabulary: int) -> int:
    """Return how many rows of logits are computed at once: `CHUNK_BYTES` in float32, but 16 to 512 rows."""
    return min(_MOST_ROWS, max(_LEAST_ROWS, CHUNK_BYTES // (4 * max(1, vocabulary))))


def logits_in_chunks(model: Any, batch: Batch, rows: Tensor) -> LogitChunks:
    """Run a model over a batch once, and its output head over a few rows at a time.

    The body of the model runs before this function returns, so forward hooks have been called by then. Then the model
    runs again for each chunk with its body replaced by the hidden states of these rows: what follows the body, such as
    scales and bounds of logits, is the model's own. The logits equal those of one forward pass to rounding. A model
    whose class is not from transformers may do anything behind its body, so it runs as a whole, and the logits of its
    batch are in memory together.

    Args:
        model: A causal language model.
        batch: The windows.
        rows: The positions of the flattened batch whose logits are needed, in ascending order.

    Raises:
        ModelError: The body of a class of transformers cannot be told from its head.
    """
    ids = batch.ids.to(model.device)
    inputs = {"input_ids": ids, "attention_mask": batch.mask.to(model.device), "use_cache": False}
    if not has_separate_body(model):
        logits = model(**inputs).logits.flatten(0, 1)
        return ((chunk, logits[chunk.to(logits.device)]) for chunk in rows.split(chunk_rows(logits.shape[-1])))
    body, output = _run_body(model, inputs)
    return _head_chunks(model, body, output, rows)


def has_separate_body(model: Any) -> bool:
    """Whether a model is a class of transformers with a body, such as `LlamaForCausalLM.model`, and a head after it."""
    is_of_transformers = type(model).__module__.startswith("transformers.")
    return is_of_transformers and getattr(model, model.base_model_prefix, None) is not None


def _run_body(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model's body and its output; its head does not run."""
    entered: list[Any] = []
    outputs: list[Any] = []

    def enter(module: Any, args: Any) -> None:  # noqa: ARG001 - a hook's signature
        entered.append(module)

    def leave(module: Any, args: Any, output: Any) -> None:  # noqa: ARG001 - a hook's signature
        if module is entered[0]:
            outputs.append(output)
            raise StopForward

    # OPT's head is fed by `model.decoder`, and `model` itself never runs.
    bodies = {id(body): body for body in (getattr(model, model.base_model_prefix), model.get_decoder())}.values()
    hooks = [
        hook for body in bodies for hook in (body.register_forward_pre_hook(enter), body.register_forward_hook(leave))
    ]
    try:
        model(**inputs)
    except StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not outputs:
        expected = " or ".join(type(body).__name__ for body in bodies)
        raise ModelError(
            f"{type(model).__name__}: expected its forward pass to run {expected}, but it ran neither, so its output "
            "head cannot be run by itself"
        )
    return entered[0], outputs[0]


def _head_chunks(model: Any, body: Any, output: Any, rows: Tensor) -> LogitChunks:
    """Yield the logits of the rows, with the model's body replaced."""
    hidden = output.last_hidden_state.flatten(0, 1)
    for chunk in rows.split(chunk_rows(model.config.vocab_size)):
        chunk_output = copy.copy(output)
        chunk_output.last_hidden_state = hidden[chunk.to(hidden.device)][None]
        ids = torch.zeros(1, len(chunk), dtype=torch.long, device=model.device)
        with _forward_returns(body, chunk_output), torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
        yield chunk, logits.flatten(0, 1)


@contextmanager
def _forward_returns(module: Any, output: Any) -> Iterator[None]:
    """Have a module return a given output whatever its input."""
    own = vars(module).get("forward")  # set by accelerate where weights are moved between devices
    module.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
