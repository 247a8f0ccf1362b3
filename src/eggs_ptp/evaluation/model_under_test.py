"""Model under test: a loaded model with what its evaluation needs."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.planning.device import find_device, find_dtype
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_model, load_tokenizer


class ModelUnderTest(NamedTuple):
    """A loaded model.

    Attributes:
        name: The name that the caller gave it.
        model: The model.
        tokenizer: Its tokenizer.
        permutation: The channel permutation folded into its residual stream; None if there is none.
    """

    name: str
    model: Any
    tokenizer: Any
    permutation: Tensor | None = None


def load_model_under_test(
    name: str,
    folder: Path,
    permutations: Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> ModelUnderTest:
    """Load a model folder, dense or packed.

    Args:
        name: Name of the model, for messages and records.
        folder: The folder.
        permutations: File of the permutations folded into its weights; it may be missing.
        device: Device to load to.
        dtype: Type to compute in; "auto" is float32 on the CPU and the stored type elsewhere.
        trust_remote_code: Allow code from the folder to run.

    Raises:
        ModelError: The folder cannot be loaded.
    """
    target_device = find_device(device)
    target_dtype: torch.dtype | str = "auto"
    if dtype != "auto" or target_device.type == "cpu":
        target_dtype = find_dtype(dtype)
    model = load_model(folder, dtype=target_dtype, device=target_device, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    permutation = None
    if permutations and permutations.exists():
        reader = CheckpointReader.of_file(permutations)
        if "residual" in reader:
            permutation = reader.read("residual").long()
    return ModelUnderTest(name, model, tokenizer, permutation)
