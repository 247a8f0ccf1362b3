"""A diagonal below a Gram matrix, on which the lower bounds of the output error are built."""

import math

import torch
from torch import Tensor

_SCALES = (1.0, 0.999, 0.99, 0.97, 0.94, 0.9, 0.8, 0.65, 0.5, 0.25, 0.1, 0.03)
_DIAGONAL_SCALES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)  # of H's own diagonal, if no other is feasible
_LEAST = 1e-4  # of a channel's diagonal entry: a bound for updated weights divides by d
_CONVERGED = 1e-4  # relative change of the sum over a sweep, below which the search stops


def minorant(hessian: Tensor, mass: Tensor, *, sweeps: int = 30) -> Tensor:
    """Find a diagonal d >= 0 with H - diag d positive semidefinite and a large sum_j mass_j d_j.

    Maximising that sum is the dual of min tr(Q Z) over Z >= 0 with Z_jj >= 1, Q_jk = sqrt(mass_j) H_jk sqrt(mass_k).
    With Z = V V^T, V of sqrt(2 in) columns, one row after the other is set to v_j = -g_j / min(|g_j|, Q_jj),
    g_j = sum_(k != j) Q_jk v_k; then y_j = max(Q_jj - |g_j|, 1e-4 Q_jj), d_j = y_j / mass_j. Before the search has
    converged, d is not feasible: it is multiplied by the first of a series of decreasing factors for which the Cholesky
    factorisation of Q - diag y in float64 exists, which proves feasibility (up to rounding). If there is none,
    fractions of the diagonal of H are tried. So the result is feasible whatever the search found; more `sweeps` only
    make it larger.

    Args:
        hessian: H (in, in), symmetric and positive semidefinite, float32 or float64.
        mass: Weight of each entry in the sum, (in,), >= 0.
        sweeps: Maximum number of passes over all rows of V.

    Returns:
        (in,) in float64; 0 for channels that never fired, and for all channels if no factor is feasible: then
        `hessian` comes from fewer tokens than channels, or some channels are linearly dependent.

    Source: this project. The row by row descent is the mixing method, arXiv:1706.00476.
    """
    diagonal = hessian.diagonal().double()
    live = diagonal > 0
    result = torch.zeros_like(diagonal)
    if not live.any():
        return result
    live_mass = mass.to(diagonal)[live]
    if not live_mass.any():
        live_mass = torch.ones_like(live_mass)
    live_mass = live_mass.clamp_min(float(live_mass.max()) * 1e-9)
    root = live_mass.sqrt()
    scaled = hessian.double()[live][:, live] * root * root.unsqueeze(1)
    scaled = (scaled + scaled.T) / 2
    ascended = _ascend(scaled.float(), sweeps).double()
    candidates = [scale * ascended for scale in _SCALES]
    candidates += [scale * scaled.diagonal() for scale in _DIAGONAL_SCALES]
    for candidate in candidates:
        if not int(torch.linalg.cholesky_ex(scaled - torch.diag(candidate))[1]):
            result[live] = candidate / live_mass
            break
    return result


def _ascend(scaled: Tensor, sweeps: int) -> Tensor:
    """Return the y (in,) that the mixing method arrives at, for Q = `scaled` (in, in)."""
    size = len(scaled)
    diagonal = scaled.diagonal()
    generator = torch.Generator(device=scaled.device).manual_seed(0)
    columns = math.ceil(math.sqrt(2 * size)) + 1
    vectors = torch.randn(size, columns, generator=generator, device=scaled.device, dtype=scaled.dtype)
    vectors /= vectors.norm(dim=1, keepdim=True)
    lengths = torch.zeros_like(diagonal)
    previous_total = math.inf
    for _ in range(sweeps):
        for row in range(size):
            gradient = scaled[row] @ vectors - diagonal[row] * vectors[row]
            lengths[row] = gradient.norm()
            divisor = torch.minimum(lengths[row], diagonal[row])
            vectors[row] = torch.where(divisor > 0, -gradient / divisor, vectors[row])
        total = float((diagonal - lengths).clamp_min(0).sum())
        if abs(total - previous_total) <= _CONVERGED * total:
            break
        previous_total = total
    return torch.maximum(diagonal - lengths, _LEAST * diagonal)
