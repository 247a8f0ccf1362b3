"""A model to be measured."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.place import find_device, find_dtype
from eggs_ptp.engine.shards import Shards
from eggs_ptp.models.load import load_model, load_tokenizer


class Subject(NamedTuple):
    """A loaded model by the name that it was asked for, and the order its residual stream was folded into, if any."""

    name: str
    model: Any
    tokenizer: Any
    order: Tensor | None = None


def load_subject(
    name: str,
    folder: Path,
    orders: Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Subject:
    """Load a folder, dense or packed; `dtype` "auto" is float32 on the CPU, as stored elsewhere.

    `orders` is the file of the orders that were folded into its weights, which need not be there.

    Raises:
        ModelError: the folder cannot be loaded.
    """
    where = find_device(device)
    kind: torch.dtype | str = find_dtype(dtype) if dtype != "auto" or where.type == "cpu" else "auto"
    model = load_model(folder, dtype=kind, device=where, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    kept = Shards.of_file(orders) if orders and orders.exists() else None
    order = kept.read("residual").long() if kept is not None and "residual" in kept else None
    return Subject(name, model, tokenizer, order)
