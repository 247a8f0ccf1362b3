"""Diagonal blocks: how many rows a block has and which columns they keep, by reading."""

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
class Reading:
    """A reading of "diagonal selection" for one pattern; `expander` says what its options mean.

    Raises:
        PatternError: the pattern does not define the block or its diagonal.
        MethodError: options that exclude each other.
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
        """Rows of a block: M when square, M / N when short."""
        return self.pattern.group // (self.pattern.keep if self.block == "short" else 1)

    def keep(self, blocks: Tensor) -> Tensor:
        """The entries of each block that its diagonals keep: N per row, and at least one per column.

        Args:
            blocks: scores, (blocks, height, M).

        Returns:
            Keep mask, bool (blocks, height, M).
        """
        keep, size = self.pattern.keep, self.pattern.group
        if self.diagonal == "best":
            return best_regular(blocks, keep)
        if self.diagonal == "forced":
            main = torch.eye(size, dtype=torch.bool, device=blocks.device)
            return keep_top(blocks.masked_fill(main, torch.inf).flatten(0, 1), self.pattern).view_as(blocks)
        if self.diagonal == "block":
            square = torch.arange(size, device=blocks.device) // keep
            return (square[:, None] == square).expand_as(blocks)
        turned = bands(size, keep, 1 if self.diagonal == "circulant" else keep, self.height).to(blocks.device)
        return most_retained(blocks, turned) if self.offset == "best" else turned[0].expand_as(blocks)
