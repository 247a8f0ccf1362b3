"""Row tiles: how a matrix is divided, and that results do not depend on which process computes which tile."""

import pytest
import torch
from threaded_row_tiles import run_threads

from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, MAX_TILE_WEIGHTS, RowTiles, sample_tiles, tile_rows

SHAPES = [(1, 1), (64, 4096), (127, 2048), (128, 1024), (512, 1408), (1408, 512), (1000, 1000), (28672, 8192)]
SHAPES += [(8192, 28672), (3, MAX_TILE_WEIGHTS + 1), (100_000, 8)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_tiles_are_even_and_bounded_and_cover_the_matrix(rows, columns):
    row_tiles = tile_rows(rows, columns)
    assert [row for tile in row_tiles for row in range(tile.start, tile.stop)] == list(range(rows))
    heights = {tile.stop - tile.start for tile in row_tiles}
    assert max(heights) - min(heights) <= 1
    assert max(heights) == 1 or max(heights) * columns <= MAX_TILE_WEIGHTS
    assert len(row_tiles) % 4 == 0 or len(row_tiles) == min(rows, 4) or len(row_tiles) == 1


def test_small_matrices_are_a_single_tile():
    assert [len(tile_rows(*shape)) for shape in ((127, 2048), (128, 1023), (128, 1024), (2048, 64))] == [1, 1, 4, 4]
    assert len(tile_rows(8192, 8192)) == 32
    assert len(tile_rows(8192, 28672)) == 60


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_sample_is_the_first_tile_of_each_quarter(rows, columns):
    row_tiles = tile_rows(rows, columns)
    sample = sample_tiles(rows, columns)
    if len(row_tiles) <= 4:
        assert sample == row_tiles
    elif len(row_tiles) % 4 == 0:
        assert [tile.start for tile in sample] == [rows * quarter // 4 for quarter in range(4)]
    assert set(map(str, sample)) <= set(map(str, row_tiles))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(128, 1024), (1408, 512), (8, 8)])
def test_every_tile_belongs_to_one_process(shape, world_size):
    matrix = torch.empty(shape, device="meta")

    def local_tiles(row_tiles: RowTiles) -> list[slice]:
        return row_tiles.tiles_of(matrix, row_tiles.rank)

    shares, _ = run_threads(world_size, local_tiles)
    assert [tile for share in shares for tile in share] == tile_rows(*shape)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_all_processes_get_the_rows_of_all(world_size):
    matrix = torch.arange(128.0).unsqueeze(1).expand(128, 1024)

    def fill(row_tiles: RowTiles) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        doubled = torch.empty(128, 1024)
        sums = torch.empty(128, dtype=torch.float64)
        row_tiles.fill(matrix, lambda rows: (2 * matrix[rows], matrix[rows].double().sum(1)), doubled, sums)
        return doubled, sums, row_tiles.broadcast(torch.tensor(row_tiles.rank))

    expected_doubled, expected_sums, _ = fill(LOCAL_ROW_TILES)
    assert torch.equal(expected_doubled, 2 * matrix)
    results, group = run_threads(world_size, fill)
    for doubled, sums, broadcast_rank in results:
        assert torch.equal(doubled, expected_doubled)
        assert torch.equal(sums, expected_sums)
        assert broadcast_rank == 0
    assert sum(row_tiles.computed for row_tiles in group) == 128
    assert max(row_tiles.computed for row_tiles in group) == -(-4 // world_size) * 32
