"""Perplexity, on packed windows as in the literature, or document by document."""

import dataclasses
import functools
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
from eggs_ptp.evaluation.begin_rule import BeginRule, apply_begin_rule
from eggs_ptp.evaluation.estimate import estimate
from eggs_ptp.evaluation.logits import logits_in_chunks
from eggs_ptp.evaluation.window import IGNORED, Batch, EvaluationWindows, make_windows, padded_batches
from eggs_ptp.evaluation.window import Protocol as Protocol

Progress = Callable[[int, int], None]
"""Called with the number of windows or items done, and of all."""

BATCH_TOKENS = 4096
_MAX_LOG_PERPLEXITY = 700  # exp overflows float64 soon after


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, and everything needed to reproduce it and to pair it with another one.

    Attributes:
        value: The perplexity, exp(`nll`).
        protocol: How the text was cut, see `window.make_windows`.
        seqlen: Tokens in a packed window, or at most in a document.
        windows: Number of packed windows, or of documents.
        tokens: Number of targets scored.
        truncated: Number of documents cut at `seqlen`.
        nll: Mean negative log-likelihood over the targets, nats.
        standard_error: Standard error of `nll`, over windows; None for a single window.
        seconds: Time that the measurement took.
        stride: Tokens between the beginnings of packed windows; None for documents.
        text_tokens: Tokens of the whole text, scored or not.
        sha256: SHA-256 of the windows.
        losses: Sum over the targets of each window, nats.
        targets: Number of targets in each window.
        begin_tokens: The begin tokens that every packed window starts with, see `begin_rule`; empty where windows start
            in mid-text as the papers' do, and for documents.
        begin_reason: Why packed windows begin as they do.
    """

    value: float
    protocol: Protocol
    seqlen: int
    windows: int
    tokens: int
    truncated: int
    nll: float
    standard_error: float | None
    seconds: float
    stride: int | None = None
    text_tokens: int = 0
    sha256: str = ""
    losses: tuple[float, ...] = ()
    targets: tuple[int, ...] = ()
    begin_tokens: tuple[int, ...] = ()
    begin_reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data without the values of each window, for records of many runs."""
        return {key: value for key, value in self.to_record().items() if key not in ("losses", "targets")}

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Perplexity":
        """Rebuild a perplexity from its `to_record`."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return cls(**values)


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
    begin: BeginRule = "auto",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure the perplexity of a causal language model, exp(mean over targets t of -log p(x_t | x_<t)).

    "packed": the documents are joined by `joiner`, tokenised once with the tokenizer's defaults, and cut into
    floor(tokens / seqlen) windows without overlap; the tail is dropped. A window of L tokens has L - 1 targets. A
    `stride` below `seqlen` makes windows overlap, and each scores the targets that no earlier one has; see
    `window.make_windows`. Windows begin in mid-text, except for models that this breaks; see `begin_rule`.

    "documents": begin token, text and end token (those that the tokenizer has) of each document, cut at `seqlen`;
    every token but the first is a target, and all targets weigh the same.

    Windows of similar length share a forward pass, which changes nothing but rounding.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        documents: The text.
        protocol: "packed" or "documents".
        seqlen: Tokens in a window; default min(2048, the model's context).
        stride: Tokens between the beginnings of packed windows; default `seqlen`.
        max_windows: Take only this many windows or documents, from the start.
        joiner: Joins the documents of "packed"; by default a blank line.
        begin: Whether packed windows begin with the begin token: "auto", "always" or "never".
        batch_tokens: Most tokens in a forward pass.
        progress: Called after each forward pass.

    Raises:
        CalibrationError: Too little text, or windows longer than the model's context.
        NumericsError: A loss is NaN or infinite.

    Source: the WikiText-2 loop of GPTQ, SparseGPT and Wanda (arXiv:2306.11695, `lib/eval.py`) for "packed".
    """
    start = time.perf_counter()
    windows = make_windows(
        tokenizer,
        documents,
        protocol=protocol,
        context=getattr(getattr(model, "config", None), "max_position_embeddings", None),
        seqlen=seqlen,
        stride=stride,
        max_windows=max_windows,
        joiner=joiner,
    )
    measure = functools.partial(window_losses, model, batch_tokens=batch_tokens)
    windows = apply_begin_rule(windows, tokenizer, model, rule=begin, measure=measure)
    losses = window_losses(model, windows, batch_tokens=batch_tokens, progress=progress)
    return perplexity_of(windows, losses, time.perf_counter() - start)


def perplexity_of(windows: EvaluationWindows, losses: Tensor, seconds: float) -> Perplexity:
    """Compute the perplexity from the loss of each window.

    Args:
        windows: The windows.
        losses: Sum over the targets of each window, nats, (windows,).
        seconds: Time that the measurement took.
    """
    window_sums = losses.tolist()
    targets = windows.scored.tolist()
    mean = estimate(window_sums, targets)
    return Perplexity(
        value=math.exp(mean.value) if mean.value < _MAX_LOG_PERPLEXITY else math.inf,
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
        losses=tuple(window_sums),
        targets=tuple(targets),
        begin_tokens=windows.begin,
        begin_reason=windows.begin_reason,
    )


def window_losses(
    model: Any, windows: EvaluationWindows, *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
) -> Tensor:
    """Compute the negative log-likelihood of the targets of each window, sum_t -log p(x_t | x_<t).

    Args:
        model: A causal language model.
        windows: The windows.
        batch_tokens: Most tokens in a forward pass.
        progress: Called after each forward pass.

    Returns:
        Nats, float64 (windows,).

    Raises:
        NumericsError: The loss of a window is NaN or infinite.
    """
    losses = torch.zeros(len(windows.sequences), dtype=torch.float64)
    done = 0
    with evaluation_mode(model):
        for batch in padded_batches(windows, batch_tokens):
            losses[batch.indices] = _batch_losses(model, batch)
            done += len(batch.indices)
            if progress:
                progress(done, len(losses))
    check_losses(losses)
    return losses


@contextmanager
def evaluation_mode(*models: Any) -> Iterator[None]:
    """Put models into evaluation mode, without gradients; each returns to the mode it was in."""
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, was_training in zip(models, were_training, strict=True):
            model.train(was_training)


def check_losses(losses: Tensor, model_name: str = "") -> None:
    """Refuse losses that are not finite.

    Args:
        losses: Loss of each window, (windows,).
        model_name: Names the model in the message, such as " of the reference".

    Raises:
        NumericsError: The loss of a window is NaN or infinite.
    """
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        raise NumericsError(
            f"evaluation{model_name}: the loss of {len(bad)} of {len(losses)} windows (the first is number {bad[0]}) "
            "is NaN or infinite, so the model overflows or its weights are broken; try --dtype float32, or check the "
            "checkpoint"
        )


def _batch_losses(model: Any, batch: Batch) -> Tensor:
    """Return the loss of each window of a batch; only some rows of logits are in memory at once."""
    targets = batch.targets.flatten()
    losses = torch.zeros(targets.shape, dtype=torch.float64)
    rows = (targets != IGNORED).nonzero().flatten()
    for chunk, logits in logits_in_chunks(model, batch, rows):
        chunk_targets = targets[chunk].to(logits.device)
        losses[chunk] = cross_entropy(logits.float(), chunk_targets, reduction="none").double().cpu()
    return losses.view(batch.ids.shape).sum(1)
