"""A module's weights, brought from the checkpoint into memory and sent away again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import nn

from eggs_ptp.engine.shards import Shards


@contextmanager
def resident(
    module: nn.Module, prefix: str, shards: Shards, dtype: torch.dtype | None, device: torch.device
) -> Iterator[None]:
    """Fill a module (named `prefix` in the model) from the checkpoint; on leaving, its parameters are freed.

    `dtype` None keeps each tensor's own type.
    """
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name not in persistent:  # computed from the config, not stored
            set_module_tensor_to_device(module, name, device, value=buffer)
    names = [name for name, _ in module.named_parameters()]
    try:
        for name in persistent:
            tensor = shards.read(f"{prefix}.{name}" if prefix else name)
            set_module_tensor_to_device(module, name, device, value=tensor, dtype=dtype)
        yield
    finally:
        for name in names:
            set_module_tensor_to_device(module, name, "meta")
