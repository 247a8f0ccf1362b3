"""Singular values of a matrix weighted by what its inputs carry."""

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor

from eggs_ptp.errors import NumericsError

_TOLERANCE = 1e-6  # of the squared singular values
COUNT = 8


def weighted_singular_values(weight: Tensor, input_norm: Tensor, count: int = COUNT) -> list[float]:
    """The largest singular values of W diag(n), falling: those of X W^T / sqrt(tokens) for inputs without correlation.

    By scipy's svds (ARPACK) in float64 from a fixed start; `weight` (out, in), `input_norm` n (in,). Fewer where the
    matrix has no more.

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
        found: Any = svds(operator, k=count, tol=_TOLERANCE, v0=start, return_singular_vectors=False)
    except ArpackNoConvergence as error:
        rows, columns = array.shape
        raise NumericsError(f"the singular values of {rows} x {columns} were not found ({error})") from error
    return sorted((float(value) for value in found), reverse=True)
