"""The plain product: rows are unpacked a tile at a time and multiplied as dense ones. Any pattern, everywhere."""

from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import KINDS, Packed, expand
from eggs_ptp.sparse.backends import Backend

_TILE = 1 << 20  # weights unpacked at a time: what the product needs beside its operands, a few megabytes


def why_not(*_product: object) -> None:
    """Nothing stands in its way."""


def prepare(packed: Packed) -> Packed:
    """Itself."""
    return packed


def linear(x: Tensor, packed: Packed) -> Tensor:
    """Y = x W^T, (batch, rows): each output is the dense product's own, computed by torch in the same type.

    A pruned weight is a zero of the tile like any other: where x is infinite or NaN it gives NaN, as the dense model
    does.
    """
    y = x.new_empty(x.shape[0], packed.rows)
    for start, tile in packed.tiles(_TILE):
        y[:, start : start + tile.rows] = dense_linear(x, expand(tile))
    return y


REFERENCE = Backend(
    "reference",
    "plain torch: rows unpacked tile by tile, any N:M, values as they are, int8 or int4",
    why_not,
    prepare,
    linear,
    KINDS,
)
