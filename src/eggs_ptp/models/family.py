"""Family: what the project knows about an architecture, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

# How far an order of a space's channels reaches. "model": one order for the whole model, as of the residual stream;
# "head": inside each key/value head of a block, the same for all query heads that share it; "block": free in a block;
# "fixed": nowhere, as nothing is known of who else reads or writes the channels.
Reach = Literal["model", "head", "block", "fixed"]

# Where the rows of a matrix have the channels that it writes. "plain": it has no others. "pair": twice, all of them and
# all of them again, as a gate and what it gates. "qkv": behind those of all queries and keys. "qkv_by_head": key/value
# head by head, behind that head's queries and key.
Rows = Literal["plain", "pair", "qkv", "qkv_by_head"]


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
    rows: Rows = "plain"
    adds: bool = True  # what it puts out is added to the stream as it is: not normed, weighted or gated first
    transposed: bool = False  # stored as (in, out)
    optional: bool = False  # a block may lack it
    routed: bool = False  # sees only the tokens that a router sends it


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its decoder blocks, and the linears of one block in the order they run.

    Linears with the same `reads` see the very same activation, so they share statistics and may share an order.

    `spaces` says which space each activation lives in, `reach` how far an order of that space goes. `inside` has the
    other tensors of a block (by path, or a pattern of paths), `outside` those beyond the blocks, each with the space of
    every axis (None: fixed). `stored` has the names that checkpoints give to tensors that transformers calls otherwise.
    """

    model_type: str
    blocks: str
    linears: tuple[Linear, ...]
    spaces: Mapping[str, str]
    reach: Mapping[str, Reach]
    inside: Mapping[str, tuple[str | None, ...]]
    outside: Mapping[str, tuple[str | None, ...]]
    stored: Mapping[str, str] = field(default_factory=dict)
    known: bool = True  # False: found in the module tree
    grouped: bool = True  # False: query heads share nothing, whatever a config says

    @cached_property
    def tensors(self) -> Mapping[str, Linear]:
        """The linears of a block by the paths of their tensors; a mixture of experts has thousands."""
        return {f"{linear.path}.{part}": linear for linear in self.linears for part in ("weight", "bias")}

    @property
    def folds(self) -> bool:
        """Whether any order can be moved into the weights."""
        return any(reach != "fixed" for reach in self.reach.values())

    @property
    def writers(self) -> tuple[str, ...]:
        """Paths of the linears whose outputs are added to the stream that spans the model as they are."""
        return tuple(
            linear.path
            for linear in self.linears
            if linear.adds and linear.writes is not None and self.reach[linear.writes] == "model"
        )

    def of_block(self, paths: Iterable[str]) -> tuple[Linear, ...]:
        """The linears of a block that has those paths, in the order they run."""
        found = set(paths)
        return tuple(linear for linear in self.linears if linear.path in found)


def norms(*paths: str, bias: bool = False) -> dict[str, tuple[str | None, ...]]:
    """The tensors of norms over the residual stream."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{path}.{part}": ("residual",) for path in paths for part in parts}
