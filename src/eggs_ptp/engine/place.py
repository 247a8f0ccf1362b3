"""Where to compute, and in which type."""

import torch

from eggs_ptp.errors import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one.

    Raises:
        ModelError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here ({reason}); see eggs doctor") from error
    return found


def find_dtype(dtype: str) -> torch.dtype:
    """Return the type of that name; "auto" is float32, in which statistics and scores are computed anyway.

    Raises:
        ModelError: not one that blocks can be computed in.
    """
    if dtype == "auto":
        return torch.float32
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known; expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
