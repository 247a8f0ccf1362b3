"""Perplexity, by the field's packed windows or document by document."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eggs_ptp.calibration.windows import consecutive_windows
from eggs_ptp.errors import CalibrationError, NumericsError

Protocol = Literal["packed", "documents"]
DEFAULT_SEQLEN = 2048

_IGNORED = -100  # cross_entropy's own mark for a position without a target
_LOSS_ROWS = 512  # positions whose logits are in float32 at once: 0.26 GB for a vocabulary of 128 000


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with what it takes to reproduce and to doubt it."""

    value: float
    protocol: Protocol
    seqlen: int  # tokens of a packed window, or the most that a document may have
    windows: int  # packed windows, or documents
    tokens: int  # targets scored
    truncated: int  # documents cut at seqlen
    nll: float  # mean over the targets, nats
    standard_error: float | None  # of nll, over windows; None where there is only one
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for records."""
        return dataclasses.asdict(self)


def perplexity(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    protocol: Protocol,
    seqlen: int | None = None,
    max_windows: int | None = None,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Perplexity of `documents` under a causal language model, exp(mean over targets t of -log p(x_t | x_<t)).

    `packed`: the documents joined with a blank line, tokenised once with the tokenizer's defaults, cut into
    floor(tokens / seqlen) windows without overlap, tail dropped; L - 1 targets in each window of L.
    `documents`: begin token, text, end token (those that the tokenizer has) each on its own, cut at `seqlen`;
    every token but the first is a target, and all targets weigh the same.
    `seqlen` defaults to min(2048, the model's context). `max_windows` takes the first windows or documents only.
    Sequences of like length share a forward pass of at most `batch_tokens` tokens, which changes nothing but rounding.

    Raises:
        CalibrationError: too little text, or windows longer than the model's context.
        NumericsError: the loss is NaN or infinite.

    Source: the WikiText-2 loop of GPTQ, SparseGPT and Wanda (arXiv:2306.11695, `lib/eval.py`) for `packed`.
    """
    start = time.perf_counter()
    length = _window_length(model, seqlen)
    truncated = 0
    if protocol == "packed":
        text = "\n\n".join(documents)
        tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
        sequences = list(consecutive_windows(tokens, length, max_windows, "the evaluation text"))
    else:
        whole = _document_tokens(tokenizer, documents[:max_windows])
        truncated = sum(len(document) > length for document in whole)
        sequences = [document[:length] for document in whole]
    losses = sequence_losses(model, sequences, batch_tokens=batch_tokens, progress=progress)
    targets = torch.tensor([len(sequence) - 1 for sequence in sequences], dtype=torch.float64)
    nll = float(losses.sum() / targets.sum())
    return Perplexity(
        value=float(torch.tensor(nll, dtype=torch.float64).exp()),
        protocol=protocol,
        seqlen=length,
        windows=len(sequences),
        tokens=int(targets.sum()),
        truncated=truncated,
        nll=nll,
        standard_error=_standard_error(losses, targets, nll),
        seconds=time.perf_counter() - start,
    )


def sequence_losses(
    model: Any,
    sequences: Sequence[Tensor],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Negative log-likelihood of each token sequence, sum_t -log p(x_t | x_<t) over t >= 1, nats, float64 (sequences,).

    Raises:
        NumericsError: the loss of a sequence is NaN or infinite.
    """
    losses = torch.zeros(len(sequences), dtype=torch.float64)
    done = 0
    training = model.training
    model.eval()
    try:
        for chosen in _batches([len(sequence) for sequence in sequences], batch_tokens):
            losses[chosen] = _batch_losses(model, [sequences[i] for i in chosen])
            done += len(chosen)
            if progress:
                progress(done, len(sequences))
    finally:
        model.train(training)
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        raise NumericsError(
            f"evaluation: the loss of {len(bad)} of {len(sequences)} windows (the first is number {bad[0]}) is NaN or "
            "infinite, so the model overflows or its weights are broken; try --dtype float32, or check the checkpoint"
        )
    return losses


def _window_length(model: Any, seqlen: int | None) -> int:
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if seqlen is None:
        return min(DEFAULT_SEQLEN, context) if context else DEFAULT_SEQLEN
    if seqlen < 2:
        raise CalibrationError(f"seqlen {seqlen} leaves nothing to predict: expected at least 2 tokens a window")
    if context and seqlen > context:
        raise CalibrationError(f"seqlen {seqlen} is longer than the model's context of {context} tokens; take less")
    return seqlen


def _document_tokens(tokenizer: Any, documents: Sequence[str]) -> list[Tensor]:
    """Begin token, text, end token; documents that are left with nothing to predict are dropped."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"] if documents else []
    found = [torch.tensor([*begin, *ids, *end], dtype=torch.long) for ids in texts if len(begin) + len(ids) > 1]
    if not found:
        raise CalibrationError(f"no document with a token to predict among the {len(documents)} given: give more text")
    return found


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in order of length, in runs whose padded size is at most `batch_tokens` (or one sequence)."""
    run: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if run and (len(run) + 1) * lengths[index] > batch_tokens:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


@torch.inference_mode()
def _batch_losses(model: Any, sequences: Sequence[Tensor]) -> Tensor:
    """Padding stands on the right, where a causal model's earlier positions cannot see it."""
    shape = (len(sequences), max(len(sequence) for sequence in sequences))
    ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, _IGNORED)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
        targets[row, : len(sequence) - 1] = sequence[1:]
    device = model.device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    rows = zip(
        logits.flatten(0, 1).split(_LOSS_ROWS), targets.to(logits.device).flatten().split(_LOSS_ROWS), strict=True
    )
    losses = [cross_entropy(x.float(), y, reduction="none", ignore_index=_IGNORED) for x, y in rows]
    return torch.cat(losses).view(shape).sum(1, dtype=torch.float64).cpu()


def _standard_error(losses: Tensor, targets: Tensor, nll: float) -> float | None:
    """Of the ratio of sums; for windows of one length this is the deviation of their means over sqrt(windows)."""
    count = len(losses)
    if count < 2:
        return None
    spread = (losses - nll * targets).square().sum() * (count / (count - 1))
    return math.sqrt(float(spread)) / float(targets.sum())
