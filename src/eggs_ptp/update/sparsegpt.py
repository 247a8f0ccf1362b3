"""SparseGPT: optimal brain surgeon in one sweep over the columns."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import upper_factor
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import MethodError

_LEAF = 8  # columns settled one by one before their effect is carried on, where no group dictates it
_WIDEST_PAIRWISE = 16


def sparsegpt(
    weight: Tensor,
    mask: Tensor | None,
    pattern: AnyPattern,
    gram: Tensor,
    *,
    block_size: Annotated[int, Field(ge=1)] = 128,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    original: bool = False,
) -> tuple[Tensor, Tensor]:
    """Prune column by column, each time correcting the columns to come; the mask is given, or chosen on the way.

    With H = gram + damping * mean(diag gram) * I, H^-1 = U^T U (U upper), for every column j from left to right:
    e = W_:j / U_jj where j is pruned, else 0; W_:k -= e U_jk for all k >= j. Without a mask the lowest W_ij^2 / U_jj^2
    of the updated W go: of every M columns when the sweep reaches them, or unstructured of every `block_size`
    columns, all rows together. `weight` (out, in), `mask` (out, in) True = keep, `gram` (in, in); returns
    weight and mask. `block_size` changes nothing for N:M or for a given mask.

    Channels that never fired (zero on the diagonal of gram) say nothing about their weights. Unstructured, they are
    pruned among themselves, smallest weights first, to the same sparsity as the others; N:M, they go first, lowest
    column first. What is kept of them keeps its value.

    Source: SparseGPT, arXiv:2301.00774, algorithm 1.
    Differs: the sweep runs on R = U^-1, in halves (see `_Sweep`), so that H is never inverted and nearly all work is
    large matrix products; results agree up to rounding. The public code zeroes channels that never fired, so that
    they fill the block's budget and more of the others stay, and prunes one weight too many per block:
    `original=True` does both. Its groups of M start afresh in every block of columns, ours never straddle one.

    Raises:
        PatternError: the columns cannot be cut into groups of M.
        MethodError: `original`, and M does not divide `block_size`.
        NumericsError: H is not positive definite.
    """
    kind = torch.promote_types(gram.dtype, torch.float32)  # a gram in float64 is worked on in float64
    dense = weight.to(kind).T.clone(memory_format=torch.contiguous_format)  # (in, out): a column lies in one piece
    dead = gram.diagonal() == 0
    if original:
        dense[dead] = 0.0
    sweep = _Sweep(dense, upper_factor(gram.to(kind), damping), mask, dead)
    if mask is not None:
        sweep.halve(0, len(dense), _LEAF, sweep.settle)
    elif isinstance(pattern, Pattern):
        pattern.check_width(len(dense), "weight")
        if original and block_size % pattern.group:
            raise MethodError(
                f"steps.update.original: the public code starts groups afresh every {block_size} columns, which groups "
                f"of {pattern.group} do not fill; set steps.update.block_size to a multiple of {pattern.group}"
            )
        places = _Places(pattern, dense)
        sweep.halve(0, len(dense), pattern.group, lambda low, high: sweep.choose_group(low, high, places))
    else:
        sweep.halve(0, len(dense), block_size, lambda low, high: sweep.choose_block(low, high, pattern, original))
    return dense.sub_(sweep.change).T.contiguous(), sweep.keep.T.contiguous() if mask is None else mask


class _Sweep:
    """The state of the sweep, transposed: row j of each tensor is column j of the weight.

    D = dense - final weight satisfies D = E U, so E = D R with R = U^-1: what the settled columns S owe the others J
    is `pending_J` = R_SJ^T D_S, and J stands at W_J + U_JJ^T pending_J with U_JJ = R_JJ^-1. Only small diagonal blocks
    of R are ever inverted. Rows of `change` hold what is pending until they are settled, then D.
    """

    def __init__(self, dense: Tensor, factor: Tensor, mask: Tensor | None, dead: Tensor) -> None:
        self.dense = dense
        self.factor = factor
        self.change = torch.zeros_like(dense)
        self.keep = torch.empty_like(dense, dtype=torch.bool) if mask is None else mask.T.contiguous()
        self.dead = dead
        self._rank = factor.diagonal().square().masked_fill(dead, 0.0).unsqueeze(1)  # 1 / U_jj^2, (in, 1)

    def halve(self, low: int, high: int, unit: int, visit: Callable[[int, int], None]) -> None:
        """Visit columns [low, high) from left to right, at most `unit` at once, carrying in blocks that double."""
        if high - low <= unit:
            visit(low, high)
            return
        units = -(-(high - low) // unit)
        middle = low + units // 2 * unit
        self.halve(low, middle, unit, visit)
        self.carry(low, middle, high)
        self.halve(middle, high, unit, visit)

    def carry(self, low: int, middle: int, high: int) -> None:
        """Add what the settled columns [low, middle) owe to [middle, high)."""
        self.change[middle:high].addmm_(self.factor[low:middle, middle:high].T, self.change[low:middle])

    def standing(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Columns [low, high) as updated by all before them, and the inverse of their block of R."""
        corner = self.factor[low:high, low:high]
        one = torch.eye(high - low, dtype=corner.dtype, device=corner.device)
        inverse = torch.linalg.solve_triangular(corner, one, upper=True)
        return torch.addmm(self.dense[low:high], inverse.T, self.change[low:high]), inverse

    def choose_group(self, low: int, high: int, places: "_Places") -> None:
        now, inverse = self.standing(low, high)
        self.keep[low:high] = places.keep(now.square() * self._rank[low:high])
        self._settle(low, high, now, inverse)

    def choose_block(self, low: int, high: int, pattern: Unstructured, original: bool) -> None:
        now, _ = self.standing(low, high)
        score, keep, dead = now.square() * self._rank[low:high], self.keep[low:high], self.dead[low:high]
        if original:
            keep.copy_(keep_top(score.T, pattern, group="layer", count="original").T)
        else:
            rows, silent = now.shape[1], int(dead.sum())
            # Counted from the first column on, so that the blocks' shares add up to that of the matrix.
            pruned = _count(rows * high, pattern) - _count(rows * low, pattern)
            of_dead = min(max(_count(rows * silent, pattern), pruned - rows * (high - low - silent)), pruned)
            keep[dead] = _keep_all_but(of_dead, now[dead].abs())
            keep[~dead] = _keep_all_but(pruned - of_dead, score[~dead])
        self.halve(low, high, _LEAF, self.settle)

    def settle(self, low: int, high: int) -> None:
        self._settle(low, high, *self.standing(low, high))

    def _settle(self, low: int, high: int, now: Tensor, inverse: Tensor) -> None:
        follow = inverse / inverse.diagonal().unsqueeze(1)  # what column k pays for a unit of column j: row j
        gone = (~self.keep[low:high]).to(now.dtype)
        for j in range(high - low):
            gone[j].mul_(now[j])
            if low + j + 1 < high:
                now[j + 1 :].addr_(follow[j, j + 1 :], gone[j], alpha=-1)
        now -= gone
        torch.sub(self.dense[low:high], now, out=self.change[low:high])


class _Places:
    """The N highest of M rows, column by column, with the tie rule of `keep_top`: lower row pruned first.

    The sweep asks for this once per group, so it is made of a few dense operations: all pairs are compared, and one
    small matrix product counts for each row whom it beats.
    """

    def __init__(self, pattern: Pattern, dense: Tensor) -> None:
        self.pattern = pattern
        if pattern.group > _WIDEST_PAIRWISE:
            return
        pairs = [(k, k - gap) for gap in range(1, pattern.group) for k in range(gap, pattern.group)]
        self._count = dense.new_zeros(pattern.group, len(pairs))
        for pair, (upper, lower) in enumerate(pairs):
            self._count[upper, pair] = 1.0
            self._count[lower, pair] = -1.0
        won_unless_beaten = (self._count < 0).sum(1, keepdim=True)
        self._enough = float(pattern.group - pattern.keep) - won_unless_beaten
        self._beats = dense.new_empty(len(pairs), dense.shape[1])

    def keep(self, score: Tensor) -> Tensor:
        if self.pattern.group > _WIDEST_PAIRWISE:
            return keep_top(score.T, self.pattern).T
        start = 0
        for gap in range(1, len(score)):
            stop = start + len(score) - gap
            torch.ge(score[gap:], score[:-gap], out=self._beats[start:stop])
            start = stop
        return self._count @ self._beats >= self._enough


def _count(weights: int, pattern: Unstructured) -> int:
    return round(round(weights * pattern.sparsity, 9))


def _keep_all_but(pruned: int, score: Tensor) -> Tensor:
    if pruned in (0, score.numel()):
        return torch.full_like(score, not pruned, dtype=torch.bool)
    return keep_top(score.T, Unstructured(pruned / score.numel()), group="layer").T
