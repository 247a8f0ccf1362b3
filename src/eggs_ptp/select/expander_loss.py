"""EGGS-PTP's selection with diagonal blocks chosen by the layer's own loss, for weights that are not updated."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.connection_floor import add_diagonal_blocks
from eggs_ptp.core.diagonal_blocks import Diagonal, DiagonalBlocks, Height, Offset
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.core.rows import Importance, row_importance
from eggs_ptp.core.step_result import StepResult


def expander_loss(
    score: Tensor,
    weight: Tensor,
    pattern: Pattern,
    input_norm: Tensor,
    gram: Tensor,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    B: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto",
    diagonal: Diagonal = "best",
    block: Height = "square",
    offset: Offset = 0,
    rri: Importance = "activation",
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
) -> StepResult:
    """Keep N of every M by score, but by the diagonals of least output error in B blocks of rows per group of columns.

    Blocks are those of `expander`. With K the mask at B = 0, D = W * ~K the pruned weights and
    H = gram + damping * mean(diag gram) * I, the layer loss is tr(D H D^T). Pruning one more weight changes it by
    s_ij = W_ij (2 (D H)_ij + H_jj W_ij); keeping one of the pruned weights changes it by -s_ij, with
    s_ij = W_ij (2 (D H)_ij - H_jj W_ij). Diagonals are chosen by s, and B by the loss itself. Every input keeps at
    least min(B, out // M) connections.

    Args:
        score: (out, in); higher = keep. Its columns are permuted already, as are those of weight, input_norm and gram.
        weight: W, (out, in).
        pattern: N kept of every M.
        input_norm: n_j per token, (in,).
        gram: X^T X / tokens, (in, in).
        row_tiles: How rows are divided over processes; one process by default.
        B: Diagonal blocks per group, at least 0, or "auto" (default): of 0, 1, 2, 5, 10, 20, ..., out // M the number
            with the least loss. They are tried in this order, up to the first that does not lower the loss; `connect`
            says which rows enter it.
        diagonal: Columns that a block keeps, as in `expander`; "best" (default) and "forced" go by s.
        block: Height of a block, as in `expander`; "square" by default.
        offset: 0 (default), or "best" as in `expander`, by s.
        rri: Relative row importance, as in `expander`; "activation" by default.
        alpha: Exponent of the input norm in RRI, at least 0; 0.5 by default.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.

    Returns:
        Keep mask, bool (out, in), with the diagnostics B (blocks per group), diagonal_rows (rows per group), layer_loss
        and layer_loss_B0 (losses with B blocks and with none, as shares of tr(W H W^T) of the same rows).

    Raises:
        PatternError: The pattern does not define that diagonal or block, or the columns cannot be cut into groups of M.
        MethodError: Options that exclude each other.
        NumericsError: gram is zero.

    Source:
        This project, after EGGS-PTP, arXiv:2508.09471.
    """
    diagonal_blocks = DiagonalBlocks(pattern, diagonal, block, offset)
    mask = keep_top(score, pattern)
    hessian = damped(gram, damping)
    dense = weight.to(hessian.dtype)
    pruned = dense * ~mask
    change = dense.new_empty(dense.shape)  # s
    row_tiles.fill(dense, lambda rows: (_loss_change(dense[rows], pruned[rows], hessian),), change)
    importance = row_importance(score, weight, input_norm, pattern.group, rri, alpha)

    def masked(candidate: Tensor, rows: slice) -> Tensor:
        return dense[rows] * candidate[rows]

    result = add_diagonal_blocks(dense, hessian, mask, change, importance, diagonal_blocks, B, masked, row_tiles)
    return StepResult(result.mask, result.diagnostics)


def _loss_change(weight: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:
    """Compute s for some rows: the loss of pruning each weight, or of having pruned those in `pruned` (rows, in)."""
    return weight * (2 * pruned @ hessian + hessian.diagonal() * (weight - 2 * pruned))
