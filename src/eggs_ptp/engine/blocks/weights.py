"""A module's weights, loaded from the checkpoint and freed again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import nn

from eggs_ptp.engine.tensors.reader import CheckpointReader


@contextmanager
def loaded_weights(
    module: nn.Module, prefix: str, reader: CheckpointReader, dtype: torch.dtype | None, device: torch.device
) -> Iterator[None]:
    """Load a module's weights from the checkpoint while the context lasts, then free its parameters.

    Args:
        module: The module, on the meta device.
        prefix: Its name in the model.
        reader: The checkpoint.
        dtype: The type of its parameters; None for each tensor's stored type.
        device: Where they are loaded to.
    """
    persistent = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name not in persistent:  # computed from the config, not stored
            set_module_tensor_to_device(module, name, device, value=buffer)
    names = [name for name, _ in module.named_parameters()]
    try:
        for name in persistent:
            tensor = reader.read(f"{prefix}.{name}" if prefix else name)
            set_module_tensor_to_device(module, name, device, value=tensor, dtype=dtype)
        yield
    finally:
        for name in names:
            set_module_tensor_to_device(module, name, "meta")
