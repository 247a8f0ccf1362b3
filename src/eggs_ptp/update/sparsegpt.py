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

_COLUMNS_PER_STEP = 8  # columns pruned one by one before their errors are carried on, where no group size dictates it
_DEAD_FACTOR = 1e-16  # of the smallest 1 / U_jj^2; ranks weights of inputs that are always zero below all others
_MAX_GROUP_PAIRWISE = 16  # widest group whose columns are all compared with one another


def sparsegpt(
    weight: Tensor,
    mask: Tensor | None,
    pattern: AnyPattern,
    gram: Tensor,
    *,
    block_size: Annotated[int, Field(ge=1)] = 128,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    relative_damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    original: bool = False,
) -> tuple[Tensor, Tensor]:
    """Prune column by column, each time correcting the columns that follow.

    With H = gram + damping * mean(diag gram) * I + relative_damping * diag gram and H^-1 = U^T U (U upper), for every
    column j from left to right: e = W_:j / U_jj where j is pruned, else 0; W_:k -= e U_jk for all k >= j. Without a
    mask the weights of lowest W_ij^2 / U_jj^2, with the updated W, are pruned: of every M columns when the sweep gets
    to them or, unstructured, of every `block_size` columns, all rows together.

    Channels that are always zero (zero on the diagonal of gram) say nothing about their weights. For an unstructured
    pattern they are pruned among themselves, smallest weights first, to the same sparsity as the others; for N:M they
    are pruned first, smallest weights first. Those of their weights that are kept keep their value.

    Args:
        weight: W, (out, in).
        mask: Keep mask, bool (out, in); None to choose it during the sweep.
        pattern: N:M, or unstructured.
        gram: X^T X / tokens, (in, in).
        block_size: Columns whose weights are compared with one another when an unstructured mask is chosen, at least 1;
            128 by default. It changes nothing for N:M or for a given mask.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.
        relative_damping: Share of each entry of gram's diagonal that is added to it, at least 0; 0 by default. Where
            few channels have most of the energy, as in language models, it keeps the weights of all others from
            fitting the calibration text; 0.1 was best on SmolLM2-135M.
        original: Treat channels that are always zero and the count per block as the public code does (see Differs);
            off by default.

    Returns:
        Weight, (out, in), float32, or float64 if gram is, and keep mask, bool (out, in).

    Raises:
        PatternError: The columns cannot be cut into groups of M.
        MethodError: `original`, and M does not divide `block_size`.
        NumericsError: H is not positive definite.

    Source:
        SparseGPT, arXiv:2301.00774, algorithm 1.

    Differs:
        The sweep works on R = U^-1 and recursively on halves of the columns, so that H is never inverted and nearly all
        work is large matrix products; results agree up to rounding. The public code zeroes channels that are always
        zero, so that they use up the block's budget and more of the others are kept, and it prunes one weight too many
        per block: `original` does both. Its groups of M start again in every block of columns; here no group straddles
        two blocks.
    """
    dtype = torch.promote_types(gram.dtype, torch.float32)  # with a gram in float64 all work is in float64
    dense = weight.to(dtype).T.clone(memory_format=torch.contiguous_format)  # (in, out): a column is contiguous
    dead = gram.diagonal() == 0
    if original:
        dense[dead] = 0.0
    sweep = _Sweep(dense, upper_factor(gram.to(dtype), damping, relative_damping), mask, dead)
    if mask is not None:
        sweep.halve(0, len(dense), _COLUMNS_PER_STEP, sweep.prune_columns)
    elif isinstance(pattern, Pattern):
        pattern.check_width(len(dense), "weight")
        if original and block_size % pattern.group:
            raise MethodError(
                f"steps.update.original: the public code starts groups again every {block_size} columns, which groups "
                f"of {pattern.group} do not fill; set steps.update.block_size to a multiple of {pattern.group}"
            )
        group_top = _GroupTop(pattern, dense)
        sweep.halve(0, len(dense), pattern.group, lambda low, high: sweep.choose_group(low, high, group_top))
    else:
        sweep.halve(0, len(dense), block_size, lambda low, high: sweep.choose_block(low, high, pattern, original))
    return dense.sub_(sweep.change).T.contiguous(), sweep.keep.T.contiguous() if mask is None else mask


class _Sweep:
    """State of the sweep, transposed: row j of each tensor is column j of the weight.

    D = dense - final weight satisfies D = E U, so E = D R with R = U^-1. What the finished columns S owe the others J
    is `pending_J` = R_SJ^T D_S, and the current value of J is W_J + U_JJ^T pending_J with U_JJ = R_JJ^-1. Only small
    diagonal blocks of R are ever inverted. Rows of `change` hold what is pending until they are finished, then D.
    """

    def __init__(self, dense: Tensor, factor: Tensor, mask: Tensor | None, dead: Tensor) -> None:
        self.dense = dense
        self.factor = factor
        self.change = torch.zeros_like(dense)
        self.keep = torch.empty_like(dense, dtype=torch.bool) if mask is None else mask.T.contiguous()
        self.dead = dead
        squares = factor.diagonal().square()
        self._score_factor = torch.where(dead, squares.min() * _DEAD_FACTOR, squares).unsqueeze(
            1
        )  # 1 / U_jj^2, (in, 1)

    def halve(self, low: int, high: int, unit: int, visit: Callable[[int, int], None]) -> None:
        """Visit columns [low, high) from left to right, at most `unit` at once, carrying errors in doubling blocks."""
        if high - low <= unit:
            visit(low, high)
            return
        units = -(-(high - low) // unit)
        middle = low + units // 2 * unit
        self.halve(low, middle, unit, visit)
        self.carry(low, middle, high)
        self.halve(middle, high, unit, visit)

    def carry(self, low: int, middle: int, high: int) -> None:
        """Add what the finished columns [low, middle) owe to [middle, high)."""
        self.change[middle:high].addmm_(self.factor[low:middle, middle:high].T, self.change[low:middle])

    def current(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Return columns [low, high) as updated by all before them, and the inverse of their block of R."""
        corner = self.factor[low:high, low:high]
        identity = torch.eye(high - low, dtype=corner.dtype, device=corner.device)
        inverse = torch.linalg.solve_triangular(corner, identity, upper=True)
        return torch.addmm(self.dense[low:high], inverse.T, self.change[low:high]), inverse

    def choose_group(self, low: int, high: int, group_top: "_GroupTop") -> None:
        """Choose the mask of one group of M columns, and prune it."""
        current, inverse = self.current(low, high)
        self.keep[low:high] = group_top.keep(current.square() * self._score_factor[low:high])
        self._prune(low, high, current, inverse)

    def choose_block(self, low: int, high: int, pattern: Unstructured, original: bool) -> None:
        """Choose the unstructured mask of a block of columns, all rows together, and prune it."""
        current, _ = self.current(low, high)
        score = current.square() * self._score_factor[low:high]
        keep = self.keep[low:high]
        dead = self.dead[low:high]
        if original:
            keep.copy_(keep_top(score.T, pattern, group="layer", count="original").T)
        else:
            rows = current.shape[1]
            dead_columns = int(dead.sum())
            # Counted from the first column on, so that the blocks' shares add up to that of the matrix.
            pruned = _pruned_count(rows * high, pattern) - _pruned_count(rows * low, pattern)
            live_weights = rows * (high - low - dead_columns)
            pruned_dead = min(max(_pruned_count(rows * dead_columns, pattern), pruned - live_weights), pruned)
            keep[dead] = _keep_all_but(pruned_dead, current[dead].abs())
            keep[~dead] = _keep_all_but(pruned - pruned_dead, score[~dead])
        self.halve(low, high, _COLUMNS_PER_STEP, self.prune_columns)

    def prune_columns(self, low: int, high: int) -> None:
        """Prune columns [low, high) with the mask that is there."""
        self._prune(low, high, *self.current(low, high))

    def _prune(self, low: int, high: int, current: Tensor, inverse: Tensor) -> None:
        """Prune columns [low, high) one by one; `current` is changed in place."""
        correction = inverse / inverse.diagonal().unsqueeze(1)  # row j: change of column k per unit of column j
        pruned = (~self.keep[low:high]).to(current.dtype)
        for j in range(high - low):
            pruned[j].mul_(current[j])
            if low + j + 1 < high:
                current[j + 1 :].addr_(correction[j, j + 1 :], pruned[j], alpha=-1)
        current -= pruned
        torch.sub(self.dense[low:high], current, out=self.change[low:high])


class _GroupTop:
    """Keeps the N highest of M rows in every column, with the tie rule of `keep_top`: the lower row is pruned first.

    The sweep needs this once per group, so it is made of a few dense operations: all pairs are compared, and one small
    matrix product counts how many others each row outranks.
    """

    def __init__(self, pattern: Pattern, dense: Tensor) -> None:
        self.pattern = pattern
        if pattern.group > _MAX_GROUP_PAIRWISE:
            return
        pairs = [(k, k - gap) for gap in range(1, pattern.group) for k in range(gap, pattern.group)]
        self._sign = dense.new_zeros(pattern.group, len(pairs))  # +1: the pair's higher row, -1: its lower row
        for pair, (higher, lower) in enumerate(pairs):
            self._sign[higher, pair] = 1.0
            self._sign[lower, pair] = -1.0
        pairs_as_lower = (self._sign < 0).sum(1, keepdim=True)  # won unless the higher row wins
        self._needed = float(pattern.group - pattern.keep) - pairs_as_lower
        self._higher_wins = dense.new_empty(len(pairs), dense.shape[1])

    def keep(self, score: Tensor) -> Tensor:
        """Return the keep mask of a group's scores, (M, out)."""
        if self.pattern.group > _MAX_GROUP_PAIRWISE:
            return keep_top(score.T, self.pattern).T
        start = 0
        for gap in range(1, len(score)):
            stop = start + len(score) - gap
            torch.ge(score[gap:], score[:-gap], out=self._higher_wins[start:stop])
            start = stop
        return self._sign @ self._higher_wins >= self._needed


def _pruned_count(weights: int, pattern: Unstructured) -> int:
    """Return how many of that many weights are pruned."""
    return round(round(weights * pattern.sparsity, 9))


def _keep_all_but(pruned: int, score: Tensor) -> Tensor:
    """Return the keep mask that prunes the `pruned` lowest scores, all rows together."""
    if pruned in (0, score.numel()):
        return torch.full_like(score, not pruned, dtype=torch.bool)
    return keep_top(score.T, Unstructured(pruned / score.numel()), group="layer").T
