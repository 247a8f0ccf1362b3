"""The begin rule: whether packed evaluation windows begin with the begin token, which the papers' windows do not."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from eggs_ptp.calibration.tokens import begin_tokens
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.window import EvaluationWindows

BeginRule = Literal["auto", "always", "never"]
BEGIN_RULES: Final[tuple[str, ...]] = get_args(BeginRule)

_NEEDS_BEGIN: Final = "gemma"  # what the model types of families begin with that are broken without a begin token
_BREAKS: Final = 1.1  # perplexity without begin tokens over that with them, above which a model is broken without
_MEASURED_WINDOWS: Final = 4  # that this is measured on


class RecordedRule(NamedTuple):
    """The rule of results that new ones are to be compared with.

    Attributes:
        begin: Their begin tokens; empty if their windows begin in mid-text.
        name: The model that they belong to.
    """

    begin: tuple[int, ...]
    name: str


def apply_begin_rule(
    windows: EvaluationWindows,
    tokenizer: Any,
    model: Any,
    *,
    rule: BeginRule = "auto",
    recorded: RecordedRule | None = None,
    measure: Callable[[EvaluationWindows], Tensor],
) -> EvaluationWindows:
    """Decide whether windows begin with the begin token, and return those that do, or the same.

    The papers' windows begin in mid-text, which is kept wherever it can be, so that numbers compare. "auto" departs
    from it for models that it breaks: Gemma models, and models whose perplexity on the first 4 windows is more than
    10 % higher than with begin tokens.

    Args:
        windows: Windows that begin in mid-text.
        tokenizer: The tokenizer. For "auto", one that writes no begin token before a text leaves windows as they are.
        model: The model to decide by: of a pair the dense one.
        rule: "auto", "always" or "never".
        recorded: The rule of results to compare with, which "auto" follows where it would have to measure.
        measure: Returns the loss of each window, nats.

    Raises:
        CalibrationError: The rule is none of these or does not fit the protocol or the tokenizer, or windows are too
            short.
    """
    if rule not in BEGIN_RULES:
        raise CalibrationError(f"begin: expected one of {', '.join(BEGIN_RULES)}, got {rule!r}")
    if windows.protocol != "packed":
        if rule == "never":
            raise CalibrationError(
                "begin: expected auto or always with protocol documents, in which every document begins with the begin "
                "token, got never; leave it out, or evaluate with protocol packed"
            )
        return windows
    begin = begin_tokens(tokenizer)
    if rule == "always" and not begin:
        if getattr(tokenizer, "bos_token_id", None) is None:
            raise CalibrationError("begin: expected a tokenizer with a begin token, got one without; leave out begin")
        begin = (tokenizer.bos_token_id,)
    if rule == "never" or not begin:
        return replace(windows, begin_reason="as requested") if begin else windows
    if rule == "always":
        return with_begin(windows, begin, "as requested")
    model_type = str(getattr(getattr(model, "config", None), "model_type", ""))
    if model_type.startswith(_NEEDS_BEGIN):
        return with_begin(windows, begin, f"{model_type} models are broken without it")
    if recorded:
        reason = f"as for {recorded.name}"
        return with_begin(windows, recorded.begin, reason) if recorded.begin else replace(windows, begin_reason=reason)
    return _decide_by_loss(windows, with_begin(windows, begin, ""), measure)


def _decide_by_loss(
    plain: EvaluationWindows, begun: EvaluationWindows, measure: Callable[[EvaluationWindows], Tensor]
) -> EvaluationWindows:
    """Return windows with begin tokens if the first ones have a perplexity without that is more than 10 % higher."""
    losses = []
    for windows in (plain, begun):
        first = replace(
            windows,
            sequences=windows.sequences[:_MEASURED_WINDOWS],
            scored=windows.scored[:_MEASURED_WINDOWS],
        )
        losses.append(float(measure(first).sum()) / max(1, int(first.scored.sum())))
    nats = losses[0] - losses[1]
    ratio = math.exp(min(nats, 700.0))
    count = min(_MEASURED_WINDOWS, len(plain.sequences))
    which = "the window" if count == 1 else f"the first {count} windows"
    reason = f"without it the perplexity of {which} is {ratio:.3g} times as high"
    return replace(begun, begin_reason=reason) if ratio > _BREAKS else replace(plain, begin_reason=reason)


def with_begin(windows: EvaluationWindows, begin: tuple[int, ...], reason: str) -> EvaluationWindows:
    """Return packed windows with begin tokens in place of the first tokens of each: it predicts the same targets.

    A window that has begin tokens right after these, of a chat whose template writes them, begins with those instead
    and is shorter.

    Args:
        windows: The windows.
        begin: The begin tokens.
        reason: Why they begin so, for the output.

    Raises:
        CalibrationError: Windows are too short for anything else.
    """
    size = len(begin)
    if windows.seqlen <= size:
        raise CalibrationError(
            f"seqlen: expected more than the {size} begin tokens of every window, got {windows.seqlen}; give a larger "
            "seqlen"
        )
    first = torch.tensor(begin, dtype=torch.long)
    sequences = [
        sequence[size:]
        if torch.equal(sequence[size : 2 * size], first)
        else torch.cat([first.to(sequence.device), sequence[size:]])
        for sequence in windows.sequences
    ]
    longest = torch.tensor([len(sequence) - size for sequence in sequences])
    scored = torch.minimum(windows.scored, longest)
    return replace(windows, sequences=sequences, scored=scored, begin=begin, begin_reason=reason)


def describe_begin(begin: tuple[int, ...] | list[int], reason: str) -> str:
    """Return a clause that says how packed windows begin and why; empty where nobody need be told.

    Args:
        begin: The begin tokens of the windows.
        reason: Why they begin so.
    """
    if not begin:
        return ""
    return f"every window begins with the begin token{f': {reason}' if reason else ''}"
