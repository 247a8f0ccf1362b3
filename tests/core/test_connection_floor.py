from itertools import pairwise

import pytest
import torch

from eggs_ptp.core.connection_floor import add_diagonal_blocks, candidate_counts, diagonal_batches, write_diagonals
from eggs_ptp.core.diagonal_blocks import DiagonalBlocks
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.rows import row_share

DIAGONAL_BLOCKS = DiagonalBlocks(Pattern(2, 4), "best")


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score, mask and row importance of a layer of 42 x 12."""
    score = torch.rand(42, 12, generator=torch.Generator().manual_seed(0))
    return score, keep_top(score, DIAGONAL_BLOCKS.pattern), row_share(score, score, 4)


@pytest.mark.parametrize(
    ("most", "counts"),
    [
        (0, []),
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (10, [1, 2, 5, 10]),
        (32, [1, 2, 5, 10, 20, 32]),
        (1024, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1024]),
    ],
)
def test_the_numbers_of_blocks_that_auto_tries(most, counts):
    assert list(candidate_counts(most)) == counts


def test_shares_of_a_row():
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        row_share(score, score, 2), torch.tensor([[0.3, 0.7], [0.0, 0.0]]).double(), rtol=1e-6, atol=0
    )


def test_batches_of_any_size_make_the_same_mask_and_cost_what_they_change(monkeypatch):
    score, mask, importance = case()
    expected = mask.clone()
    (single_batch,) = diagonal_batches(score, mask, importance, DIAGONAL_BLOCKS, 0, 5)
    write_diagonals(expected, single_batch)
    cost = (score.double() * (mask.double() - expected.double())).sum()
    torch.testing.assert_close(single_batch.costs.sum(), cost)
    monkeypatch.setattr("eggs_ptp.core.connection_floor._ELEMENTS", 1)
    batches = list(diagonal_batches(score, mask, importance, DIAGONAL_BLOCKS, 0, 5))
    assert len(batches) == 5
    torch.testing.assert_close(torch.cat([batch.costs for batch in batches]), single_batch.costs)
    masks = [mask.clone()]
    for count, batch in enumerate(batches, 1):
        masks.append(masks[-1].clone())
        write_diagonals(masks[-1], batch)
        first_blocks = mask.clone()
        write_diagonals(first_blocks, single_batch, count)
        assert torch.equal(masks[-1], first_blocks)
    assert torch.equal(masks[-1], expected)
    assert all(not torch.equal(before, after) for before, after in pairwise(masks))


@pytest.mark.parametrize(
    ("losses", "best", "evaluated"),
    [
        ([4.0, 3.0, 2.0, 1.0, 0.5], 10, 5),
        ([4.0, 4.0, 3.0, 2.0, 1.0], 0, 2),  # of equal losses the fewest blocks
        ([4.0, 3.0, 2.0, 3.0, 1.0], 2, 4),
        ([1.0, 2.0, 0.0, 0.0, 0.0], 0, 2),
    ],
)
def test_auto_stops_at_the_first_number_of_blocks_that_does_not_lower_the_loss(losses, best, evaluated):
    """`losses` are those of 0, 1, 2, 5 and 10 blocks, the numbers that are tried for this shape."""
    score, mask, importance = case()
    dense = torch.zeros(42, 12)
    masks = []

    def solve(candidate: torch.Tensor, _rows: slice) -> torch.Tensor:
        masks.append(candidate.clone())
        weight = torch.zeros(42, 12)
        weight[0, 0] = losses[len(masks) - 1] ** 0.5
        return weight

    result = add_diagonal_blocks(dense, torch.eye(12), mask, score, importance, DIAGONAL_BLOCKS, "auto", solve)
    assert result.diagnostics["B"] == best
    assert len(masks) == evaluated
    assert torch.equal(result.mask, masks[[0, 1, 2, 5, 10].index(best)])
    assert torch.equal(masks[0], mask)


def test_with_many_rows_one_tile_of_each_quarter_decides():
    """The other tiles are solved only once the number of blocks is decided."""
    rows = 2048
    tile_height = 256
    score = torch.rand(rows, 128, generator=torch.Generator().manual_seed(0))
    mask = keep_top(score, DIAGONAL_BLOCKS.pattern)
    importance = score[:, :32].double()
    dense = torch.ones(rows, 128)
    solved: list[tuple[int, slice]] = []

    def solve(candidate: torch.Tensor, tile: slice) -> torch.Tensor:
        solved.append((int((candidate != mask).any()), tile))
        return dense[tile] * candidate[tile]

    result = add_diagonal_blocks(dense, torch.eye(128), mask, score, importance, DIAGONAL_BLOCKS, "auto", solve)
    assert result.diagnostics["B"] == 0  # every mask has the same loss, so the fewest blocks
    assert [(changed, tile.start // tile_height) for changed, tile in solved] == [
        *((0, tile) for tile in (0, 2, 4, 6)),
        *((1, tile) for tile in (0, 2, 4, 6)),
        *((0, tile) for tile in (1, 3, 5, 7)),
    ]
    assert torch.equal(result.weight, dense * mask)
    assert result.diagnostics["layer_loss"] == 0.5
