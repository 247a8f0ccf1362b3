"""Exact streaming statistics of activations: sums are collected, means are derived when read.

Each product x * x is rounded once in float32, whatever batch it is in, and the sums over tokens are kept in float64;
so a statistic does not depend on how the calibration tokens were divided into batches beyond float64 rounding, far
below what float32 can show.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.errors import CalibrationError, NumericsError

_IN_CACHE = 1 << 16  # elements converted to float64 at once for a sum
_GRAM_ROWS = 256  # rows of a Gram matrix that one product adds to: 1.6 times as fast as all at once, at 1408 channels

# The sums that statistics are derived from, with their shapes for an activation of `width` channels and the dense
# model's activation of `dense_width` channels.
SUMS: Mapping[str, Callable[[int, int], tuple[int, ...]]] = MappingProxyType({
    "plain": lambda width, _: (width,),
    "square": lambda width, _: (width,),
    "between": lambda width, _: (width,),
    "gram": lambda width, _: (width, width),
    "cross": lambda width, dense_width: (dense_width, width),
})  # fmt: skip


@dataclass(frozen=True)
class Statistic:
    """A statistic of an activation.

    Args:
        side: Whether it is of the linears' "input" or "output", or compares the input with the "dense" model's
            activation.
        sums: Names of the sums that it is derived from.
        derive: Derives it from the sums.
        formula: For documentation, with its shape.
    """

    side: Literal["input", "output", "dense"]
    sums: tuple[str, ...]
    derive: Callable[["Moments"], Tensor]
    formula: str

    def matrix_elements(self, width: int, dense_width: int) -> int:
        """Return the number of elements of its matrix-valued sums; 0 if it has only vectors."""
        shapes = [SUMS[name](width, dense_width) for name in self.sums]
        return sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)

    @property
    def is_matrix(self) -> bool:
        """Whether it is matrix-valued, so that a step that uses it multiplies the weight with it."""
        return self.matrix_elements(1, 1) > 0


class Moments:
    """Running sums over the tokens of one activation.

    Args:
        width: Channels of the activation.
        statistics: Names of the statistics that will be read; only the sums that they need are collected.
        device: Where the sums are kept.
        dense_width: Channels of the dense model's activation, for statistics that compare the two.

    Attributes:
        tokens: Number of tokens so far.
        sums: By name, see `SUMS`. Matrices are float32, as they come from float32 products; vectors are float64.
    """

    def __init__(
        self, width: int, statistics: frozenset[str], device: torch.device | str = "cpu", *, dense_width: int = 0
    ) -> None:
        self.width = width
        self.tokens = 0
        self.sums: dict[str, Tensor] = {}
        for name in sorted({name for statistic in statistics for name in STATISTICS[statistic].sums}):
            shape = SUMS[name](width, dense_width)
            dtype = torch.float32 if len(shape) == 2 else torch.float64
            self.sums[name] = torch.zeros(shape, dtype=dtype, device=device)

    def add(self, activation: Tensor, dense: Tensor | None = None) -> None:
        """Add a batch of whole windows.

        Args:
            activation: (windows, tokens, width), or (tokens, width) for one window.
            dense: The dense model's activation of the same tokens, (..., dense_width); only `cross` needs it.
        """
        x = activation.detach().reshape(-1, self.width).float()  # (tokens, width)
        if "between" in self.sums:
            windows = x.view(*activation.shape[:-2][:1] or (1,), activation.shape[-2], self.width)
            window_sums = windows.sum(1, dtype=torch.float64)  # a two-dimensional activation is one window
            self.sums["between"] += window_sums.square().sum(0) / max(1, windows.shape[1])
        self.tokens += x.shape[0]
        for part in x.split(max(1, _IN_CACHE // self.width)):
            if "plain" in self.sums:
                self.sums["plain"] += part.sum(0, dtype=torch.float64)
            if "square" in self.sums:
                self.sums["square"] += part.square().sum(0, dtype=torch.float64)
        if "gram" in self.sums:
            gram = self.sums["gram"]
            for first in range(0, self.width, _GRAM_ROWS):  # the lower triangle: the upper one is the same
                last = min(first + _GRAM_ROWS, self.width)
                gram[first:last, :last].addmm_(x[:, first:last].T, x[:, :last])
        if "cross" in self.sums:
            assert dense is not None  # noqa: S101 - a request for `cross` comes with a target
            self.sums["cross"].addmm_(dense.reshape(x.shape[0], dense.shape[-1]).float().T, x)

    def merge(self, other: "Moments") -> None:
        """Add the sums over other tokens."""
        self.tokens += other.tokens
        for total, addend in zip(self.pieces(), other.pieces(), strict=True):
            total += addend

    def pieces(self) -> Iterator[Tensor]:
        """Yield views of all sums: matrices a few rows at a time, of Gram matrices the collected half."""
        for name, value in self.sums.items():
            if value.dim() < 2:
                yield value
                continue
            for first in range(0, len(value), _GRAM_ROWS):
                rows = value[first : first + _GRAM_ROWS]
                yield rows[:, : first + _GRAM_ROWS] if name == "gram" else rows

    def read(self, statistic: str, name: str) -> Tensor:
        """Return a statistic in float32.

        Args:
            statistic: Its name.
            name: The matrix, for error messages.

        Raises:
            CalibrationError: There was no token.
            NumericsError: The activation held NaN or infinity; gives the number of channels.
        """
        if not self.tokens:
            raise CalibrationError(
                f"{name}: no calibration token reached this matrix, so it has no {statistic}; give more or other text, "
                "or exclude the matrix"
            )
        value = STATISTICS[statistic].derive(self).float()
        nonfinite = sum(int((~torch.isfinite(part)).sum()) for part in value.view(-1).split(_IN_CACHE))
        if nonfinite:
            raise NumericsError(
                f"{name}: {nonfinite} of {value.numel()} entries of {statistic} are NaN or infinite, so the "
                "activations overflowed or the model is broken; try --dtype float32, or check the checkpoint"
            )
        return value


def _norm(moments: Moments) -> Tensor:
    return (moments.sums["square"] / moments.tokens).sqrt()


def _mean(moments: Moments) -> Tensor:
    return moments.sums["plain"] / moments.tokens


def _variance(moments: Moments) -> Tensor:
    return (moments.sums["square"] / moments.tokens - _mean(moments).square()).clamp_min(0.0)


def _variance_within(moments: Moments) -> Tensor:
    return ((moments.sums["square"] - moments.sums["between"]) / moments.tokens).clamp_min(0.0)


def _gram(moments: Moments) -> Tensor:
    lower = moments.sums["gram"]
    gram = torch.empty_like(lower)
    for first in range(0, moments.width, _GRAM_ROWS):
        last = min(first + _GRAM_ROWS, moments.width)
        torch.div(lower[first:last, :last], moments.tokens, out=gram[first:last, :last])
        gram[:first, first:last] = gram[first:last, :first].T
        corner = gram[first:last, first:last]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return gram


def _cross(moments: Moments) -> Tensor:
    return moments.sums["cross"] / moments.tokens


def _tokens(moments: Moments) -> Tensor:
    return torch.tensor(float(moments.tokens))


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "input_norm": Statistic("input", ("square",), _norm, "n_j = ||X_j||_2 / sqrt(tokens), shape (in,)"),
        "input_mean": Statistic("input", ("plain",), _mean, "sum over tokens of x_j / tokens, shape (in,)"),
        "input_var": Statistic(
            "input", ("plain", "square"), _variance, "mean of x_j^2 minus squared mean, over all tokens, shape (in,)"
        ),
        "input_var_within": Statistic(
            "input",
            ("between", "square"),
            _variance_within,
            "variance around each window's own mean, averaged over tokens, shape (in,)",
        ),
        "output_norm": Statistic("output", ("square",), _norm, "y_i = ||Y_i||_2 / sqrt(tokens), shape (out,)"),
        "gram": Statistic("input", ("gram",), _gram, "X^T X / tokens, shape (in, in)"),
        "cross": Statistic(
            "dense",
            ("cross",),
            _cross,
            "Y^T X / tokens, shape (out, in): X the pruned model's input, Y the dense model's output here",
        ),
        "tokens": Statistic("input", (), _tokens, "number of tokens of which the others are means, shape ()"),
    }
)
