"""What pruning makes of one block."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class BlockResult:
    """One pruned block: every tensor of it in its stored type and the source's order, orders, and records.

    Orders are those of permuted matrices by name, or, where they are to be folded, those of the block's spaces.
    """

    index: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    orders: dict[str, Tensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    masks: dict[str, Tensor] = field(default_factory=dict)  # of the matrices to tune, by module path
    tuned: set[str] = field(default_factory=set)  # tensors that tuning has changed
