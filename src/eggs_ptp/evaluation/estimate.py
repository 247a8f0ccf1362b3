"""Means over windows or items, paired differences, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.special import stdtrit

from eggs_ptp.errors import CalibrationError

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; None where there is only one window or item."""

    value: float
    standard_error: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for records."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval of confidence 95 %; no interval where there is only one pair."""

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for records."""
        return asdict(self)

    def exp(self) -> "Difference":
        """The ratio that a difference of logarithms stands for, exp of value and bounds; its own error to first order.

        exp is monotone, so the interval keeps its level.
        """
        ratio = math.exp(self.value)
        error = None if self.standard_error is None else ratio * self.standard_error
        low, high = (None if bound is None else math.exp(bound) for bound in (self.low, self.high))
        return Difference(ratio, error, low, high, self.pairs)


def estimate(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """The mean over all that was counted, r = sum_w s_w / sum_w c_w, from the sums s_w of windows w = 1 .. n.

    SE^2 = n / (n - 1) sum_w (s_w - r c_w)^2 / (sum_w c_w)^2: the ratio estimator's; where all windows count alike it is
    the standard deviation of their means over sqrt(n). Windows are taken as independent.

    Source: Cochran, Sampling Techniques, 1977, chapter 6 (ratio estimators).
    """
    total, weight = torch.tensor(sums, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    ratio, size = float(total.sum() / weight.sum()), len(sums)
    if size < 2:
        return Estimate(ratio, None)
    spread = float((total - ratio * weight).square().sum()) * size / (size - 1)
    return Estimate(ratio, math.sqrt(spread) / float(weight.sum()))


def difference(first: Sequence[float], second: Sequence[float], counts: Sequence[int]) -> Difference:
    """How much larger `first` is than `second` on the same windows or items, and its 95 % interval.

    d = sum_w (a_w - b_w) / sum_w c_w with the standard error of `estimate` over the differences a_w - b_w, and
    d ± t SE, t the 0.975 quantile of Student's distribution with n - 1 degrees of freedom.

    Raises:
        CalibrationError: the two do not pair.
    """
    if not len(first) == len(second) == len(counts) or not counts:
        raise CalibrationError(f"{len(first)} and {len(second)} windows or items cannot be paired; measure the same")
    found = estimate([a - b for a, b in zip(first, second, strict=True)], counts)
    if found.standard_error is None:
        return Difference(found.value, None, None, None, len(counts))
    reach = float(stdtrit(len(counts) - 1, (1 + LEVEL) / 2)) * found.standard_error
    return Difference(found.value, found.standard_error, found.value - reach, found.value + reach, len(counts))
