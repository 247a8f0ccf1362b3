"""Likelihoods of continuations of contexts, which zero-shot tasks are scored by."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.errors import CalibrationError, NumericsError
from eggs_ptp.evaluation.perplexity import Progress, evaluation_mode
from eggs_ptp.evaluation.window import group_by_length

SCORE_TOKENS = 2048  # rows of tasks are short: on a CPU larger passes were slower, smaller ones no faster
SHARING_MODEL_TYPES: Final = ("llama", "mistral", "qwen2", "qwen3")  # their attention uses a given mask unchanged
_MASKED_ATTENTIONS: Final = ("sdpa", "eager")  # implementations of attention that support it


class Score(NamedTuple):
    """The score of a continuation.

    Attributes:
        likelihood: Sum of the log-probabilities of its tokens, nats.
        is_greedy: Whether each of its tokens is the most likely one.
    """

    likelihood: float
    is_greedy: bool


class _Request(NamedTuple):
    """A continuation that a row scores: number of its pair, and the positions in the row that predict its tokens."""

    pair: int
    positions: list[int]


@dataclass(eq=False)
class _Row:
    """A context and the continuations that branch off it, in one row; each sees the context and itself.

    Attributes:
        context: Tokens of the context.
        tokens: Tokens of the branches, one branch after the other, each without its last token.
        branch: The branch of each of these tokens, from 1.
        position: Position of each of these tokens in its text.
        requests: What is scored.
    """

    context: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    requests: list[_Request] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.context) + len(self.tokens)

    def add_branch(self, pair: int, tokens: Sequence[int]) -> None:
        """Add a continuation; its last token is predicted and predicts nothing, so it is left out."""
        start = len(self.context)
        end = len(self)
        self.requests.append(_Request(pair, [start - 1, *range(end, end + len(tokens) - 1)]))
        self.branch += [len(self.requests)] * (len(tokens) - 1)
        self.position += range(start, start + len(tokens) - 1)
        self.tokens += tokens[:-1]


def continuation_scores(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    context: int,
    batch_tokens: int = SCORE_TOKENS,
    progress: Progress | None = None,
) -> list[Score]:
    """Score continuations of contexts, sum_t log p(continuation_t | all tokens before it).

    Of context and continuation together, the last `context` + 1 tokens are used. Continuations of the same context
    share a row, in which a mask keeps them from attending to each other, if the model's attention takes such a mask;
    otherwise only those share a row that differ in their last token alone. Rows of similar length share a forward
    pass. Logits are computed from the first position that any row of the pass needs, and converted to float32 only
    where they are scored. All this changes nothing but rounding.

    Args:
        model: A causal language model.
        pairs: (context tokens, continuation tokens) of each continuation.
        context: Most tokens that the model reads.
        batch_tokens: Most tokens in a forward pass, padding included.
        progress: Called after each forward pass.

    Returns:
        The score of each pair.

    Raises:
        CalibrationError: A continuation without tokens, or with more than `context`.
        NumericsError: A score is NaN or infinite.
    """
    bad_length = next((len(after) for _, after in pairs if not 0 < len(after) <= context), None)
    if bad_length is not None:
        raise CalibrationError(
            f"expected a continuation of 1 to {context} tokens, which the model reads at once, got one of {bad_length}"
        )
    longest = max((len(before) + len(after) for before, after in pairs), default=0)
    rows = _make_rows(pairs, context, shared=_takes_masks(model, longest))
    scores: list[Score] = [Score(math.nan, False)] * len(pairs)
    done = 0
    with evaluation_mode(model):
        for indices in group_by_length([len(row) for row in rows], batch_tokens):
            batch = [rows[index] for index in indices]
            requested = [request.pair for row in batch for request in row.requests]
            for pair, score in zip(requested, _score_rows(model, batch, pairs), strict=True):
                scores[pair] = score
            done += len(requested)
            if progress:
                progress(done, len(pairs))
    bad = [index for index, score in enumerate(scores) if not -math.inf < score.likelihood <= 0]
    if bad:
        raise NumericsError(
            f"evaluation: {len(bad)} of {len(scores)} continuations (the first is number {bad[0]}) have no finite "
            "likelihood, so the model overflows or its weights are broken; try --dtype float32, or check the checkpoint"
        )
    return scores


def _takes_masks(model: Any, longest: int) -> bool:
    """Whether continuations can share a row: the attention takes a mask, and no sliding window cuts the text."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    fits_window = not window or longest <= window
    takes_masks = config._attn_implementation in _MASKED_ATTENTIONS
    return config.model_type in SHARING_MODEL_TYPES and takes_masks and fits_window


def _make_rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], context: int, *, shared: bool) -> list[_Row]:
    """Collect pairs into rows: with `shared` those of one context, else those that differ only in their last token."""
    rows: dict[tuple[int, ...], _Row] = {}
    for pair, (before, after) in enumerate(pairs):
        tokens = (*before, *after)[-context - 1 :]
        if shared:
            row_context = tokens[: -len(after)]
            rows.setdefault(row_context, _Row(row_context)).add_branch(pair, after)
        else:
            row_context = tokens[:-1]
            positions = list(range(len(row_context) - len(after), len(row_context)))
            rows.setdefault(row_context, _Row(row_context)).requests.append(_Request(pair, positions))
    return list(rows.values())


def _score_rows(model: Any, rows: Sequence[_Row], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
    """Score what the rows request, in that order, in one forward pass; rows are padded on the right."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    branch = torch.zeros(len(rows), length, dtype=torch.long)
    position = torch.arange(length).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = len(row.context)
        end = len(row)
        ids[number, :end] = torch.tensor([*row.context, *row.tokens])
        if len(row.requests) > 1:  # a single continuation needs no mask
            branch[number, start:end] = torch.tensor(row.branch)
            position[number, start:end] = torch.tensor(row.position)
    options: dict[str, Any] = _branch_mask(branch, position, model) if branch.any() else {}
    predictions = [
        (number, request.pair, row_position)
        for number, row in enumerate(rows)
        for request in row.requests
        for row_position in request.positions
    ]
    row_index, pair_index, row_positions = torch.tensor(predictions).T
    first = int(row_positions.min())
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = length - first
    logits = model(input_ids=ids.to(model.device), use_cache=False, **options).logits
    first = length - logits.shape[1]
    requested = [request.pair for row in rows for request in row.requests]
    targets = torch.tensor([token for pair in requested for token in pairs[pair][1]])
    predicted = logits[row_index.to(logits.device), (row_positions - first).to(logits.device)].float()
    log_probabilities = predicted.log_softmax(-1).gather(1, targets.to(predicted.device)[:, None])[:, 0].double().cpu()
    wrong = (predicted.argmax(-1).cpu() != targets).double()
    sums = torch.zeros(2, len(pairs), dtype=torch.float64)
    sums.index_add_(1, pair_index, torch.stack([log_probabilities, wrong]))
    return [Score(float(sums[0, pair]), not sums[1, pair]) for pair in requested]


def _branch_mask(branch: Tensor, position: Tensor, model: Any) -> dict[str, Tensor]:
    """Return the model's arguments for rows with branches.

    The mask is additive, [rows, 1, length, length]: a position attends to earlier ones of the context and of its own
    branch.

    Args:
        branch: The branch of each position, [rows, length]; 0 for the context.
        position: Position of each token in its text, [rows, length].
        model: The model.
    """
    length = branch.shape[1]
    own = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    visible = own & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, torch.finfo(model.dtype).min)
    return {"attention_mask": mask[:, None].to(model.device), "position_ids": position.to(model.device)}
