"""Devices and types by name."""

import torch

from eggs_ptp.errors import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one.

    Raises:
        ModelError: This machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used here ({reason}); see eggs doctor") from error
    return device


def find_dtype(name: str) -> torch.dtype:
    """Return the type of that name; "auto" is float32, in which statistics and scores are computed anyway.

    Raises:
        ModelError: Blocks cannot be computed in it.
    """
    if name == "auto":
        return torch.float32
    if name not in _DTYPES:
        raise ModelError(f"dtype: expected auto, {', '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]
