"""Result of a step together with its diagnostics."""

from typing import NamedTuple

from torch import Tensor

Diagnostic = int | float | str


class StepResult(NamedTuple):
    """What a step may return in place of a bare tensor: its result, and diagnostics for the matrix's record.

    Diagnostics are choices that the step made by itself, such as the number of blocks that `B = "auto"` selected, and
    what it measured on the way.
    """

    value: Tensor | tuple[Tensor, Tensor]  # (weight, mask) for an update step
    diagnostics: dict[str, Diagnostic]
