"""A result together with what an ingredient decided on the way to it."""

from typing import NamedTuple

from torch import Tensor

Fact = int | float | str


class Noted(NamedTuple):
    """An ingredient may return this instead of a bare result: the result, and facts for the matrix's record.

    Facts are decisions that were not options, such as the number of blocks that `B = "auto"` came to.
    """

    value: Tensor | tuple[Tensor, Tensor]  # an update step's are weight and mask
    facts: dict[str, Fact]
