from itertools import pairwise

import pytest
import torch

from eggs_ptp.core.blocks import Reading
from eggs_ptp.core.floor import _numbers, connected, diagonals, put
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.rows import row_share

READING = Reading(Pattern(2, 4), "best")


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    score = torch.rand(42, 12, generator=torch.Generator().manual_seed(0))
    return score, keep_top(score, READING.pattern), row_share(score, score, 4)


@pytest.mark.parametrize(
    ("most", "numbers"),
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
def test_the_numbers_of_blocks_that_are_tried(most, numbers):
    assert list(_numbers(most)) == numbers


def test_shares_of_a_row():
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        row_share(score, score, 2), torch.tensor([[0.3, 0.7], [0.0, 0.0]]).double(), rtol=1e-6, atol=0
    )


def test_pieces_of_any_size_make_the_same_mask_and_cost_what_they_change(monkeypatch):
    score, mask, importance = case()
    whole = mask.clone()
    (piece,) = diagonals(score, mask, importance, READING, 0, 5)
    put(whole, piece)
    torch.testing.assert_close(piece.costs.sum(), (score.double() * (mask.double() - whole.double())).sum())
    monkeypatch.setattr("eggs_ptp.core.floor._ELEMENTS", 1)
    pieces = list(diagonals(score, mask, importance, READING, 0, 5))
    assert len(pieces) == 5
    torch.testing.assert_close(torch.cat([each.costs for each in pieces]), piece.costs)
    stages = [mask.clone()]
    for count, each in enumerate(pieces, 1):
        stages.append(stages[-1].clone())
        put(stages[-1], each)
        first = mask.clone()
        put(first, piece, count)
        assert torch.equal(stages[-1], first)
    assert torch.equal(stages[-1], whole)
    assert all(not torch.equal(before, after) for before, after in pairwise(stages))


@pytest.mark.parametrize(
    ("losses", "best", "tried"),
    [
        ([4.0, 3.0, 2.0, 1.0, 0.5], 10, 5),
        ([4.0, 4.0, 3.0, 2.0, 1.0], 0, 2),  # of equal ones the fewest blocks
        ([4.0, 3.0, 2.0, 3.0, 1.0], 2, 4),
        ([1.0, 2.0, 0.0, 0.0, 0.0], 0, 2),
    ],
)
def test_the_search_takes_the_least_loss_on_the_way_up(losses, best, tried):
    """`losses` are those of 0, 1, 2, 5 and 10 blocks: the search sees no others of a matrix."""
    score, mask, importance = case()
    dense, seen = torch.zeros(42, 12), []

    def solve(kept: torch.Tensor, _rows: slice) -> torch.Tensor:
        seen.append(kept.clone())
        weight = torch.zeros(42, 12)
        weight[0, 0] = losses[len(seen) - 1] ** 0.5
        return weight

    found = connected(dense, torch.eye(12), mask, score, importance, READING, "auto", solve)
    assert found.facts["B"] == best
    assert len(seen) == tried
    assert torch.equal(found.mask, seen[[0, 1, 2, 5, 10].index(best)])
    assert torch.equal(seen[0], mask)


def test_of_many_rows_a_slab_in_every_quarter_decides():
    """Losses fall elsewhere too, for which nothing is solved before there is a decision."""
    rows, slab = 2048, 256
    score = torch.rand(rows, 128, generator=torch.Generator().manual_seed(0))
    mask, importance, dense = keep_top(score, READING.pattern), score[:, :32].double(), torch.ones(rows, 128)
    seen: list[tuple[int, slice]] = []

    def solve(kept: torch.Tensor, part: slice) -> torch.Tensor:
        seen.append((int((kept != mask).any()), part))
        return dense[part] * kept[part]

    found = connected(dense, torch.eye(128), mask, score, importance, READING, "auto", solve)
    assert found.facts["B"] == 0  # every mask loses the same, so the fewest
    assert [(changed, part.start // slab) for changed, part in seen] == [
        *((0, start) for start in (0, 2, 4, 6)),
        *((1, start) for start in (0, 2, 4, 6)),
        *((0, start) for start in (1, 3, 5, 7)),
    ]
    assert torch.equal(found.weight, dense * mask)
    assert found.facts["layer_loss"] == 0.5
