"""Means over windows or items, paired differences, and their standard errors."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.special import stdtrit

from eggs_ptp.errors import CalibrationError

CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; the latter is None for a single window or item."""

    value: float
    standard_error: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for records."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95 % confidence interval.

    Attributes:
        value: The difference.
        standard_error: Its standard error; None for a single pair.
        low: Lower end of the interval; None for a single pair.
        high: Upper end of the interval; None for a single pair.
        pairs: Number of pairs.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for records."""
        return asdict(self)

    def exp(self) -> "Difference":
        """Turn a difference of logarithms into a ratio.

        exp of the value and of the ends of the interval, which keeps its level as exp is monotone; the standard error
        to first order.
        """
        ratio = math.exp(self.value)
        error = None if self.standard_error is None else ratio * self.standard_error
        low, high = (None if bound is None else math.exp(bound) for bound in (self.low, self.high))
        return Difference(ratio, error, low, high, self.pairs)


def estimate(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """Estimate a mean over targets or items from sums over windows, and its standard error.

    With sums s_w and counts c_w of the windows w = 1 .. n:

        r = sum_w s_w / sum_w c_w
        SE^2 = n / (n - 1) sum_w (s_w - r c_w)^2 / (sum_w c_w)^2

    This is the ratio estimator; with equal counts, SE is the standard deviation of the windows' means over sqrt(n).
    Windows are taken as independent.

    Args:
        sums: Sum over the targets of each window.
        counts: Number of targets in each window.

    Source: Cochran, Sampling Techniques, 1977, chapter 6 (ratio estimators).
    """
    window_sums = torch.tensor(sums, dtype=torch.float64)
    window_counts = torch.tensor(counts, dtype=torch.float64)
    ratio = float(window_sums.sum() / window_counts.sum())
    windows = len(sums)
    if windows < 2:
        return Estimate(ratio, None)
    spread = float((window_sums - ratio * window_counts).square().sum()) * windows / (windows - 1)
    return Estimate(ratio, math.sqrt(spread) / float(window_counts.sum()))


def difference(first: Sequence[float], second: Sequence[float], counts: Sequence[int]) -> Difference:
    """Estimate how much larger `first` is than `second` on the same windows or items, with its 95 % interval.

    With sums a_w of `first`, b_w of `second` and counts c_w:

        d = sum_w (a_w - b_w) / sum_w c_w
        interval: d ± t SE

    SE is that of `estimate` over the differences a_w - b_w, and t the 0.975 quantile of Student's distribution with
    n - 1 degrees of freedom.

    Args:
        first: Sum over the targets of each window.
        second: The same of the other model.
        counts: Number of targets in each window.

    Raises:
        CalibrationError: The two have different numbers of windows or items, or none.
    """
    if not len(first) == len(second) == len(counts) or not counts:
        raise CalibrationError(
            f"{len(first)} and {len(second)} windows or items cannot be paired; measure both models on the same ones"
        )
    mean = estimate([a - b for a, b in zip(first, second, strict=True)], counts)
    if mean.standard_error is None:
        return Difference(mean.value, None, None, None, len(counts))
    margin = float(stdtrit(len(counts) - 1, (1 + CONFIDENCE_LEVEL) / 2)) * mean.standard_error
    return Difference(mean.value, mean.standard_error, mean.value - margin, mean.value + margin, len(counts))
