"""Slabs: where a matrix is cut, and that it makes no difference who works on which."""

import pytest
import torch
from beside import side_by_side

from eggs_ptp.core.slabs import ALONE, AT_ONCE, Slabs, cut, quarters

SHAPES = [(1, 1), (64, 4096), (127, 2048), (128, 1024), (512, 1408), (1408, 512), (1000, 1000), (28672, 8192)]
SHAPES += [(8192, 28672), (3, AT_ONCE + 1), (100_000, 8)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_slabs_are_even_and_bounded_and_cover_the_matrix(rows, columns):
    slabs = cut(rows, columns)
    assert [row for slab in slabs for row in range(slab.start, slab.stop)] == list(range(rows))
    sizes = {slab.stop - slab.start for slab in slabs}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or max(sizes) * columns <= AT_ONCE
    assert len(slabs) % 4 == 0 or len(slabs) == min(rows, 4) or len(slabs) == 1


def test_small_matrices_are_not_cut():
    assert [len(cut(*shape)) for shape in ((127, 2048), (128, 1023), (128, 1024), (2048, 64))] == [1, 1, 4, 4]
    assert len(cut(8192, 8192)) == 32
    assert len(cut(8192, 28672)) == 60


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_quarter_is_seen_by_its_first_slab(rows, columns):
    slabs, seen = cut(rows, columns), quarters(rows, columns)
    if len(slabs) <= 4:
        assert seen == slabs
    elif len(slabs) % 4 == 0:
        assert [slab.start for slab in seen] == [rows * quarter // 4 for quarter in range(4)]
    assert set(map(str, seen)) <= set(map(str, slabs))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(128, 1024), (1408, 512), (8, 8)])
def test_every_slab_is_somebodys(shape, count):
    over = torch.empty(shape, device="meta")

    def shares(one: Slabs) -> list[slice]:
        return one.slabs_of(over, one.rank)

    found, _ = side_by_side(count, shares)
    assert [slab for share in found for slab in share] == cut(*shape)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_come_to_have_what_each_has_worked_on(count):
    over = torch.arange(128.0).unsqueeze(1).expand(128, 1024)

    def fill(slabs: Slabs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        doubled, sums = torch.empty(128, 1024), torch.empty(128, dtype=torch.float64)
        slabs.fill(over, lambda rows: (2 * over[rows], over[rows].double().sum(1)), doubled, sums)
        return doubled, sums, slabs.agreed(torch.tensor(slabs.rank))

    alone = fill(ALONE)
    assert torch.equal(alone[0], 2 * over)
    found, workers = side_by_side(count, fill)
    for doubled, sums, first in found:
        assert torch.equal(doubled, alone[0])
        assert torch.equal(sums, alone[1])
        assert first == 0
    assert sum(one.worked for one in workers) == 128
    assert max(one.worked for one in workers) == -(-4 // count) * 32
