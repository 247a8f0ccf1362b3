"""Heads: how the attention of a model divides its channels, and where fused matrices have them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Rows

_CHANNELS = 1 << 31  # more than any tensor has


@dataclass(frozen=True)
class Heads:
    """The attention of a model: `query` heads of `width` channels on `value` key/value heads."""

    query: int
    value: int
    width: int

    @classmethod
    def of(cls, config: Any, *, grouped: bool = True) -> "Heads":
        """The heads that a config of transformers describes; one of no width where it describes none.

        Without `grouped` their number and width are all that is believed, as it is all that the model type reads.

        Raises:
            ModelError: numbers that no attention can have.
        """
        query = int(getattr(config, "num_attention_heads", None) or 1)
        if hasattr(config, "new_decoder_architecture"):  # Falcon, whose number of key/value heads may be out of use
            value = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else query
        else:
            value = (grouped and getattr(config, "num_key_value_heads", None)) or query
        width = (grouped and getattr(config, "head_dim", None)) or getattr(config, "hidden_size", 0) // query
        value, width = int(value), int(width)
        if query < 1 or value < 1 or width < 0 or query % value or query * width > _CHANNELS:
            raise ModelError(
                f"config.json: no attention can have {query} heads of {width} channels on {value} key/value heads"
            )
        return cls(query, value, width)

    def spread(self, order: Tensor) -> Tensor:
        """An order of the value channels (value * width,), as one of what the heads put out (query * width,)."""
        within = order.view(self.value, self.width) % self.width
        first = torch.arange(self.query, device=order.device)[:, None] * self.width
        return (within.repeat_interleave(self.query // self.value, 0) + first).reshape(-1)

    def gather(self, order: Tensor) -> Tensor:
        """The reverse of `spread`."""
        within = order.view(self.query, self.width)[:: self.query // self.value] % self.width
        first = torch.arange(self.value, device=order.device)[:, None] * self.width
        return (within + first).reshape(-1)

    def rows(self, order: Tensor, rows: Rows) -> Tensor:
        """An order of the channels that a matrix writes, as one of all its rows."""
        if rows == "pair":
            return torch.cat([order, order + order.numel()])
        if rows == "qkv":
            before = (self.query + self.value) * self.width
            return torch.cat([torch.arange(before, device=order.device), order + before])
        if rows == "qkv_by_head":
            each = (self.query // self.value + 2) * self.width  # rows of one key/value head
            found = torch.arange(self.value * each, device=order.device).view(self.value, each)
            found[:, -self.width :] = found[:, -self.width, None] + order.view(self.value, self.width) % self.width
            return found.reshape(-1)
        return order
