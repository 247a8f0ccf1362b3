"""Connections: where a weight is not zero."""

import numpy as np
import torch
from torch import Tensor

from eggs_ptp.errors import NumericsError

_ROWS = 64  # looked at a time: they stay in the cache
BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def connections(weight: Tensor, name: str) -> Tensor:
    """The mask of a weight, bool (out, in) on the CPU: m_ij = (W_ij != 0), for zeros of either sign; types: `BITS`.

    Reads bits, several times as fast as comparing and summing 16-bit floats: all but the sign's are 0 for zeros
    alone, and those of NaN and infinity are the largest.

    Raises:
        NumericsError: `weight` holds NaN or infinity; says so of `name`.
    """
    kind = BITS[weight.dtype]
    bits = weight.detach().cpu().contiguous().view(kind).numpy()
    infinite = torch.tensor(torch.inf, dtype=weight.dtype).view(kind).item()
    mask = np.empty(bits.shape, dtype=bool)
    sizes = np.empty((min(_ROWS, len(bits)), *bits.shape[1:]), dtype=bits.dtype)  # one for all: pages cost time
    for start in range(0, len(bits), _ROWS):
        part = bits[start : start + _ROWS]
        size = np.bitwise_and(part, np.iinfo(bits.dtype).max, out=sizes[: len(part)])
        if size.max(initial=0) >= infinite:
            raise NumericsError(f"{name} holds NaN or infinity; check the checkpoint")
        np.not_equal(size, 0, out=mask[start : start + _ROWS])
    return torch.from_numpy(mask)
