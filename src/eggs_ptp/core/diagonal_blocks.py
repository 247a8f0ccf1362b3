"""Diagonal blocks of EGGS-PTP: how many rows a block has, and which of its entries are kept."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.regular import bands, best_regular, most_retained
from eggs_ptp.errors import MethodError, PatternError

Diagonal = Literal["circulant", "staircase", "forced", "block", "best"]
Height = Literal["square", "short"]
Offset = Literal[0, "best"]


@dataclass(frozen=True)
class DiagonalBlocks:
    """Specification of EGGS-PTP's diagonal blocks for a pattern; the options are those of the step `expander`.

    Attributes:
        pattern: N:M.
        diagonal: Columns kept by row t of a block: "circulant" (t + k) mod M, k < N; "staircase" (t N + k) mod M;
            "forced" t and the N - 1 best others; "block" squares of N on the main diagonal; "best" those of the doubly
            regular block that retains most score.
        block: Rows of a block: "square" M, "short" M / N (staircase only).
        offset: 0, or "best": shift a circulant or staircase by the columns that retain most score.

    Raises:
        PatternError: The pattern does not define the block or its diagonal.
        MethodError: Options that exclude each other.
    """

    pattern: Pattern
    diagonal: Diagonal = "circulant"
    block: Height = "square"
    offset: Offset = 0

    def __post_init__(self) -> None:
        divides = self.pattern.group % self.pattern.keep == 0
        if self.block == "short" and self.diagonal != "staircase":
            raise MethodError(
                f"steps.select.block: 'short' is defined for diagonal 'staircase' only, not for {self.diagonal!r}; "
                "set steps.select.diagonal to 'staircase', or steps.select.block to 'square'"
            )
        if self.block == "short" and not divides:
            raise PatternError(
                f"steps.select.block: 'short' blocks have M/N rows, so N must divide M, which it does not in "
                f"{self.pattern}; set steps.select.block to 'square'"
            )
        if self.diagonal == "block" and not divides:
            raise PatternError(
                f"diagonal 'block' lines up squares of N, so N must divide M, which it does not in {self.pattern}; "
                "set it to 'circulant', 'staircase', 'forced' or 'best'"
            )
        if self.offset == "best" and self.diagonal not in ("circulant", "staircase"):
            raise MethodError(
                f"steps.select.offset: 'best' is defined for diagonals 'circulant' and 'staircase', not for "
                f"{self.diagonal!r}; set steps.select.offset to 0"
            )

    @property
    def height(self) -> int:
        """Rows of a block: M if square, M / N if short."""
        return self.pattern.group // (self.pattern.keep if self.block == "short" else 1)

    def keep(self, blocks: Tensor) -> Tensor:
        """Return the entries of each block that its diagonals keep: N per row, and at least one per column.

        Args:
            blocks: Scores, (blocks, height, M).

        Returns:
            Keep mask, bool (blocks, height, M).
        """
        keep = self.pattern.keep
        size = self.pattern.group
        if self.diagonal == "best":
            return best_regular(blocks, keep)
        if self.diagonal == "forced":
            main_diagonal = torch.eye(size, dtype=torch.bool, device=blocks.device)
            forced = blocks.masked_fill(main_diagonal, torch.inf)
            return keep_top(forced.flatten(0, 1), self.pattern).view_as(blocks)
        if self.diagonal == "block":
            square = torch.arange(size, device=blocks.device) // keep
            return (square[:, None] == square).expand_as(blocks)
        step = 1 if self.diagonal == "circulant" else keep
        offsets = bands(size, keep, step, self.height).to(blocks.device)
        return most_retained(blocks, offsets) if self.offset == "best" else offsets[0].expand_as(blocks)
