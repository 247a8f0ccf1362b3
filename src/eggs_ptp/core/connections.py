"""The mask of a stored weight matrix: which weights are not zero."""

import numpy as np
import torch
from torch import Tensor

from eggs_ptp.errors import NumericsError

_ROWS = 64  # rows processed at a time, so that they stay in the processor's cache
BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def connections(weight: Tensor, name: str) -> Tensor:
    """Return the mask of a weight matrix, m_ij = (W_ij != 0), where -0.0 counts as zero.

    Works on the bit patterns, which is several times as fast as comparing and summing 16-bit floats: without the sign
    bit only zeros have pattern 0, and infinity and NaN have the largest patterns.

    Args:
        weight: (out, in), of a type in `BITS`.
        name: What the error message calls it.

    Returns:
        Bool (out, in), on the CPU.

    Raises:
        NumericsError: `weight` holds NaN or infinity.
    """
    integer_type = BITS[weight.dtype]
    bits = weight.detach().cpu().contiguous().view(integer_type).numpy()
    infinity_bits = torch.tensor(torch.inf, dtype=weight.dtype).view(integer_type).item()
    mask = np.empty(bits.shape, dtype=bool)
    buffer = np.empty((min(_ROWS, len(bits)), *bits.shape[1:]), dtype=bits.dtype)  # reused: new pages cost time
    for start in range(0, len(bits), _ROWS):
        rows = bits[start : start + _ROWS]
        magnitude_bits = np.bitwise_and(rows, np.iinfo(bits.dtype).max, out=buffer[: len(rows)])
        if magnitude_bits.max(initial=0) >= infinity_bits:
            raise NumericsError(f"{name} holds NaN or infinity; check the checkpoint")
        np.not_equal(magnitude_bits, 0, out=mask[start : start + _ROWS])
    return torch.from_numpy(mask)
