"""Which tokens are counted in the statistics of a block."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenFilter:
    """Excludes tokens from statistics; all tokens still run through the block.

    Args:
        skip_first: Tokens excluded at the start of every window.
        massive: Excludes tokens with massive activations: those whose largest |h_j| at the block's input is more than
            this many times the median |h_j| of their window; None for none. Sun et al., arXiv:2402.17762, call
            activations above 1000 times the median massive.
    """

    skip_first: int = 0
    massive: float | None = None

    def mask(self, hidden: Tensor) -> Tensor | None:
        """Return which tokens of `hidden` (windows, seqlen, channels) count, bool (windows, seqlen); None for all."""
        if not self.skip_first and self.massive is None:
            return None
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        mask[:, : self.skip_first] = False
        if self.massive is not None:
            for window, counted in zip(hidden, mask, strict=True):
                magnitude = window.abs()
                counted &= magnitude.amax(1) <= self.massive * magnitude.median()
        return mask
