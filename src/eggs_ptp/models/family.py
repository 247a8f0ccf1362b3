"""Family: what the project knows about an architecture, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# How far an order of a space's channels reaches. "model": one order for the whole model, as of the residual stream;
# "head": inside each key/value head of a block, the same for all query heads that share it; "block": free in a block.
Reach = Literal["model", "head", "block"]


@dataclass(frozen=True)
class Linear:
    """A prunable matrix of a decoder block: its module path inside the block and the activation it reads.

    `role` is "attention" or "mlp"; methods that treat the two differently (DSnoT) ask for it. `writes` is the space
    that its outputs live in; None where they must stay where they are, as queries and keys before a rotation.
    """

    path: str
    reads: str
    role: str
    writes: str | None = None


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its decoder blocks, and the linears of one block in the order they run.

    Linears with the same `reads` see the very same activation, so they share statistics and may share an order.

    `norm` is the module that the last block's outputs pass before the head. `spaces` says which space each activation
    lives in, `reach` how far an order of that space goes. `inside` has the other tensors of a block, `outside` those
    beyond the blocks, each with the space of every axis (None: fixed).
    """

    model_type: str
    blocks: str
    norm: str
    linears: tuple[Linear, ...]
    spaces: Mapping[str, str]
    reach: Mapping[str, Reach]
    inside: Mapping[str, tuple[str | None, ...]]
    outside: Mapping[str, tuple[str | None, ...]]

    @property
    def writers(self) -> tuple[str, ...]:
        """Paths of the linears whose outputs are added to the stream that spans the model as they are."""
        return tuple(linear.path for linear in self.linears if self.reach.get(str(linear.writes)) == "model")
