"""Fold: orders of a model's spaces moved into its weights, which leaves what the model computes as it was."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.core.order import check, invert, take_columns
from eggs_ptp.errors import MethodError, ModelError
from eggs_ptp.models.family import Family, Rows
from eggs_ptp.models.heads import Heads


class _Axis(NamedTuple):
    """The space that an axis of a tensor lives in (None: fixed), and how: as its rows have it, or as it is read."""

    space: str | None
    rows: Rows | Literal["read"] = "plain"


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
            head = torch.arange(order.numel()) // max(1, self.heads.width)
            if order.numel() != self.heads.value * self.heads.width or not torch.equal(
                order // max(1, self.heads.width), head
            ):
                raise MethodError(
                    f"{name}: expected an order that keeps each of the {self.heads.value} key/value heads of "
                    f"{self.heads.width} channels to itself, but got one that does not"
                )
        self.orders[name] = order

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model as the orders have it: axis by axis, place i holds what `order[i]` held.

        Raises:
            MethodError: an order of another number of channels than the tensor has.
        """
        for axis, order in self._moved(name, tensor):
            tensor = _taken(tensor, axis, order)
        return tensor

    def pieces(self, name: str, rows: Iterable[Tensor]) -> Iterator[Tensor]:
        """`apply` to a tensor given some rows at a time, not all in memory at once unless rows change places."""
        first, *others = self.axes(name) or [None]
        if first is not None:
            yield self.apply(name, torch.cat([*rows]))
            return
        for piece in rows:
            for axis, order in enumerate(others, 1):
                piece = piece if order is None else _taken(piece, axis, order)
            yield piece

    def undo(self, name: str, tensor: Tensor) -> Tensor:
        """The reverse of `apply`.

        Raises:
            MethodError: as `apply`.
        """
        for axis, order in self._moved(name, tensor):
            tensor = _taken(tensor, axis, invert(order))
        return tensor

    def _moved(self, name: str, tensor: Tensor) -> list[tuple[int, Tensor]]:
        """The axes that have an order, with it."""
        moved = [(axis, order) for axis, order in enumerate(self.axes(name)) if order is not None]
        for axis, order in moved:
            if tensor.shape[axis : axis + 1] != order.shape:
                raise MethodError(
                    f"{name}: an order of axis {axis} has {order.numel()} channels, "
                    f"but the tensor has shape {tuple(tensor.shape)}"
                )
        return moved

    def axes(self, name: str) -> tuple[Tensor | None, ...]:
        """The order of each axis of the tensor called `name`; None where it has none.

        Raises:
            ModelError: the family does not know the tensor, so it may live in a space that moves.
        """
        if not self.orders:
            return ()
        block, axes = _place(self.family, name)
        return tuple(self._of_axis(block, axis) for axis in axes)

    def of_inputs(self, matrix: str) -> Tensor | None:
        """The order that the inputs of the matrix called `matrix` are in; None where they are in the model's own.

        Raises:
            ModelError: as `axes`.
        """
        block, axes = _place(self.family, f"{matrix}.weight")
        return next((self._of_axis(block, axis) for axis in axes if axis.rows == "read"), None)

    def _of_axis(self, block: str, axis: _Axis) -> Tensor | None:
        order = self.orders.get(space_key(self.family, block, axis.space)) if axis.space else None
        if order is None:
            return None
        if axis.rows != "read":
            return self.heads.rows(order, axis.rows)
        # What is read has every query head, what is written has not.
        return self.heads.spread(order) if self.family.reach[str(axis.space)] == "head" else order


def _taken(tensor: Tensor, axis: int, order: Tensor) -> Tensor:
    if axis == tensor.dim() - 1:
        return take_columns(tensor, order)
    return tensor.index_select(axis, order.to(tensor.device))


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


def _place(family: Family, name: str) -> tuple[str, tuple[_Axis, ...]]:
    """The block that a tensor is in (or none), and what each of its axes lives in."""
    if name in family.outside:
        return "", tuple(map(_Axis, family.outside[name]))
    number, _, path = name.removeprefix(f"{family.blocks}.").partition(".")
    block = f"{family.blocks}.{number}"
    if name.startswith(f"{block}."):
        if linear := family.tensors.get(path):
            axes = (_Axis(linear.writes, linear.rows), _Axis(family.spaces[linear.reads], "read"))
            if path.endswith(".bias"):
                return block, axes[:1]
            return block, axes[::-1] if linear.transposed else axes
        for pattern, spaces in family.inside.items():
            if fnmatchcase(path, pattern):
                return block, tuple(map(_Axis, spaces))
    raise ModelError(
        f"{name}: the {family.model_type} family does not know this tensor, so no order can be folded into the "
        'weights; keep the orders apart with --orders gather (orders = "gather")'
    )
