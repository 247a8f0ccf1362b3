"""The Jacobian of a decoder block: how it amplifies small changes of its input, and gradients on their way back."""

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

_TOLERANCE = 1e-3  # relative, of the squared singular values: the products are in float32
PROBES = 8
COUNT = 4


class JacobianNorms(NamedTuple):
    """Norms of the Jacobian J (n, n) of a block at given hidden states, n = tokens x channels.

    Attributes:
        singular_values: The largest ones, in descending order.
        rms: sqrt(||J||_F^2 / n), the root mean square of all singular values.
        rms_written: The same of J - I, so of what the block adds to the residual stream.
    """

    singular_values: list[float]
    rms: float
    rms_written: float


def jacobian_norms(
    block: Callable[[Tensor], Tensor], point: Tensor, *, count: int = COUNT, probes: int = PROBES
) -> JacobianNorms:
    """Estimate norms of the Jacobian of `block` at `point` from products with it; it is never formed.

    The largest singular values come from scipy's svds (ARPACK) on J v (forward mode) and J^T u (reverse mode), the
    root mean squares from Gaussian probes v: E |J v|^2 / |v|^2 = ||J||_F^2 / n. Starts and probes are seeded.

    Args:
        block: A function of hidden states that can be differentiated in forward and reverse mode.
        point: (1, tokens, channels).
        count: Number of singular values.
        probes: Number of Gaussian probes.

    Raises:
        NumericsError: ARPACK does not converge, or the Jacobian is not finite.
    """
    size = point.numel()

    def forward(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return _to_array(_jvp(block, point, _to_tensor(vector, point)))

    with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no forward mode
        vjp: Any = torch.func.vjp(block, point)[1]

        def backward(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            return _to_array(vjp(_to_tensor(vector, point))[0])

        rng = np.random.default_rng(0)
        output_norm = written_norm = probe_norm = 0.0  # sums of squared norms
        for _ in range(probes):
            probe = rng.standard_normal(size)
            product = forward(probe)
            output_norm += float(product @ product)
            written_norm += float(np.square(product - probe).sum())
            probe_norm += float(probe @ probe)
        if not math.isfinite(output_norm):
            raise NumericsError("the Jacobian holds NaN or infinity")
        operator = LinearOperator((size, size), matvec=forward, rmatvec=backward, dtype=np.float64)
        try:
            values: Any = svds(
                operator, k=count, tol=_TOLERANCE, v0=rng.standard_normal(size), return_singular_vectors=False
            )
        except ArpackNoConvergence as error:
            raise NumericsError(f"the singular values of the Jacobian were not found ({error})") from error
    descending = sorted((float(value) for value in values), reverse=True)
    return JacobianNorms(descending, math.sqrt(output_norm / probe_norm), math.sqrt(written_norm / probe_norm))


def _jvp(block: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    product: Tensor = torch.func.jvp(block, (point,), (direction,))[1]
    return product


def _to_tensor(vector: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(vector.ravel())).to(like).view_as(like)


def _to_array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy().ravel()
