"""Verdicts: what a ratio of perplexities means in words, what to do about it, and when text is too little."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """A range of perplexity ratios.

    Attributes:
        highest: The highest ratio of the range.
        words: What such a ratio means.
        can_be_used: Whether a model with such a ratio can be used without more work.
    """

    highest: float
    words: str
    can_be_used: bool


LEVELS = (
    Level(1.02, "as good as dense on this text", can_be_used=True),
    Level(1.1, "close to dense", can_be_used=True),
    Level(1.5, "a clear loss; check it on your own task", can_be_used=True),
    Level(2.5, "a heavy loss; not usable as it is", can_be_used=False),
    Level(float("inf"), "not usable", can_be_used=False),
)
"""Ratios of the perplexity to that of the dense model, the smallest first.

The upper limits rest on Tables 5 and 6 of arXiv:2501.18980 (WikiText-2, the mean of seven zero-shot tasks, 60 % of the
weights removed; guessing gives 35.7 %): Llama 2 7B pruned by RIA has 1.88 times the perplexity of dense and keeps 62 %
of the accuracy above guessing; Llama 3 8B has 3.43 times and keeps 43 %; pruned by magnitude both are past 1000 times
and keep 16 % and none. The lower limits are those of quantisation that people use: Llama 3.1 8B with llama.cpp's Q4_K_M
has 1.03 times the perplexity of dense, with Q3_K_M 1.09 and with Q3_K_S 1.22 (arXiv:2601.14277).
"""

FEW_WINDOWS = 30  # fewer windows make a t interval rough
FEW_TOKENS = 10_000  # fewer predicted tokens say little about other text
PAPER_CALIBRATION_TOKENS = 128 * 2048  # SparseGPT, Wanda, RIA and EGGS-PTP
THIN_CALIBRATION_TOKENS = PAPER_CALIBRATION_TOKENS // 4  # fewer are called thin

_SOLVING_METHODS = ("eggs+", "eggs-max")


@dataclass(frozen=True)
class Verdict:
    """The meaning of a perplexity ratio.

    Attributes:
        ratio: The ratio.
        level: The range that it falls into.
        doubt: Why the range is uncertain; empty if it is not.
        advice: What may lower the ratio; empty for a model that is close to dense.
    """

    ratio: float
    level: Level
    doubt: str
    advice: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The ratio and its meaning: `6.4 times dense: not usable`."""
        return f"{format_ratio(self.ratio)} times dense: {self.level.words}"

    @property
    def text(self) -> str:
        """One line with the headline, the doubt and the advice."""
        advice = f"try {', '.join(self.advice)}" if self.advice else ""
        return "; ".join(part for part in (self.headline, self.doubt, advice) if part)


def judge_ratio(
    ratio: float,
    interval: tuple[float, float] | None = None,
    *,
    method: str | None = None,
    calibration_tokens: int | None = None,
) -> Verdict:
    """Say what a perplexity ratio means.

    Args:
        ratio: Perplexity of the model over that of the dense one.
        interval: Its 95 % interval.
        method: The method that pruned the model, which is then not advised again.
        calibration_tokens: Tokens that it was calibrated on; None if unknown, 0 if it needed none.
    """
    level = level_of(ratio)
    doubt = ""
    if interval is not None and level_of(interval[0]) != level_of(interval[1]):
        low, high = (format_ratio(bound) for bound in interval)
        doubt = f"uncertain, the 95 % interval is {low} to {high}: evaluate on more text"
    if ratio <= LEVELS[1].highest:
        return Verdict(ratio, level, doubt, ())
    advice = ["a milder pattern"]
    if calibration_tokens is None or is_thin(calibration_tokens):
        advice.append("more calibration text")
    if not any(name in (method or "") for name in _SOLVING_METHODS):
        advice.append("--method eggs+")
    if not level.can_be_used:
        advice.append("training with keep_zeros")
    return Verdict(ratio, level, doubt, tuple(advice))


def level_of(ratio: float) -> Level:
    """Return the level of a ratio; NaN is of the last one."""
    return next((level for level in LEVELS if ratio <= level.highest), LEVELS[-1])


def format_ratio(ratio: float) -> str:
    """Format a ratio with as many digits as say something: `1.04`, `6.4`, `640`."""
    if ratio < 2:
        return f"{ratio:.2f}"
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:.3g}" if ratio < 1000 else f"{ratio:.1e}"


def is_thin(calibration_tokens: int) -> bool:
    """Return whether a method that needs calibration text has had little of it."""
    return 0 < calibration_tokens < THIN_CALIBRATION_TOKENS


def thin_calibration(calibration_tokens: int) -> str:
    """Return a warning if there is little calibration text; empty if there is enough, or none is needed."""
    if not is_thin(calibration_tokens):
        return ""
    return (
        f"{calibration_tokens:,} calibration tokens are thin (the papers use {PAPER_CALIBRATION_TOKENS:,}): "
        "more give a better model, see --nsamples and --seqlen"
    )


def little_text(windows: int, tokens: int) -> str:
    """Return a warning if an evaluation has too little text for its intervals; empty if it has enough."""
    if windows >= FEW_WINDOWS and tokens >= FEW_TOKENS:
        return ""
    return (
        f"too little text: {windows} windows, {tokens:,} tokens; for fewer than {FEW_WINDOWS} windows or "
        f"{FEW_TOKENS:,} tokens intervals are rough and say little about other text"
    )
