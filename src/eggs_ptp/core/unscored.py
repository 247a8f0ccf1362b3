"""Weights that a score says nothing about, such as those of inputs that never fired."""

import torch
from torch import Tensor

_FLOOR = 1e-12  # of the largest score, in case the smallest positive one is almost zero


def rank_unscored(score: Tensor, weight: Tensor) -> Tensor:
    """Rank the weights that score 0 by their magnitude, below all positive scores.

    The score of a weight that is not zero is 0 where its input or output never fired during calibration. All of these
    tie, and a tie is decided by column. Here they get s |W_ij| / max |W| instead, with s half the smallest positive
    score (but at least 1e-12 of the largest one), so the largest weights among them are kept.

    Args:
        score: (out, in), finite.
        weight: W, (out, in).

    Returns:
        The same tensor if every weight that is not zero has a score, or if a score is negative; otherwise a new one.
    """
    unscored = (score == 0) & (weight != 0)
    if not bool(unscored.any()) or bool((score < 0).any()):
        return score
    magnitude = weight.to(score.dtype).abs()
    positive = torch.where(score > 0, score, torch.inf).min()
    largest = score.max()
    ceiling = torch.where(largest > 0, torch.maximum(positive / 2, largest * _FLOOR), 1.0)
    return torch.where(unscored, magnitude / magnitude[unscored].max() * ceiling, score)
