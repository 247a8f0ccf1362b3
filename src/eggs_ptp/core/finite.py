"""Check tensors for NaN and infinity."""

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity.

    Only the minimum and the maximum are checked: one of them is NaN or infinite if any entry is.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # torch has no arithmetic for float8
        tensor = tensor.to(torch.bfloat16)
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
