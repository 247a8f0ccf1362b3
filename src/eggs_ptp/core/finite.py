"""Whether numbers are finite."""

import torch
from torch import Tensor


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: its extremes are infinite, or NaN, where any of it is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # of float8, nothing is computed
        tensor = tensor.to(torch.bfloat16)
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
