"""Attention heads: how a model divides its channels into heads, and which rows of fused matrices hold them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Rows

_MAX_CHANNELS = 1 << 31  # more than any tensor has


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model.

    Attributes:
        query: Number of query heads.
        value: Number of key/value heads.
        width: Channels of a head; 0 if the model has no attention heads, or none that are known.
    """

    query: int
    value: int
    width: int

    @classmethod
    def of(cls, config: Any, *, grouped: bool = True) -> "Heads":
        """Return the heads that a config describes.

        Args:
            config: The model's config, as transformers loads it.
            grouped: Whether the model type reads the keys of grouped-query attention, the number of key/value heads and
                the width of a head. If not, they are ignored.

        Raises:
            ModelError: The numbers are not possible.
        """
        query = int(getattr(config, "num_attention_heads", None) or 1)
        if not hasattr(config, "new_decoder_architecture"):
            value = (grouped and getattr(config, "num_key_value_heads", None)) or query
        elif config.new_decoder_architecture:  # Falcon, which does not always use `num_kv_heads`
            value = config.num_kv_heads
        else:
            value = 1 if config.multi_query else query
        width = (grouped and getattr(config, "head_dim", None)) or getattr(config, "hidden_size", 0) // query
        value = int(value)
        width = int(width)
        if query < 1 or value < 1 or width < 0 or query % value or query * width > _MAX_CHANNELS:
            raise ModelError(
                f"config.json: no attention can have {query} heads of {width} channels on {value} key/value heads"
            )
        return cls(query, value, width)

    def spread(self, permutation: Tensor) -> Tensor:
        """Return a permutation of the value channels as one of the attention's output channels.

        Args:
            permutation: (value * width,), inside each key/value head.

        Returns:
            (query * width,): each query head's channels are permuted like those of its key/value head.
        """
        within = permutation.view(self.value, self.width) % self.width
        first = torch.arange(self.query, device=permutation.device)[:, None] * self.width
        return (within.repeat_interleave(self.query // self.value, 0) + first).reshape(-1)

    def gather(self, permutation: Tensor) -> Tensor:
        """Return the permutation that `spread` makes this one from."""
        within = permutation.view(self.query, self.width)[:: self.query // self.value] % self.width
        first = torch.arange(self.value, device=permutation.device)[:, None] * self.width
        return (within + first).reshape(-1)

    def rows(self, permutation: Tensor, rows: Rows) -> Tensor:
        """Return a permutation of a matrix's output channels as one of all its rows.

        Args:
            permutation: Permutation of the output channels.
            rows: Which rows hold them.
        """
        if rows == "pair":
            return torch.cat([permutation, permutation + permutation.numel()])
        if rows == "qkv":
            before = (self.query + self.value) * self.width
            return torch.cat([torch.arange(before, device=permutation.device), permutation + before])
        if rows == "qkv_by_head":
            group_rows = (self.query // self.value + 2) * self.width  # rows of one key/value head and its query heads
            all_rows = torch.arange(self.value * group_rows, device=permutation.device).view(self.value, group_rows)
            all_rows[:, -self.width :] = (
                all_rows[:, -self.width, None] + permutation.view(self.value, self.width) % self.width
            )
            return all_rows.reshape(-1)
        return permutation
