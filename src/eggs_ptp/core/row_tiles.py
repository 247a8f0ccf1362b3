"""Row tiles: rows of a matrix that are processed independently, by one process or shared among several."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

MAX_TILE_WEIGHTS = 1 << 22  # weights of a tile, as processing it takes several times their memory
_TILE_MULTIPLE = 4  # the number of tiles is a multiple of 4, so that 2 or 4 processes get equal shares
_MAX_ROWS = 256  # rows of a tile: more tiles serve more processes, and larger matrix products are no faster
_MIN_ROWS = 32  # rows of a tile: with fewer, the overhead of calls exceeds the arithmetic
_MIN_WEIGHTS = 1 << 15  # weights of a tile, for the same reason


def tile_rows(rows: int, columns: int) -> list[slice]:
    """Divide a matrix into row tiles of equal height, give or take one row; a small matrix is a single tile.

    The tiles depend on the shape alone, so that results have the same bits whichever process computes which tile.

    Args:
        rows: Rows of the matrix.
        columns: Columns of the matrix.

    Returns:
        The tiles as slices of rows, in order.
    """
    most_rows = max(1, min(max(_MAX_ROWS, _MIN_WEIGHTS // columns), MAX_TILE_WEIGHTS // columns))
    count = min(rows, _TILE_MULTIPLE * -(-rows // (_TILE_MULTIPLE * most_rows)))
    if count == _TILE_MULTIPLE and (rows < count * _MIN_ROWS or rows * columns < count * _MIN_WEIGHTS):
        count = 1
    ends = [rows * tile // count for tile in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def sample_tiles(rows: int, columns: int) -> list[slice]:
    """Return the first tile of every quarter of a matrix: all rows up to 1024 of them, and a sample beyond.

    The sample is divided among processes as evenly as the whole matrix.

    Args:
        rows: Rows of the matrix.
        columns: Columns of the matrix.
    """
    row_tiles = tile_rows(rows, columns)
    return row_tiles[:: max(1, len(row_tiles) // _TILE_MULTIPLE)]


class RowTiles:
    """Divides the row tiles of a matrix among processes; this implementation is that of a single process.

    Subclasses share the tiles among the `world_size` processes of a group, of which this one is number `rank`. All of
    them make the same calls in the same order, with equal arguments, and all get the complete result.
    """

    rank = 0
    world_size = 1

    def tiles_of(self, matrix: Tensor, rank: int) -> list[slice]:
        """Return the tiles that a process computes, which are consecutive.

        Args:
            matrix: The matrix that is divided, (rows, columns).
            rank: The process.
        """
        row_tiles = tile_rows(*matrix.shape)
        first, last = (len(row_tiles) * end // self.world_size for end in (rank, rank + 1))
        return row_tiles[first:last]

    def fill(self, matrix: Tensor, compute: Callable[[slice], tuple[Tensor, ...]], *outputs: Tensor) -> None:
        """Compute outputs tile by tile, each process its own tiles, and gather them on all processes.

        Args:
            matrix: The matrix that is divided, (rows, columns).
            compute: Takes the rows of a tile, and returns these rows of each output.
            outputs: Tensors (rows, ...) to fill in place.
        """
        for rows in self.tiles_of(matrix, self.rank):
            for output, values in zip(outputs, compute(rows), strict=True):
                output[rows] = values
        self.all_gather_rows(matrix, *outputs)

    def all_gather_rows(self, matrix: Tensor, *outputs: Tensor) -> None:
        """Complete outputs, in place, of which each process has the rows of its own tiles.

        Args:
            matrix: The matrix that is divided, (rows, columns).
            outputs: Tensors (rows, ...).
        """

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor on all processes: on other processors, rounding may have led to another one."""
        return tensor


LOCAL_ROW_TILES = RowTiles()
