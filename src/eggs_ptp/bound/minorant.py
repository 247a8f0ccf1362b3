"""Minorant: the diagonal below a Gram matrix that bounds of the output error stand on."""

import math

import torch
from torch import Tensor

_SCALES = (1.0, 0.999, 0.99, 0.97, 0.94, 0.9, 0.8, 0.65, 0.5, 0.25, 0.1, 0.03)
_LAST_SCALES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)  # of the diagonal itself, where nothing better was found
_LEAST = 1e-4  # of a channel's own entry: a bound for solved weights divides by the diagonal
_MOVED = 1e-4  # of the sum, over a sweep: below it the diagonal is done


def minorant(hessian: Tensor, mass: Tensor, *, sweeps: int = 30) -> Tensor:
    """A diagonal d >= 0 with H - diag d positive semidefinite and sum_j mass_j d_j as large as it was found.

    Maximising that sum is the dual of min tr(Q Z) over Z >= 0 with Z_jj >= 1, Q_jk = sqrt(mass_j) H_jk sqrt(mass_k).
    With Z = V V^T, V of sqrt(2 in) columns, one row after the other is set to v_j = -g_j / min(|g_j|, Q_jj),
    g_j = sum_(k != j) Q_jk v_k; then y_j = max(Q_jj - |g_j|, 1e-4 Q_jj), d_j = y_j / mass_j. Where that has not come
    to its end, d is not feasible: it is scaled down, by a ladder of factors, to the first for which Cholesky's
    factorisation of Q - diag y in float64 exists, which proves it (to rounding); if there is none, a part of the
    diagonal of H is tried. So the result is feasible whatever the search did; `sweeps` only makes it larger.

    Args:
        hessian: H (in, in), symmetric and positive semidefinite, float32 or float64.
        mass: how much each entry counts, (in,), >= 0.
        sweeps: passes over all rows of V, at most.

    Returns:
        (in,) in float64; 0 for channels that never fired, and for all where no factor will do: then `hessian` has
        fewer tokens than channels behind it, or channels that say the same.

    Source: this project. The row by row descent is the mixing method, arXiv:1706.00476.
    """
    diagonal = hessian.diagonal().double()
    live = diagonal > 0
    found = torch.zeros_like(diagonal)
    if not live.any():
        return found
    counted = mass.to(diagonal)[live]
    counted = counted.clamp_min(float(counted.max()) * 1e-9) if counted.any() else torch.ones_like(counted)
    root = counted.sqrt()
    scaled = hessian.double()[live][:, live] * root * root.unsqueeze(1)
    scaled = (scaled + scaled.T) / 2
    wanted = _ascend(scaled.float(), sweeps).double()
    ladder = [scale * wanted for scale in _SCALES] + [scale * scaled.diagonal() for scale in _LAST_SCALES]
    for tried in ladder:
        if not int(torch.linalg.cholesky_ex(scaled - torch.diag(tried))[1]):
            found[live] = tried / counted
            break
    return found


def _ascend(scaled: Tensor, sweeps: int) -> Tensor:
    """The y that the mixing method comes to, (in,)."""
    size, own = len(scaled), scaled.diagonal()
    draw = torch.Generator(device=scaled.device).manual_seed(0)
    vectors = torch.randn(
        size, math.ceil(math.sqrt(2 * size)) + 1, generator=draw, device=scaled.device, dtype=scaled.dtype
    )
    vectors /= vectors.norm(dim=1, keepdim=True)
    lengths, before = torch.zeros_like(own), math.inf
    for _ in range(sweeps):
        for row in range(size):
            pull = scaled[row] @ vectors - own[row] * vectors[row]
            lengths[row] = pull.norm()
            shrunk = torch.minimum(lengths[row], own[row])
            vectors[row] = torch.where(shrunk > 0, -pull / shrunk, vectors[row])
        total = float((own - lengths).clamp_min(0).sum())
        if abs(total - before) <= _MOVED * total:
            break
        before = total
    return torch.maximum(own - lengths, _LEAST * own)
