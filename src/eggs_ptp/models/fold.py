"""Permutation folding: permutes the channels of a model's weights so that the model computes the same function.

If every tensor that shares a channel space is permuted along it, the outputs of the model do not change. The weights of
the permuted model can then satisfy an N:M pattern in their own column order.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.core.permutation import check_permutation, invert, take_columns
from eggs_ptp.errors import MethodError, ModelError
from eggs_ptp.models.family import Family, Rows
from eggs_ptp.models.heads import Heads


class _Axis(NamedTuple):
    """An axis of a tensor: its channel space (None: fixed), and how it holds the channels: as inputs, or as rows."""

    space: str | None
    rows: Rows | Literal["inputs"] = "plain"


class Fold:
    """Permutations of a model's channel spaces, and how they move its tensors.

    A permutation of a space that spans the model has the space's name, such as `residual`; one of a block has the
    block's name too, as `model.layers.3.heads` (see `space_key`). Element i is the original channel at position i. A
    permutation of heads is one of the value channels that keeps each head's channels in the head. Spaces without a
    permutation stay as they are.

    Args:
        family: The model's family.
        heads: Its attention heads.
        permutations: The permutations by name.

    Raises:
        MethodError: Something is not a permutation, or mixes heads.
    """

    def __init__(self, family: Family, heads: Heads, permutations: Mapping[str, Tensor] | None = None) -> None:
        self.family = family
        self.heads = heads
        self.permutations: dict[str, Tensor] = {}
        for name, permutation in (permutations or {}).items():
            self.add(name, permutation)

    def add(self, name: str, permutation: Tensor) -> None:
        """Add the permutation of a space.

        Args:
            name: Its name, see `space_key`.
            permutation: The permutation.

        Raises:
            MethodError: It is not a permutation, or mixes heads.
        """
        permutation = permutation.cpu().long()
        check_permutation(permutation, permutation.numel(), name)
        if self.family.scope.get(name.rpartition(".")[2]) == "head":
            width = max(1, self.heads.width)
            head = torch.arange(permutation.numel()) // width
            if permutation.numel() != self.heads.value * self.heads.width or not torch.equal(
                permutation // width, head
            ):
                raise MethodError(
                    f"{name}: expected a permutation inside each of the {self.heads.value} key/value heads of "
                    f"{self.heads.width} channels, got one that moves channels between heads"
                )
        self.permutations[name] = permutation

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the model with its axes permuted: position i holds what was at `permutation[i]`.

        Args:
            name: The tensor's name.
            tensor: The tensor.

        Raises:
            MethodError: A permutation has another number of channels than the tensor.
            ModelError: The family does not know the tensor.
        """
        for axis, permutation in self._permuted_axes(name, tensor):
            tensor = _permuted(tensor, axis, permutation)
        return tensor

    def pieces(self, name: str, rows: Iterable[Tensor]) -> Iterator[Tensor]:
        """Apply the permutations to a tensor given piece by piece; it is held whole only if its rows are permuted.

        Args:
            name: The tensor's name.
            rows: Consecutive rows of it.
        """
        first, *others = self.axes(name) or [None]
        if first is not None:
            yield self.apply(name, torch.cat([*rows]))
            return
        for piece in rows:
            for axis, permutation in enumerate(others, 1):
                piece = piece if permutation is None else _permuted(piece, axis, permutation)
            yield piece

    def undo(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor that `apply` makes this one from.

        Raises:
            MethodError: See `apply`.
            ModelError: See `apply`.
        """
        for axis, permutation in self._permuted_axes(name, tensor):
            tensor = _permuted(tensor, axis, invert(permutation))
        return tensor

    def _permuted_axes(self, name: str, tensor: Tensor) -> list[tuple[int, Tensor]]:
        """Return the axes that have a permutation, with it."""
        permuted = [(axis, permutation) for axis, permutation in enumerate(self.axes(name)) if permutation is not None]
        for axis, permutation in permuted:
            if tensor.shape[axis : axis + 1] != permutation.shape:
                raise MethodError(
                    f"{name}: the permutation of axis {axis} has {permutation.numel()} channels, "
                    f"but the tensor has shape {tuple(tensor.shape)}"
                )
        return permuted

    def axes(self, name: str) -> tuple[Tensor | None, ...]:
        """Return the permutation of each axis of a tensor; None for an axis without one.

        Args:
            name: The tensor's name.

        Raises:
            ModelError: The family does not know the tensor, so that it may share channels that are permuted.
        """
        if not self.permutations:
            return ()
        block, axes = _axes_of(self.family, name)
        return tuple(self._of_axis(block, axis) for axis in axes)

    def of_inputs(self, matrix: str) -> Tensor | None:
        """Return the permutation of a matrix's inputs; None if they are not permuted.

        Args:
            matrix: The matrix's name.

        Raises:
            ModelError: See `axes`.
        """
        block, axes = _axes_of(self.family, f"{matrix}.weight")
        return next((self._of_axis(block, axis) for axis in axes if axis.rows == "inputs"), None)

    def of_matrix(self, matrix: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the permutations of a matrix's outputs and of its inputs; None for those that are not permuted.

        A matrix outside the blocks counts as stored (out, in), so that the channels of an embedding are its inputs.

        Args:
            matrix: The matrix's name.

        Raises:
            ModelError: See `axes`; or it is no matrix.
        """
        block, axes = _axes_of(self.family, f"{matrix}.weight")
        if len(axes) != 2:
            raise ModelError(f"{matrix}: expected a matrix, got a tensor with {len(axes)} axes; adapt matrices only")
        first, second = (self._of_axis(block, axis) for axis in axes)
        return (second, first) if axes[0].rows == "inputs" else (first, second)

    def inverse(self) -> "Fold":
        """Return the fold that undoes this one: its `apply` is this one's `undo`."""
        inverses = {name: invert(permutation) for name, permutation in self.permutations.items()}
        return Fold(self.family, self.heads, inverses)

    def _of_axis(self, block: str, axis: _Axis) -> Tensor | None:
        permutation = self.permutations.get(space_key(self.family, block, axis.space)) if axis.space else None
        if permutation is None:
            return None
        if axis.rows != "inputs":
            return self.heads.rows(permutation, axis.rows)
        # The attention's output has the channels of every query head, the value projection those of key/value heads.
        return self.heads.spread(permutation) if self.family.scope[str(axis.space)] == "head" else permutation


def _permuted(tensor: Tensor, axis: int, permutation: Tensor) -> Tensor:
    if axis == tensor.dim() - 1:
        return take_columns(tensor, permutation)
    return tensor.index_select(axis, permutation.to(tensor.device))


def space_key(family: Family, block: str, space: str) -> str:
    """Return the name of a space's permutation: the space, with the block's name before it unless it spans the model.

    Args:
        family: The model's family.
        block: Name of the block, such as `model.layers.3`.
        space: Name of the space.
    """
    return space if family.scope[space] == "model" else f"{block}.{space}"


def check_names(family: Family, names: list[str]) -> None:
    """Refuse tensors that the family does not know.

    Args:
        family: The model's family.
        names: Names of the tensors.

    Raises:
        ModelError: Names the first one.
    """
    for name in names:
        _axes_of(family, name)


def _axes_of(family: Family, name: str) -> tuple[str, tuple[_Axis, ...]]:
    """Return the block that a tensor belongs to (empty if none), and its axes."""
    if name in family.outside:
        return "", tuple(map(_Axis, family.outside[name]))
    number, _, path = name.removeprefix(f"{family.blocks}.").partition(".")
    block = f"{family.blocks}.{number}"
    if name.startswith(f"{block}."):
        if linear := family.tensors.get(path):
            outputs = _Axis(linear.output_space, linear.rows)
            inputs = _Axis(family.spaces[linear.input_activation], "inputs")
            if path.endswith(".bias"):
                return block, (outputs,)
            return block, (inputs, outputs) if linear.transposed else (outputs, inputs)
        for pattern, spaces in family.inside.items():
            if fnmatchcase(path, pattern):
                return block, tuple(map(_Axis, spaces))
    raise ModelError(
        f"{name}: the {family.model_type} family does not know this tensor, so no permutation can be folded into the "
        'weights; keep the permutations apart with --permutation gather (permutation = "gather")'
    )
