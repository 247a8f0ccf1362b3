"""EGGS-PTP's selection with the layer's own loss deciding on blocks, for kept weights that stay as they are."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.blocks import Diagonal, Height, Offset, Reading
from eggs_ptp.core.floor import connected
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.noted import Noted
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.rows import Importance, row_importance
from eggs_ptp.core.slabs import ALONE, Slabs


def expander_loss(
    score: Tensor,
    weight: Tensor,
    pattern: Pattern,
    input_norm: Tensor,
    gram: Tensor,
    slabs: Slabs = ALONE,
    *,
    B: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto",
    diagonal: Diagonal = "best",
    block: Height = "square",
    offset: Offset = 0,
    rri: Importance = "activation",
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
) -> Noted:
    """Keep N of every M by score, but in B blocks of rows per group by diagonals that the layer's output misses least.

    Blocks are those of `expander`. With K the mask of B = 0, D = W * ~K and H = gram + damping * mean(diag gram) * I,
    the loss tr(D H D^T) changes by s_ij = W_ij (2 (D H)_ij + H_jj W_ij) when a kept weight alone is pruned, and by
    -s_ij, with - H_jj, when a pruned one alone is kept; diagonals are chosen by s, and B by the loss itself. (Every
    input keeps at least min(B, out // M) connections.)

    Args:
        score: (out, in), higher = keep; columns permuted already, as those of weight, input_norm and gram.
        weight: (out, in).
        pattern: N kept of every M.
        input_norm: n_j, (in,).
        gram: (in, in).
        slabs: who works on which rows.
        B: diagonal blocks per group, or "auto": of 0, 1, 2, 5, 10, 20, ..., out // M the number with the least loss,
            tried upwards until one does not lose less; `connect` says of which rows.
        diagonal: as in `expander`, "best" and "forced" by s.
        block: as in `expander`.
        offset: as in `expander`, "best" by s.
        rri: as in `expander`.
        alpha: exponent of the input norm in RRI.
        damping: of H.

    Returns:
        Keep mask, bool (out, in). Facts: B, diagonal_rows per group, layer_loss and layer_loss_B0 as shares of
        tr(W H W^T), of the same rows.

    Raises:
        PatternError: the pattern does not define that diagonal or block.
        MethodError: options that exclude each other.
        NumericsError: gram is zero.

    Source: this project, after EGGS-PTP, arXiv:2508.09471.
    """
    reading = Reading(pattern, diagonal, block, offset)
    mask = keep_top(score, pattern)
    hessian = damped(gram, damping)
    dense = weight.to(hessian.dtype)
    gone, alone = dense * ~mask, dense.new_empty(dense.shape)
    slabs.fill(dense, lambda rows: (_changes(dense[rows], gone[rows], hessian),), alone)
    importance = row_importance(score, weight, input_norm, pattern.group, rri, alpha)
    given = dense, hessian, mask, alone, importance, reading, B
    found = connected(*given, lambda kept, rows: dense[rows] * kept[rows], slabs)
    return Noted(found.mask, found.facts)


def _changes(weight: Tensor, gone: Tensor, hessian: Tensor) -> Tensor:
    """Losses s of some rows, of whose weights those that are `gone` are pruned."""
    return weight * (2 * gone @ hessian + hessian.diagonal() * (weight - 2 * gone))
