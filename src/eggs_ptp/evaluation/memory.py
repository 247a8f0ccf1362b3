"""Estimate of the memory that an evaluation takes."""

from collections.abc import Sequence
from typing import Any

import torch

from eggs_ptp.engine.resources import anonymous_memory
from eggs_ptp.evaluation.logits import chunk_rows, has_separate_body
from eggs_ptp.evaluation.perplexity import BATCH_TOKENS
from eggs_ptp.evaluation.window import EvaluationWindows

_LOSS_COPIES = 3  # of a chunk of logits: as computed, in float32, log-softmax
_FIDELITY_COPIES = 7  # of two models' logits, with probabilities and their products
_SCRATCH = 1 << 26  # bytes: threads' buffers, and what the allocator keeps


def expected_memory(models: Sequence[Any], windows: EvaluationWindows) -> int:
    """Estimate the bytes at the peak of an evaluation: what is held now, weights included, and what passes add.

    Args:
        models: The loaded model, and the one that it is compared with.
        windows: The windows to run.
    """
    longest = max(map(len, windows.sequences))
    tokens = min(max(BATCH_TOKENS, longest), sum(map(len, windows.sequences)))
    added = max(_pass_bytes(model, tokens, longest) for model in models)
    if len(models) > 1:
        added += sum(_hidden_bytes(model, tokens) for model in models)
    copies = _FIDELITY_COPIES if len(models) > 1 else _LOSS_COPIES
    vocabulary = max(model.config.vocab_size for model in models)
    added += copies * 4 * vocabulary * min(tokens, chunk_rows(vocabulary))
    added += sum(tokens * vocabulary * model.dtype.itemsize for model in models if not has_separate_body(model))
    on_gpu = models[0].device.type == "cuda"
    held = torch.cuda.memory_allocated(models[0].device) if on_gpu else anonymous_memory()
    return int(held + added + _SCRATCH)


def _pass_bytes(model: Any, tokens: int, longest: int) -> int:
    """The largest activations of a block, and the hidden states around it."""
    config = model.config
    inside = [parameter.shape for name, parameter in model.named_parameters() if parameter.dim() == 2 and "." in name]
    vocabulary = config.vocab_size
    widest = max((size for shape in inside for size in shape if size != vocabulary), default=config.hidden_size)
    per_token = model.dtype.itemsize * (3 * widest + 8 * config.hidden_size)
    if getattr(config, "_attn_implementation", None) == "eager":
        per_token += 3 * 4 * int(getattr(config, "num_attention_heads", 1)) * longest
    return int(tokens * per_token)


def _hidden_bytes(model: Any, tokens: int) -> int:
    """The output of every block, which is kept to be compared."""
    return tokens * int(model.config.num_hidden_layers) * int(model.config.hidden_size) * int(model.dtype.itemsize)
