"""Group descent: mask and weights of one group of columns after another, each the best while all others stay fixed."""

import itertools
import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import MethodError

_MOST_PATTERNS = 100  # per group, so many are all compared: 4:8 has 70
_COLUMNS = 256  # whose gradient is one product with H; inside, errors are carried on in doubling blocks


def group_descent(
    weight: Tensor,
    mask: Tensor | None,
    start: Tensor | None,
    pattern: Pattern,
    gram: Tensor,
    tokens: Tensor | None = None,
    *,
    sweeps: Annotated[int, Field(ge=0)] = 2,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    relative_damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
) -> tuple[Tensor, Tensor]:
    """Choose mask and weights of every group of M inputs again, row by row, from left to right, several times.

    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I + relative_damping * diag gram, and
    G = (W - W') H. With all other weights of a
    row fixed, the best weights of a group are x = W' + G H_gg^-1 if all M are kept; if those of a set p are pruned,
    the loss tr((W - W') H (W - W')^T) rises by x_p ((H_gg^-1)_pp)^-1 x_p^T, and the others become
    x - x_p ((H_gg^-1)_pp)^-1 (H_gg^-1)_p. The set for which the loss rises least is pruned. Groups of more than 100
    patterns (8:16) prune the M - N lowest x_j^2 / (H_gg^-1)_jj, and a row keeps the mask and weights of a group where
    that would not lower its loss. So no row's loss rises. Each sweep takes about one product of the weight with H.

    Args:
        weight: W, (out, in).
        mask: Keep mask to start from, bool (out, in).
        start: W', weights of a previous update step, (out, in); None for W on the mask.
        pattern: N kept of every M.
        gram: X^T X / tokens, (in, in).
        tokens: Number of tokens that gram was computed from, shape (); None for no correction of the damping.
        sweeps: Passes over all groups, at least 0; 2 by default.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.
        relative_damping: Share of each entry of gram's diagonal that is added to it, at least 0; 0 by default. Where
            few channels have most of the energy, as in language models, it keeps the weights of all others from
            fitting the calibration text; 0.1 was best on SmolLM2-135M.

    Returns:
        Weight, float32 (out, in), and keep mask, bool (out, in).

    Raises:
        MethodError: There is no mask.
        PatternError: The columns cannot be cut into groups of M.
        NumericsError: gram holds NaN, or there are no tokens.

    Source:
        This project: block coordinate descent, with the removal costs of optimal brain surgeon (Hassibi and Stork,
        1993) inside a group.
    """
    if mask is None:
        raise MethodError(
            "steps.update: group_descent changes a mask, and there is none; give steps.select, or put it after a step "
            "that chooses one, such as sparsegpt"
        )
    pattern.check_width(weight.shape[1], "weight")
    hessian = damped(gram, damping, tokens, relative_damping=relative_damping)
    dense = weight.to(hessian.dtype).T.contiguous()  # (in, out), as all below: a column of the weight is contiguous
    keep = mask.T.contiguous()
    initial = dense if start is None else start.to(hessian.dtype).T
    change = dense - initial * keep
    descent = _Descent(dense, hessian, change, keep, pattern)
    for _ in range(sweeps):
        descent.sweep()
    return (dense - change).mul_(keep).T.contiguous(), keep.T.contiguous()


class _Descent:
    """Weights and mask while groups change, transposed: row j of each tensor is column j of the weight.

    Attributes:
        change: (W - W')^T, (in, out).
        keep: The mask, bool (in, out).
    """

    def __init__(self, dense: Tensor, hessian: Tensor, change: Tensor, keep: Tensor, pattern: Pattern) -> None:
        self.dense = dense
        self.hessian = hessian
        self.change = change
        self.keep = keep
        self._size = pattern.group
        self._groups = _choose_groups(hessian, pattern)
        self._delta = change.new_empty(0)  # how the columns of the present block have changed

    def sweep(self) -> None:
        """Visit every group once."""
        columns = max(_COLUMNS // self._size, 1) * self._size
        self._delta = self.change.new_empty(columns, self.change.shape[1])
        for low in range(0, len(self.dense), columns):
            high = min(low + columns, len(self.dense))
            gradient = self.hessian[low:high] @ self.change
            self._visit(low, low, high, gradient)

    def _visit(self, first: int, low: int, high: int, gradient: Tensor) -> None:
        """Visit the groups of columns [low, high) of a block that begins at `first`."""
        if high - low > self._size:
            middle = low + (high - low) // self._size // 2 * self._size
            self._visit(first, low, middle, gradient)
            gradient[middle - first : high - first].addmm_(
                self.hessian[middle:high, low:middle], self._delta[low - first : middle - first]
            )
            self._visit(first, middle, high, gradient)
            return
        rows = slice(low, high)
        best, keep = self._groups(
            low // self._size,
            self.dense[rows] - self.change[rows],
            self.keep[rows],
            gradient[low - first : high - first],
        )
        self.keep[rows] = keep
        change = self.dense[rows] - best
        torch.sub(change, self.change[rows], out=self._delta[low - first : high - first])
        self.change[rows] = change


# Takes a group's index, its weights W', keep mask and gradient G, all (M, out); returns its new weights and keep mask.
_ChooseGroup = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _choose_groups(hessian: Tensor, pattern: Pattern) -> _ChooseGroup:
    """Return the function that chooses weights and mask of a group of a matrix with this Hessian."""
    size = pattern.group
    blocks = hessian.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    inverses = torch.linalg.inv(blocks.double())  # (groups, M, M)
    if math.comb(size, pattern.keep) <= _MOST_PATTERNS:
        return _EveryPattern(inverses, pattern, hessian.dtype).choose
    return _LowestCosts(blocks.contiguous(), inverses.to(hessian.dtype), pattern).choose


class _EveryPattern:
    """Compares every pattern of a group.

    The cost of pruning a set p is a quadratic form of x, and the weights that remain are a linear map of x. Both are
    computed for all groups at once. The costs of all sets are one product with the monomials x_i x_j, and the cheapest
    set is looked up by a product with its indicator: small products are many times as fast as argmin and indexing.
    """

    def __init__(self, inverses: Tensor, pattern: Pattern, dtype: torch.dtype) -> None:
        self._size = size = pattern.group
        device = inverses.device
        pruned_sets = list(itertools.combinations(range(size), size - pattern.keep))
        # x_0 x_0, x_1 x_0, ..., x_(M-1) x_0, x_1 x_1, x_2 x_1, ...
        left = torch.cat([torch.arange(first, size, device=device) for first in range(size)])
        right = torch.arange(size, device=device).repeat_interleave(torch.arange(size, 0, -1, device=device))
        kept = torch.ones(size, len(pruned_sets), dtype=dtype, device=device)
        costs, maps = [], []
        identity = torch.eye(size, dtype=inverses.dtype, device=device)
        for number, pruned in enumerate(pruned_sets):
            index = torch.tensor(pruned, device=device)
            kept[index, number] = 0.0
            form = torch.zeros_like(inverses)
            form[:, index.unsqueeze(1), index] = torch.linalg.inv(inverses[:, index][:, :, index])
            costs.append(torch.where(left == right, 1.0, 2.0) * form[:, left, right])
            maps.append((identity - inverses @ form) * kept[:, number].unsqueeze(1))
        self._inverses = inverses.to(dtype)
        self._costs = torch.stack(costs, 1).to(dtype)  # (groups, sets, monomials)
        self._maps = torch.stack(maps, -1).to(dtype).flatten(1, 2)  # (groups, M M, sets)
        self._kept = kept  # (M, sets)
        self._before = torch.ones(len(pruned_sets), len(pruned_sets), dtype=dtype, device=device).tril(-1)

    def choose(self, group: int, weight: Tensor, _keep: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and keep mask of a group, see `_ChooseGroup`."""
        free = torch.addmm(weight, self._inverses[group], gradient)  # x
        monomials = torch.cat([free[first:] * free[first] for first in range(self._size)])
        costs = self._costs[group] @ monomials
        cheapest = (costs <= costs.amin(0)).to(free.dtype)  # (sets, out)
        cheapest *= self._before @ cheapest < 0.5  # of equal sets the first
        best = ((self._maps[group] @ cheapest).unflatten(0, (self._size, -1)) * free).sum(1)
        return best, self._kept @ cheapest > 0.5


class _LowestCosts:
    """Prunes the weights that are the cheapest ones by themselves, where that lowers the loss of the row."""

    def __init__(self, blocks: Tensor, inverses: Tensor, pattern: Pattern) -> None:
        self._blocks = blocks  # H_gg, (groups, M, M)
        self._inverses = inverses
        self._pattern = pattern

    def choose(self, group: int, weight: Tensor, keep: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and keep mask of a group, see `_ChooseGroup`."""
        hessian = self._blocks[group]
        inverse = self._inverses[group]
        free = torch.addmm(weight, inverse, gradient)  # x
        chosen = keep_top((free.square() / inverse.diagonal().unsqueeze(1)).T, self._pattern)  # (out, M)
        kept = chosen.nonzero()[:, 1].view(-1, self._pattern.keep)  # (out, N)
        corners = hessian[kept.unsqueeze(2), kept.unsqueeze(1)]  # H_ss of every row
        target = (hessian @ free).T.gather(1, kept)
        solved = torch.linalg.solve(corners, target.unsqueeze(2)).squeeze(2)
        best = torch.zeros_like(free.T).scatter_(1, kept, solved).T
        improved = _loss(best - free, hessian) < _loss(weight - free, hessian)
        return torch.where(improved, best, weight), torch.where(improved, chosen.T, keep)


def _loss(difference: Tensor, hessian: Tensor) -> Tensor:
    """Return d^T H d of every column d."""
    return (hessian @ difference * difference).sum(0)
