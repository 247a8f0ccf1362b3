"""LoRA adapters of a model, permuted to fit the same model with permutations folded into its weights.

An adapter adds B A to a matrix W (out, in), with A (r, in) and B (out, r). Where the rows of W are permuted by p and
its columns by q, the rows of B are permuted by p and the columns of A by q: (B A)[p][:, q] = B[p] A[:, q]. So every
LoRA can be permuted; ranks, alphas and scales stay as they are.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from eggs_ptp.core.permutation import take_columns
from eggs_ptp.errors import MethodError
from eggs_ptp.models.fold import Fold

PREFIX = "base_model.model."  # of every name in an adapter file of peft


class LoraAxis(NamedTuple):
    """The axis of an adapter's tensor that has channels of the model: the matrix's inputs or its outputs."""

    side: Literal["inputs", "outputs"]
    axis: int


PARTS: Mapping[str, LoraAxis] = MappingProxyType(
    {
        "lora_A.weight": LoraAxis("inputs", 1),
        "lora_B.weight": LoraAxis("outputs", 0),
        "lora_B.bias": LoraAxis("outputs", 0),
        "lora_magnitude_vector": LoraAxis("outputs", 0),  # DoRA
        "lora_magnitude_vector.weight": LoraAxis("outputs", 0),
        "lora_embedding_A": LoraAxis("inputs", 1),
        "lora_embedding_B": LoraAxis("outputs", 0),
        "token_adapter.trainable_tokens_delta": LoraAxis("outputs", 1),
    }
)
_EMBEDDING_PARTS = ("lora_embedding_A", "lora_embedding_B", "token_adapter.trainable_tokens_delta")


class LoraName(NamedTuple):
    """The name of an adapter's tensor, taken apart.

    Attributes:
        module: The module of the model that it belongs to, such as `model.layers.0.self_attn.q_proj`.
        part: What it is of the adapter, a key of `PARTS`; None for a tensor that replaces the model's.
        tensor: The tensor of the model that it replaces (`weight` or `bias`) if `part` is None.
    """

    module: str
    part: str | None
    tensor: str = ""


def split_name(name: str) -> LoraName | None:
    """Take the name of an adapter's tensor apart.

    Args:
        name: The name, as peft writes it.

    Returns:
        Its parts; None if it is neither a part of a LoRA nor a tensor that replaces one of the model.
    """
    path = name.removeprefix(PREFIX)
    if path == name:
        return None
    for part in PARTS:
        if path.endswith(f".{part}"):
            return LoraName(path.removesuffix(f".{part}"), part)
    module, _, tensor = path.rpartition(".")
    if tensor not in ("weight", "bias") or ".lora_" in f".{module}.":
        return None
    return LoraName(module.removesuffix(".base_layer"), None, tensor)


def fold_lora(fold: Fold, module: str, part: str, tensor: Tensor, *, embedding: bool = False) -> Tensor:
    """Permute one tensor of a LoRA adapter as the permutations move the matrix that it belongs to.

    Args:
        fold: The permutations.
        module: The matrix, by its name in the checkpoint.
        part: Which tensor of the adapter it is, a key of `PARTS`.
        tensor: The tensor.
        embedding: Whether the matrix is an embedding, (tokens, channels), rather than a linear.

    Returns:
        The tensor of the adapter for the permuted matrix.

    Raises:
        MethodError: The tensor has another number of channels than the permutation.
        ModelError: The family does not know the matrix.
    """
    outputs, inputs = fold.of_matrix(module)
    if embedding:
        outputs, inputs = inputs, outputs
    side, axis = PARTS[part]
    permutation = outputs if side == "outputs" else inputs
    if permutation is None:
        return tensor
    if tensor.shape[axis : axis + 1] != permutation.shape:
        raise MethodError(
            f"{module}: expected {permutation.numel()} channels in axis {axis} of {part}, got shape "
            f"{tuple(tensor.shape)}"
        )
    if axis == tensor.dim() - 1:
        return take_columns(tensor, permutation)
    return tensor.index_select(axis, permutation)


def is_embedding_part(part: str | None) -> bool:
    """Whether a part of an adapter is one that only embeddings have."""
    return part in _EMBEDDING_PARTS
