"""Evaluation windows: cuts text into the token windows that losses are measured on, and pads them to batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from eggs_ptp.calibration.tokens import begin_tokens, token_ids
from eggs_ptp.calibration.windows import consecutive_windows
from eggs_ptp.errors import CalibrationError

Protocol = Literal["packed", "documents"]
DEFAULT_SEQLEN = 2048
IGNORED = -100  # marks a position without a target, as in cross_entropy


@dataclass(frozen=True, eq=False)
class EvaluationWindows:
    """Token windows, and which of their tokens are targets.

    Attributes:
        sequences: Tokens of each window, int64 (length,).
        scored: How many of the last tokens of each window are targets, int64 (windows,).
        protocol: How the text was cut, see `make_windows`.
        seqlen: Tokens in a packed window, or at most in a document.
        stride: Tokens between the beginnings of packed windows; None for documents.
        text_tokens: Tokens of the whole text; for documents, of all that were read, with begin and end tokens.
        truncated: Documents cut at `seqlen`.
        begin: The begin tokens that every packed window starts with, see `begin_rule`; empty where windows start in
            mid-text, and for documents, which always have the begin token.
        begin_reason: Why packed windows begin as they do; empty where the tokenizer writes no begin token.
    """

    sequences: Sequence[Tensor]
    scored: Tensor
    protocol: Protocol
    seqlen: int
    stride: int | None
    text_tokens: int
    truncated: int
    begin: tuple[int, ...] = ()
    begin_reason: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of windows and targets: two measurements with the same digest can be paired."""
        digest = hashlib.sha256()
        for sequence, scored in zip(self.sequences, self.scored.tolist(), strict=True):
            digest.update(torch.tensor([len(sequence), scored]).numpy().astype("<i8").tobytes())
            digest.update(sequence.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of similar length, padded on the right, which a causal model's earlier positions do not attend to.

    Attributes:
        indices: Which windows they are.
        ids: Token ids, int64 [windows, length].
        mask: Attention mask, int64 [windows, length], 1 = a token.
        targets: The next token where it is scored, else `IGNORED`, int64 [windows, length].
    """

    indices: list[int]
    ids: Tensor
    mask: Tensor
    targets: Tensor


def make_windows(
    tokenizer: Any,
    documents: Sequence[str],
    *,
    protocol: Protocol,
    context: int | None,
    seqlen: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    joiner: str = "\n\n",
) -> EvaluationWindows:
    """Cut text into windows of L = `seqlen` tokens.

    "packed": the documents are joined by `joiner` and tokenised once with the tokenizer's defaults. Window k begins at
    token k * stride; the tail that does not fill a window is dropped. With stride = L windows do not overlap, and each
    scores L - 1 targets. With a smaller stride, each window but the first scores only its last `stride` targets, those
    that no earlier window has scored, each with at least L - stride tokens of context.

    "documents": begin token, text and end token (those that the tokenizer has, unless the text has them itself, as a
    chat may) of each document are a window, cut at L tokens.

    Args:
        tokenizer: The model's tokenizer.
        documents: The text.
        protocol: "packed" or "documents".
        context: Most tokens that the model reads; None if it has no limit.
        seqlen: Tokens in a window; default min(2048, `context`).
        stride: Tokens between the beginnings of packed windows; default `seqlen`.
        max_windows: Take only this many windows or documents, from the start.
        joiner: Joins the documents of "packed".

    Raises:
        CalibrationError: Too little text, or a window length or stride that is out of range.
    """
    length = _window_length(context, seqlen)
    if stride is not None and (protocol != "packed" or not 1 <= stride <= length):
        raise CalibrationError(
            f"stride: expected 1 to {length}, the tokens of a window, with protocol packed, got {stride} with "
            f"protocol {protocol}"
        )
    if protocol == "documents":
        tokenised = _tokenise_documents(tokenizer, documents[:max_windows])
        sequences = [document[:length] for document in tokenised]
        scored = torch.tensor([len(sequence) - 1 for sequence in sequences])
        truncated = sum(len(document) > length for document in tokenised)
        text_tokens = sum(map(len, tokenised))
        return EvaluationWindows(sequences, scored, protocol, length, None, text_tokens, truncated)
    tokens = torch.tensor(token_ids(joiner.join(documents), tokenizer), dtype=torch.long)
    windows = consecutive_windows(tokens, length, max_windows, "the evaluation text")
    step = stride or length
    if step < length:
        windows = tokens.unfold(0, length, step)[:max_windows]
    scored = torch.full((len(windows),), min(step, length - 1))
    scored[0] = length - 1
    return EvaluationWindows(list(windows), scored, protocol, length, step, tokens.numel(), 0)


cut = make_windows
"""Former name of `make_windows`."""


def padded_batches(windows: EvaluationWindows, batch_tokens: int) -> Iterator[Batch]:
    """Yield all windows in batches, sorted by length.

    Args:
        windows: The windows.
        batch_tokens: Most tokens in a batch, padding included; a longer window is a batch of its own.
    """
    lengths = [len(sequence) for sequence in windows.sequences]
    for indices in group_by_length(lengths, batch_tokens):
        shape = (len(indices), max(lengths[index] for index in indices))
        ids = torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, IGNORED)
        for row, index in enumerate(indices):
            sequence = windows.sequences[index]
            size = len(sequence)
            scored = int(windows.scored[index])
            ids[row, :size] = sequence
            mask[row, :size] = 1
            targets[row, size - 1 - scored : size - 1] = sequence[size - scored :]
        yield Batch(indices, ids, mask, targets)


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Sort sequences by length and divide them into batches.

    Args:
        lengths: Length of each sequence.
        batch_tokens: Most tokens in a batch after padding; a longer sequence is a batch of its own.

    Yields:
        The indices of the sequences in each batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _window_length(context: int | None, seqlen: int | None) -> int:
    if seqlen is None:
        return min(DEFAULT_SEQLEN, context) if context else DEFAULT_SEQLEN
    if seqlen < 2:
        raise CalibrationError(f"seqlen: expected at least 2, so that a token can be predicted, got {seqlen}")
    if context and seqlen > context:
        raise CalibrationError(
            f"seqlen: {seqlen} is longer than the model's context of {context} tokens; give at most {context}"
        )
    return seqlen


def _tokenise_documents(tokenizer: Any, documents: Sequence[str]) -> list[Tensor]:
    """Return begin token, text and end token of each document; documents with nothing to predict are dropped."""
    begin = list(begin_tokens(tokenizer)) or ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"] if documents else []
    tokenised = []
    for document, ids in zip(documents, texts, strict=True):
        text = ids[len(begin) :] if ids[: len(begin)] == begin else ids
        if len(begin) + len(text) > 1:
            ends = _ends(tokenizer, document, ids)
            tokenised.append(torch.tensor([*begin, *text, *([] if ends else end)], dtype=torch.long))
    if not tokenised:
        raise CalibrationError(
            f"no document with a token to predict among the {len(documents)} documents; give more text"
        )
    return tokenised


def _ends(tokenizer: Any, document: str, ids: Sequence[int]) -> bool:
    """Return whether a text has the end token itself, as a chat has; white space may follow it."""
    end = getattr(tokenizer, "eos_token", None)
    return ids[-1:] == [tokenizer.eos_token_id] or bool(end and document.rstrip().endswith(end))
