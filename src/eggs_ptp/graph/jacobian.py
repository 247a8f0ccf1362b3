"""Jacobian: how a block passes small changes of its input on, and gradients back."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eggs_ptp.errors import NumericsError

_TOLERANCE = 1e-3  # of the squared singular values: products are in float32
PROBES = 8
COUNT = 4


class Gain(NamedTuple):
    """Of J, the Jacobian of a block at some hidden states: n = tokens x channels rows and columns."""

    singular_values: list[float]  # the largest, falling
    rms: float  # sqrt(||J||_F^2 / n), the root mean square of all singular values
    rms_written: float  # the same of J - I: of what the block writes to the residual stream


def gain(block: Callable[[Tensor], Tensor], point: Tensor, *, count: int = COUNT, probes: int = PROBES) -> Gain:
    """Look at the Jacobian of `block` at `point`, (1, tokens, channels), by products with it alone.

    The largest singular values come from scipy's svds (ARPACK) on J v (forward mode) and J^T u (reverse mode), the
    root mean squares from `probes` Gaussian v: E |J v|^2 / |v|^2 = ||J||_F^2 / n. Both from fixed starts.

    Raises:
        NumericsError: ARPACK does not converge, or the Jacobian is not finite.
    """
    size = point.numel()

    def forward(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        return _flat(_push(block, point, _shaped(flat, point)))

    with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
        back: Any = torch.func.vjp(block, point)[1]

        def backward(flat: NDArray[np.float64]) -> NDArray[np.float64]:
            return _flat(back(_shaped(flat, point))[0])

        draw = np.random.default_rng(0)
        whole = written = lengths = 0.0
        for _ in range(probes):
            probe = draw.standard_normal(size)
            pushed = forward(probe)
            whole, written = whole + float(pushed @ pushed), written + float(np.square(pushed - probe).sum())
            lengths += float(probe @ probe)
        if not math.isfinite(whole):
            raise NumericsError("the Jacobian holds NaN or infinity")
        operator = LinearOperator((size, size), matvec=forward, rmatvec=backward, dtype=np.float64)
        try:
            found: Any = svds(
                operator, k=count, tol=_TOLERANCE, v0=draw.standard_normal(size), return_singular_vectors=False
            )
        except ArpackNoConvergence as error:
            raise NumericsError(f"the singular values of the Jacobian were not found ({error})") from error
    falling = sorted((float(value) for value in found), reverse=True)
    return Gain(falling, math.sqrt(whole / lengths), math.sqrt(written / lengths))


def _push(block: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    pushed: Tensor = torch.func.jvp(block, (point,), (direction,))[1]
    return pushed


def _shaped(flat: NDArray[np.float64], point: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(flat.ravel())).to(point).view_as(point)


def _flat(value: Tensor) -> NDArray[np.float64]:
    return value.detach().double().cpu().numpy().ravel()
