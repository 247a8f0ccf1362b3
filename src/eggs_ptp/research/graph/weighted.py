"""Singular values of a weight matrix whose inputs are scaled by their activation norms."""

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor

from eggs_ptp.errors import NumericsError

_TOLERANCE = 1e-6  # relative, of the squared singular values
COUNT = 8


def weighted_singular_values(weight: Tensor, input_norm: Tensor, count: int = COUNT) -> list[float]:
    """Return the largest singular values of W diag(n), in descending order.

    For uncorrelated inputs these are the singular values of X W^T / sqrt(tokens). Computed by scipy's svds (ARPACK) in
    float64 from a seeded start.

    Args:
        weight: W (out, in).
        input_norm: n (in,).
        count: Number of singular values; fewer are returned if the matrix has fewer.

    Raises:
        NumericsError: ARPACK does not converge.
    """
    matrix = weight.double().cpu() * input_norm.double().cpu()
    if count >= min(matrix.shape) - 1 or not matrix.any():
        return [float(value) for value in torch.linalg.svdvals(matrix)[:count]]
    array = matrix.numpy()
    operator = LinearOperator(
        array.shape, matvec=lambda x: array @ x.ravel(), rmatvec=lambda y: array.T @ y.ravel(), dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(min(array.shape))
    try:
        values: Any = svds(operator, k=count, tol=_TOLERANCE, v0=start, return_singular_vectors=False)
    except ArpackNoConvergence as error:
        rows, columns = array.shape
        raise NumericsError(f"the singular values of {rows} x {columns} were not found ({error})") from error
    return sorted((float(value) for value in values), reverse=True)
