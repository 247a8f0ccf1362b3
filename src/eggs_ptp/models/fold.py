"""Fold: orders of a model's spaces moved into its weights, which leaves what the model computes as it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.core.order import check, invert
from eggs_ptp.errors import MethodError, ModelError
from eggs_ptp.models.family import Family


@dataclass(frozen=True)
class Heads:
    """The attention of a model: `query` heads of `width` channels on `value` key/value heads."""

    query: int
    value: int
    width: int

    @classmethod
    def of(cls, config: Any) -> "Heads":
        """The heads that a config of transformers describes."""
        query = int(config.num_attention_heads)
        value = getattr(config, "num_key_value_heads", None) or query
        return cls(query, int(value), int(getattr(config, "head_dim", None) or config.hidden_size // query))

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


class Fold:
    """Orders of spaces: `residual` and its like for the whole model, `model.layers.3.heads` for one block.

    `order[i]` is the old channel that stands at place i. An order of heads is one of the value channels, which each
    head keeps to itself. A space without an order stays as it is.

    Raises:
        MethodError: something that is no order, or one that mixes heads.
    """

    def __init__(self, family: Family, heads: Heads, orders: Mapping[str, Tensor] | None = None) -> None:
        self.family, self.heads = family, heads
        self.orders: dict[str, Tensor] = {}
        for name, order in (orders or {}).items():
            self.add(name, order)

    def add(self, name: str, order: Tensor) -> None:
        """Take the order of one more space."""
        order = order.cpu().long()
        check(order, order.numel(), name)
        if self.family.reach.get(name.rpartition(".")[2]) == "head":
            head = torch.arange(order.numel()) // self.heads.width
            if order.numel() != self.heads.value * self.heads.width or not torch.equal(order // self.heads.width, head):
                raise MethodError(
                    f"{name}: expected an order that keeps each of the {self.heads.value} key/value heads of "
                    f"{self.heads.width} channels to itself, but got one that does not"
                )
        self.orders[name] = order

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model as the orders have it: axis by axis, place i holds what `order[i]` held."""
        for axis, order in enumerate(self.axes(name)):
            if order is not None:
                tensor = tensor.index_select(axis, order.to(tensor.device))
        return tensor

    def undo(self, name: str, tensor: Tensor) -> Tensor:
        """The reverse of `apply`."""
        for axis, order in enumerate(self.axes(name)):
            if order is not None:
                tensor = tensor.index_select(axis, invert(order).to(tensor.device))
        return tensor

    def axes(self, name: str) -> tuple[Tensor | None, ...]:
        """The order of each axis of the tensor called `name`; None where it has none.

        Raises:
            ModelError: the family does not know the tensor, so it may live in a space that moves.
        """
        if not self.orders:
            return ()
        block, spaces = _place(self.family, name)
        orders = [self.orders.get(space_key(self.family, block, space)) if space else None for space in spaces]
        if len(orders) == 2 and orders[1] is not None and self.family.reach[str(spaces[1])] == "head":
            orders[1] = self.heads.spread(orders[1])  # what is read has every query head, what is written has not
        return tuple(orders)


def space_key(family: Family, block: str, space: str) -> str:
    """What an order of a space is called: the space alone where it spans the model, else with the block's name."""
    return space if family.reach[space] == "model" else f"{block}.{space}"


def check_names(family: Family, names: list[str]) -> None:
    """Refuse tensors that the family does not know.

    Raises:
        ModelError: names the first.
    """
    for name in names:
        _place(family, name)


def _place(family: Family, name: str) -> tuple[str, tuple[str | None, ...]]:
    """The block that a tensor is in (or none), and the space of each of its axes."""
    if name in family.outside:
        return "", family.outside[name]
    number, _, path = name.removeprefix(f"{family.blocks}.").partition(".")
    block = f"{family.blocks}.{number}"
    if name.startswith(f"{block}."):
        if path in family.inside:
            return block, family.inside[path]
        for linear in family.linears:
            if path == f"{linear.path}.weight":
                return block, (linear.writes, family.spaces[linear.reads])
            if path == f"{linear.path}.bias":
                return block, (linear.writes,)
    raise ModelError(
        f"{name}: the {family.model_type} family does not know this tensor, so no order can be folded into the "
        'weights; keep the orders apart with --orders gather (orders = "gather")'
    )
