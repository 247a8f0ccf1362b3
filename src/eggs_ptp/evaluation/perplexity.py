"""Perplexity, by the field's packed windows or document by document."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eggs_ptp.errors import NumericsError
from eggs_ptp.evaluation.estimate import estimate
from eggs_ptp.evaluation.window import IGNORED, Batch, EvaluationWindows, batches, cut
from eggs_ptp.evaluation.window import Protocol as Protocol

Progress = Callable[[int, int], None]  # windows or items done, of so many

BATCH_TOKENS = 4096
LOSS_ROWS = 512  # positions whose logits are in float32 at once: 0.26 GB for a vocabulary of 128 000


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with what it takes to reproduce, to doubt and to pair it."""

    value: float
    protocol: Protocol
    seqlen: int  # tokens of a packed window, or the most that a document may have
    windows: int  # packed windows, or documents
    tokens: int  # targets scored
    truncated: int  # documents cut at seqlen
    nll: float  # mean over the targets, nats
    standard_error: float | None  # of nll, over windows; None where there is only one
    seconds: float
    stride: int | None = None  # tokens between the begins of packed windows; None for documents
    text_tokens: int = 0  # of the whole text, scored or not
    sha256: str = ""  # of the windows
    losses: tuple[float, ...] = ()  # sum over the targets of a window, nats
    targets: tuple[int, ...] = ()  # of each window

    def to_dict(self) -> dict[str, Any]:
        """Plain data for records of many runs: all but what is kept of each window."""
        whole = self.to_record()
        return {key: value for key, value in whole.items() if key not in ("losses", "targets")}

    def to_record(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**dataclasses.asdict(self), "losses": list(self.losses), "targets": list(self.targets)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Perplexity":
        """The reverse of `to_record`."""
        return cls(**{**record, "losses": tuple(record["losses"]), "targets": tuple(record["targets"])})


def perplexity(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    protocol: Protocol,
    seqlen: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    joiner: str = "\n\n",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of `documents` under a causal language model, exp(mean over targets t of -log p(x_t | x_<t)).

    `packed`: the documents joined with a blank line (`joiner`), tokenised once with the tokenizer's defaults, cut into
    floor(tokens / seqlen) windows without overlap, tail dropped; L - 1 targets in each window of L. A `stride` below
    seqlen makes windows overlap, and each counts the targets that none before it has; see `window.cut`.
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
    windows = cut(
        tokenizer,
        documents,
        protocol=protocol,
        context=getattr(getattr(model, "config", None), "max_position_embeddings", None),
        seqlen=seqlen,
        stride=stride,
        max_windows=max_windows,
        joiner=joiner,
    )
    losses = window_losses(model, windows, batch_tokens=batch_tokens, progress=progress)
    return perplexity_of(windows, losses, time.perf_counter() - start)


def perplexity_of(windows: EvaluationWindows, losses: Tensor, seconds: float) -> Perplexity:
    """Perplexity from the loss of each window, (windows,)."""
    sums, targets = losses.tolist(), windows.scored.tolist()
    mean = estimate(sums, targets)
    return Perplexity(
        value=math.exp(mean.value) if mean.value < 700 else math.inf,
        protocol=windows.protocol,
        seqlen=windows.seqlen,
        windows=len(targets),
        tokens=sum(targets),
        truncated=windows.truncated,
        nll=mean.value,
        standard_error=mean.standard_error,
        seconds=seconds,
        stride=windows.stride,
        text_tokens=windows.text_tokens,
        sha256=windows.digest,
        losses=tuple(sums),
        targets=tuple(targets),
    )


def window_losses(
    model: Any, windows: EvaluationWindows, *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
) -> Tensor:
    """Negative log-likelihood of the targets of each window, sum_t -log p(x_t | x_<t), nats, float64 (windows,).

    Raises:
        NumericsError: the loss of a window is NaN or infinite.
    """
    losses = torch.zeros(len(windows.sequences), dtype=torch.float64)
    done = 0
    with evaluating(model):
        for batch in batches(windows, batch_tokens):
            losses[batch.chosen] = _batch_losses(model, batch)
            done += len(batch.chosen)
            if progress:
                progress(done, len(losses))
    check_losses(losses)
    return losses


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Without gradients or dropout; afterwards models train on if they did."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)


def check_losses(losses: Tensor, whose: str = "") -> None:
    """Refuse losses that are no numbers.

    Raises:
        NumericsError: the loss of a window is NaN or infinite.
    """
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        raise NumericsError(
            f"evaluation{whose}: the loss of {len(bad)} of {len(losses)} windows (the first is number {bad[0]}) is "
            "NaN or infinite, so the model overflows or its weights are broken; try --dtype float32, or check the "
            "checkpoint"
        )


def _batch_losses(model: Any, batch: Batch) -> Tensor:
    device = model.device
    logits = model(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device), use_cache=False).logits
    targets = batch.targets.to(logits.device).flatten()
    rows = zip(logits.flatten(0, 1).split(LOSS_ROWS), targets.split(LOSS_ROWS), strict=True)
    losses = [cross_entropy(x.float(), y, reduction="none", ignore_index=IGNORED) for x, y in rows]
    return torch.cat(losses).view(batch.ids.shape).sum(1, dtype=torch.float64).cpu()
