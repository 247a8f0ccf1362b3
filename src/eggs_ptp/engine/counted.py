"""Which tokens count in the statistics of a block."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counted:
    """Tokens that are left out: the first of every window, and those whose hidden states are massive.

    `massive`: a token whose largest |h_j| at the block's input is more than so many times the median |h_j| of its
    window (Sun et al., arXiv:2402.17762, call activations beyond 1000 times massive). All run through the block.
    """

    skip_first: int = 0
    massive: float | None = None

    def tokens(self, hidden: Tensor) -> Tensor | None:
        """Which of the tokens of `hidden` (windows, seqlen, width) count, bool (windows, seqlen); None: all do."""
        if not self.skip_first and self.massive is None:
            return None
        counted = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        counted[:, : self.skip_first] = False
        if self.massive is not None:
            for window, here in zip(hidden, counted, strict=True):
                size = window.abs()
                here &= size.amax(1) <= self.massive * size.median()
        return counted
