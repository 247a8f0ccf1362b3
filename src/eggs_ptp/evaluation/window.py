"""Text to the windows that losses are measured on, and windows to padded batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from eggs_ptp.calibration.windows import consecutive_windows
from eggs_ptp.errors import CalibrationError

Protocol = Literal["packed", "documents"]
DEFAULT_SEQLEN = 2048
IGNORED = -100  # cross_entropy's own mark for a position without a target


@dataclass(frozen=True, eq=False)
class EvaluationWindows:
    """Token sequences, how many of the last tokens of each are targets, and what was left out.

    `text_tokens` counts the tokens of the whole text (those of all documents that were looked at, with their begin and
    end tokens, for `documents`), `truncated` the documents cut at `seqlen`.
    """

    sequences: Sequence[Tensor]
    scored: Tensor  # int64 (windows,)
    protocol: Protocol
    seqlen: int
    stride: int | None  # None for documents
    text_tokens: int
    truncated: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the windows: two measurements with the same one can be paired."""
        seen = hashlib.sha256()
        for sequence, scored in zip(self.sequences, self.scored.tolist(), strict=True):
            seen.update(torch.tensor([len(sequence), scored]).numpy().astype("<i8").tobytes())
            seen.update(sequence.cpu().numpy().astype("<i8").tobytes())
        return seen.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of like length side by side, padded on the right, where a causal model's earlier positions do not see."""

    chosen: list[int]  # which windows
    ids: Tensor  # int64 [windows, length]
    mask: Tensor  # int64 [windows, length], 1 = a token
    targets: Tensor  # int64 [windows, length], the next token where it counts, else IGNORED


def cut(
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
    """Cut windows of `seqlen` tokens L, which defaults to min(2048, `context`).

    `packed`: the documents joined by `joiner`, tokenised once with the tokenizer's defaults; window k begins at token
    k * stride and the tail that fills none is dropped. With stride = L, the default, windows do not overlap and L - 1
    targets count in each; with a smaller one each window but the first counts only its last `stride` targets, those
    that no window before it has counted, each with at least L - stride tokens before it.
    `documents`: begin token, text, end token (those that the tokenizer has) each on its own, cut at L.

    Raises:
        CalibrationError: too little text, or a window or stride that cannot be.
    """
    length = _window_length(context, seqlen)
    if stride is not None and (protocol != "packed" or not 1 <= stride <= length):
        raise CalibrationError(
            f"stride {stride}: expected 1 to {length}, the tokens of a window, and protocol packed, not {protocol}"
        )
    if protocol == "documents":
        whole = _document_tokens(tokenizer, documents[:max_windows])
        sequences = [document[:length] for document in whole]
        scored = torch.tensor([len(sequence) - 1 for sequence in sequences])
        truncated = sum(len(document) > length for document in whole)
        return EvaluationWindows(sequences, scored, protocol, length, None, sum(map(len, whole)), truncated)
    tokens = torch.tensor(tokenizer(joiner.join(documents), verbose=False)["input_ids"], dtype=torch.long)
    windows = consecutive_windows(tokens, length, max_windows, "the evaluation text")
    step = stride or length
    if step < length:
        windows = tokens.unfold(0, length, step)[:max_windows]
    scored = torch.full((len(windows),), min(step, length - 1))
    scored[0] = length - 1
    return EvaluationWindows(list(windows), scored, protocol, length, step, tokens.numel(), 0)


def batches(windows: EvaluationWindows, batch_tokens: int) -> Iterator[Batch]:
    """Windows in order of length, at most `batch_tokens` tokens (or one window) at once, padding included."""
    for chosen in runs([len(sequence) for sequence in windows.sequences], batch_tokens):
        shape = (len(chosen), max(len(windows.sequences[i]) for i in chosen))
        ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, IGNORED)
        for row, index in enumerate(chosen):
            sequence = windows.sequences[index]
            size, counted = len(sequence), int(windows.scored[index])
            ids[row, :size] = sequence
            mask[row, :size] = 1
            targets[row, size - 1 - counted : size - 1] = sequence[size - counted :]
        yield Batch(chosen, ids, mask, targets)


def runs(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in order of length, in runs whose padded size is at most `batch_tokens` (or one sequence)."""
    run: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if run and lengths[index] * (len(run) + 1) > batch_tokens:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _window_length(context: int | None, seqlen: int | None) -> int:
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
