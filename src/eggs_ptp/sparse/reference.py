"""The reference backend: unpacks a tile of rows at a time and multiplies it as dense. Any pattern, on any device."""

from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import VALUE_KINDS, Packed, expand
from eggs_ptp.sparse.backends import Backend

_TILE = 1 << 20  # weights unpacked at a time, which is a few megabytes in addition to the operands


def unsupported_reason(*_product: object) -> None:
    """Return None: this backend computes every product."""


def prepare(packed: Packed) -> Packed:
    """Return the matrix itself."""
    return packed


def linear(x: Tensor, packed: Packed) -> Tensor:
    """Compute y = x W^T, (batch, rows), by torch's dense product of the same type.

    A pruned weight is a zero in the tile like any other: where x is infinite or NaN it gives NaN, as in the dense
    model.
    """
    y = x.new_empty(x.shape[0], packed.rows)
    for start, tile in packed.tiles(_TILE):
        y[:, start : start + tile.rows] = dense_linear(x, expand(tile))
    return y


REFERENCE = Backend(
    name="reference",
    description="plain torch, rows unpacked tile by tile: any N:M, float, int8 and int4 values",
    unsupported_reason=unsupported_reason,
    prepare=prepare,
    linear=linear,
    value_kinds=VALUE_KINDS,
    priority=0,
)
