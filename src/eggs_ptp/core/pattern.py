"""Sparsity patterns: N:M (N kept of every M) and unstructured ratios."""

import re
from dataclasses import dataclass

from eggs_ptp.errors import PatternError

_EXPECTED = "a pattern is N:M with 0 < N < M (N kept of every M, such as 2:4) or a sparsity such as 0.5"


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every `group` consecutive inputs of a row, `keep` weights are kept and the rest are zero.

    N is the number **kept**, as in NVIDIA's and PyTorch's documentation. The code of SparseGPT, Wanda, RIA and
    DSnoT counts the pruned ones: their 1:4 is `Pattern(3, 4)`. 2:4 and 4:8 are the same either way.

    Attributes:
        keep: N.
        group: M.

    Raises:
        PatternError: Unless `0 < keep < group`.
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.group:
            raise PatternError(f"pattern {self.keep}:{self.group} keeps {self.keep} of {self.group}: {_EXPECTED}")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def density(self) -> float:
        """Share of weights kept, N / M."""
        return self.keep / self.group

    def check_width(self, width: int, name: str) -> None:
        """Refuse a matrix whose rows cannot be cut into whole groups.

        Args:
            width: Input features of the matrix.
            name: Its name.

        Raises:
            PatternError: `width` is not a multiple of `group`; names the matrix.
        """
        if width % self.group:
            raise PatternError(
                f"{name}: {width} input features cannot be cut into groups of {self.group} for pattern {self}; "
                f"skip it (--exclude '{name}', or a [[targets]] rule with skip = true) or give it another pattern"
            )


@dataclass(frozen=True)
class Unstructured:
    """Unstructured sparsity: the share `sparsity` of the weights of a comparison group is zero, at any position.

    Attributes:
        sparsity: Share of weights pruned.

    Raises:
        PatternError: Unless `0 < sparsity < 1`.
    """

    sparsity: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sparsity < 1.0:
            raise PatternError(f"sparsity {self.sparsity:g} is not between 0 and 1: {_EXPECTED}")

    def __str__(self) -> str:
        return f"{self.sparsity:g}"

    @property
    def density(self) -> float:
        """Share of weights kept, 1 - sparsity."""
        return 1.0 - self.sparsity

    def check_width(self, width: int, name: str) -> None:
        """Accept any width."""


AnyPattern = Pattern | Unstructured


def parse_pattern(text: str) -> AnyPattern:
    """Parse `"2:4"` or `"0.5"`.

    Raises:
        PatternError: The text is neither N:M nor a sparsity.
    """
    if match := re.fullmatch(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", text):
        return Pattern(int(match[1]), int(match[2]))
    try:
        return Unstructured(float(text))
    except ValueError:
        raise PatternError(f"pattern {text!r} is not understood: {_EXPECTED}") from None
