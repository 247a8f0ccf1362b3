"""How likely a model finds continuations of contexts: what zero-shot tasks ask."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.errors import CalibrationError, NumericsError
from eggs_ptp.evaluation.perplexity import Progress, evaluating
from eggs_ptp.evaluation.window import runs

SCORE_TOKENS = 2048  # rows of tasks are short: on a CPU larger passes were slower, smaller ones no faster
_SHARING: Final = ("llama", "mistral", "qwen2", "qwen3")  # whose attention takes a mask as it is given
_MASKED: Final = ("sdpa", "eager")  # implementations of attention that can


class Score(NamedTuple):
    """Sum of log-probabilities of a continuation, nats, and whether each of its tokens is the likeliest."""

    likelihood: float
    is_greedy: bool


@dataclass(eq=False)
class _Row:
    """A context and the continuations that branch off it, in one row: each sees the context and itself."""

    context: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)  # of the branches, one behind the other
    branch: list[int] = field(default_factory=list)  # which branch, from 1
    position: list[int] = field(default_factory=list)  # in the text
    asked: list[tuple[int, list[int]]] = field(default_factory=list)  # pair, places in the row that predict its tokens

    def __len__(self) -> int:
        return len(self.context) + len(self.tokens)

    def add(self, pair: int, tokens: Sequence[int]) -> None:
        """Branch off `tokens`; the last one is predicted and predicts nothing."""
        behind, at = len(self.context), len(self)
        self.asked.append((pair, [behind - 1, *range(at, at + len(tokens) - 1)]))
        self.branch += [len(self.asked)] * (len(tokens) - 1)
        self.position += range(behind, behind + len(tokens) - 1)
        self.tokens += tokens[:-1]


def continuation_scores(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    context: int,
    batch_tokens: int = SCORE_TOKENS,
    progress: Progress | None = None,
) -> list[Score]:
    """Score each pair (context tokens, continuation tokens), sum_t log p(continuation_t | all before it).

    Of context and continuation together the last `context` + 1 tokens count. Continuations of one context share a row,
    in which a mask keeps them from each other, where the model's attention takes such a mask; else those that differ in
    their last token alone do. Rows of like length share a forward pass; logits are made from the first position on that
    any row of the pass needs, and taken to float32 at the continuations only. All that changes nothing but rounding.

    Raises:
        CalibrationError: a continuation without tokens, or with more than the model reads.
        NumericsError: a score is NaN or infinite.
    """
    odd = next((len(after) for _, after in pairs if not 0 < len(after) <= context), None)
    if odd is not None:
        raise CalibrationError(f"a continuation of {odd} tokens: expected 1 to {context}, what the model reads at once")
    rows = _rows(pairs, context, shared=_takes_masks(model, max((sum(map(len, pair)) for pair in pairs), default=0)))
    scores: list[Score] = [Score(math.nan, False)] * len(pairs)
    done = 0
    with evaluating(model):
        for chosen in runs([len(row) for row in rows], batch_tokens):
            batch = [rows[which] for which in chosen]
            asked = [pair for row in batch for pair, _ in row.asked]
            for pair, score in zip(asked, _scored(model, batch, pairs), strict=True):
                scores[pair] = score
            done += len(asked)
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
    config = model.config
    window = getattr(config, "sliding_window", None)
    within = not window or longest <= window
    return config.model_type in _SHARING and config._attn_implementation in _MASKED and within


def _rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], context: int, *, shared: bool) -> list[_Row]:
    found: dict[tuple[int, ...], _Row] = {}
    for pair, (before, after) in enumerate(pairs):
        whole = (*before, *after)[-context - 1 :]
        if shared:
            key = whole[: -len(after)]
            found.setdefault(key, _Row(key)).add(pair, after)
        else:
            key = whole[:-1]
            found.setdefault(key, _Row(key)).asked.append((pair, list(range(len(key) - len(after), len(key)))))
    return list(found.values())


def _scored(model: Any, rows: Sequence[_Row], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
    """What the rows ask for, in their order; padding stands on the right, where nothing before it sees it."""
    length = max(map(len, rows))
    ids, branch = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    position = torch.arange(length).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        begin, end = len(row.context), len(row)
        ids[number, :end] = torch.tensor([*row.context, *row.tokens])
        if len(row.asked) > 1:  # one alone goes on from its context as any text does
            branch[number, begin:end], position[number, begin:end] = (
                torch.tensor(row.branch),
                torch.tensor(row.position),
            )
    how: dict[str, Any] = _masked(branch, position, model) if branch.any() else {}
    asked = [(number, pair, place) for number, row in enumerate(rows) for pair, places in row.asked for place in places]
    number, pair, place = torch.tensor(asked).T
    first = int(place.min())
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        how["logits_to_keep"] = length - first
    logits = model(input_ids=ids.to(model.device), use_cache=False, **how).logits
    first = length - logits.shape[1]
    order = [one for row in rows for one, _ in row.asked]
    targets = torch.tensor([token for one in order for token in pairs[one][1]])
    chosen = logits[number.to(logits.device), (place - first).to(logits.device)].float()
    found = chosen.log_softmax(-1).gather(1, targets.to(chosen.device)[:, None])[:, 0].double().cpu()
    wrong = (chosen.argmax(-1).cpu() != targets).double()
    sums = torch.zeros(2, len(pairs), dtype=torch.float64).index_add_(1, pair, torch.stack([found, wrong]))
    return [Score(float(sums[0, one]), not sums[1, one]) for one in order]


def _masked(branch: Tensor, position: Tensor, model: Any) -> dict[str, Tensor]:
    """Additive mask [rows, 1, length, length]: a place sees what stands before it in the context or in its branch."""
    length = branch.shape[1]
    own = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    seen = own & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min)
    return {"attention_mask": mask[:, None].to(model.device), "position_ids": position.to(model.device)}
