"""Family: what the project knows about an architecture, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """A prunable matrix of a decoder block: its module path inside the block and the activation it reads.

    `role` is "attention" or "mlp"; methods that treat the two differently (DSnoT) ask for it.
    """

    path: str
    reads: str
    role: str


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its decoder blocks, and the linears of one block in the order they run.

    Linears with the same `reads` see the very same activation, so they share statistics and may share an order.
    """

    model_type: str
    blocks: str
    linears: tuple[Linear, ...]
