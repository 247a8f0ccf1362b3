"""Family: what the project knows about a model architecture, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

# How the channels of a space may be permuted. "model": by one permutation for the whole model, as the residual stream.
# "head": inside each key/value head of a block, the same for all query heads that share it. "block": freely in a block.
# "fixed": not at all, as it is not known which other tensors share the channels.
PermutationScope = Literal["model", "head", "block", "fixed"]

# Which rows of a matrix hold its output channels. "plain": all rows. "pair": both halves hold the same channels, as of
# a gate and what it gates. "qkv": the last rows, after those of all queries and keys. "qkv_by_head": the last rows of
# each key/value head, after that head's queries and key.
Rows = Literal["plain", "pair", "qkv", "qkv_by_head"]


@dataclass(frozen=True)
class Linear:
    """A prunable matrix of a decoder block.

    Attributes:
        path: Its module path inside the block.
        input_activation: Name of its input activation. Linears with the same one get the very same tensor.
        role: `"attention"` or `"mlp"`; DSnoT treats the two differently.
        output_space: The channel space of its outputs; None if they must not be permuted, as queries and keys before a
            rotary embedding.
        rows: Which rows hold the channels of that space.
        adds: Whether its output is added to the residual stream as it is, not normalised, weighted or gated first.
        transposed: Whether its weight is stored as (in, out).
        optional: Whether some blocks lack it.
        routed: Whether it sees only the tokens that a router sends to it.
    """

    path: str
    input_activation: str
    role: str
    output_space: str | None = None
    rows: Rows = "plain"
    adds: bool = True
    transposed: bool = False
    optional: bool = False
    routed: bool = False


@dataclass(frozen=True)
class Family:
    """An architecture: where its decoder blocks are, the linears of a block, and which tensors share channels.

    Attributes:
        model_type: The model type, as in config.json.
        blocks: Module path of the list of decoder blocks.
        linears: The linears of a block, in the order they run. Those with the same input activation share statistics,
            and may share a permutation.
        spaces: The channel space of each input activation.
        scope: How the channels of each space may be permuted.
        inside: The channel space of each axis (None: fixed) of the other tensors of a block, by path or by a glob of
            paths.
        outside: The same of the tensors outside the blocks, by name.
        stored: Names in checkpoints of tensors that transformers calls by another name.
        known: False if the family was found in the module tree of a model without one.
        grouped: False if each query head has its own key/value head, whatever a config says.
    """

    model_type: str
    blocks: str
    linears: tuple[Linear, ...]
    spaces: Mapping[str, str]
    scope: Mapping[str, PermutationScope]
    inside: Mapping[str, tuple[str | None, ...]]
    outside: Mapping[str, tuple[str | None, ...]]
    stored: Mapping[str, str] = field(default_factory=dict)
    known: bool = True
    grouped: bool = True

    @cached_property
    def tensors(self) -> Mapping[str, Linear]:
        """The linears of a block by the paths of their tensors; cached, as a mixture of experts has thousands."""
        return {f"{linear.path}.{name}": linear for linear in self.linears for name in ("weight", "bias")}

    @property
    def folds(self) -> bool:
        """Whether any permutation can be folded into the weights."""
        return any(scope != "fixed" for scope in self.scope.values())

    @property
    def residual_producers(self) -> tuple[str, ...]:
        """Paths of the linears whose outputs are added to the residual stream as they are."""
        return tuple(
            linear.path
            for linear in self.linears
            if linear.adds and linear.output_space is not None and self.scope[linear.output_space] == "model"
        )

    def of_block(self, paths: Iterable[str]) -> tuple[Linear, ...]:
        """Return the linears that a block has, in the order they run.

        Args:
            paths: Paths of all modules of the block.
        """
        existing = set(paths)
        return tuple(linear for linear in self.linears if linear.path in existing)


def norms(*paths: str, bias: bool = False) -> dict[str, tuple[str | None, ...]]:
    """Return entries of `Family.inside` or `outside` for norms of the residual stream.

    Args:
        *paths: Module paths of the norms.
        bias: Whether they have biases.
    """
    names = ("weight", "bias") if bias else ("weight",)
    return {f"{path}.{name}": ("residual",) for path in paths for name in names}
