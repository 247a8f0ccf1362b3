import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import expander as oracle
from scipy.optimize import linprog

from eggs_ptp.core.diagonal_blocks import DiagonalBlocks
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.regular import all_regular, bands, best_regular, most_retained, transport
from eggs_ptp.errors import MethodError, PatternError

SQUARES = [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (2, 5), (3, 5), (2, 8), (3, 8), (4, 8), (7, 8), (4, 16)]


def sample_blocks(size: int, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Blocks of scores with different distributions, (count, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, size)
    normal = torch.randn(shape, generator=generator)
    rows = torch.rand(shape[:2], generator=generator)
    columns = torch.rand(shape[:2], generator=generator)
    return {
        "plain": normal.abs(),
        "heavy": torch.exp(4 * normal),
        "tied": torch.randint(0, 3, shape, generator=generator).float(),
        "sparse": normal.abs() * (torch.rand(shape, generator=generator) < 0.3),
        "same columns best in all rows": columns[:, None, :] + 1e-3 * rows[:, :, None] * columns[:, None, :],
        "rank one": rows[:, :, None] * columns[:, None, :],
        "negative": normal - 2.0,
        "tiny": normal.abs() * 1e-38,
        "huge": normal.abs() * 1e37,
    }


def optimum(block: torch.Tensor, keep: int) -> float:
    """Solve the transport problem by linear programming, whose vertices are integers: an independent solver."""
    size = len(block)
    exact = block.double().numpy()
    sums = np.zeros((2 * size, size * size))
    for t in range(size):
        sums[t, t * size : (t + 1) * size] = 1.0
        sums[size + t, t::size] = 1.0
    scaled = -exact.ravel() / (np.abs(exact).max() or 1.0)
    tolerances = {"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10}
    solution = linprog(scaled, A_eq=sums, b_eq=[keep] * 2 * size, bounds=(0, 1), options=tolerances)
    assert solution.success
    assert np.allclose(solution.x, solution.x.round())
    return math.fsum(exact.ravel()[solution.x.round() == 1])


def retained(blocks: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return (blocks.double() * kept).sum((1, 2))


def assert_regular(kept: torch.Tensor, keep: int) -> None:
    assert kept.dtype == torch.bool
    assert (kept.sum(1) == keep).all()
    assert (kept.sum(2) == keep).all()


@pytest.mark.parametrize(
    ("keep", "size", "count"), [(1, 2, 2), (1, 3, 6), (1, 4, 24), (2, 4, 90), (3, 4, 24), (2, 5, 2040)]
)
def test_every_regular_block_is_listed(keep: int, size: int, count: int) -> None:
    listed = all_regular(size, keep)
    assert_regular(listed, keep)
    assert len(listed.flatten(1).unique(dim=0)) == count
    assert {tuple(map(tuple, m)) for m in oracle.regular_blocks(size, keep)} == {
        tuple(map(tuple, m)) for m in listed.tolist()
    }


@pytest.mark.parametrize(("keep", "size"), SQUARES)
def test_best_is_the_optimum(keep: int, size: int) -> None:
    for name, blocks in sample_blocks(size, 8 if size < 8 else 3).items():
        kept = best_regular(blocks, keep)
        assert_regular(kept, keep)
        for block, score in zip(blocks, retained(blocks, kept), strict=True):
            assert float(score) == pytest.approx(
                optimum(block, keep), rel=1e-9, abs=1e-12 * float(block.abs().max())
            ), name


@pytest.mark.parametrize(("keep", "size"), [(1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (2, 5), (3, 5)])
def test_transport_and_enumeration_agree(keep: int, size: int) -> None:
    for name, blocks in sample_blocks(size, 60, seed=1).items():
        flow, listed = transport(blocks, keep), most_retained(blocks, all_regular(size, keep))
        assert_regular(flow, keep)
        assert torch.allclose(retained(blocks, flow), retained(blocks, listed), rtol=1e-13, atol=0.0), name
        if name in ("plain", "negative"):  # the optimum is unique
            assert torch.equal(flow, listed), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 4), (2, 4), (3, 4), (2, 5), (3, 6), (4, 8)]), st.integers(1, 4))
def test_best_of_tied_scores(seed: int, square: tuple[int, int], levels: int) -> None:
    keep, size = square
    blocks = torch.randint(0, levels, (3, size, size), generator=torch.Generator().manual_seed(seed)).float()
    kept = best_regular(blocks, keep)
    assert_regular(kept, keep)
    for block, score in zip(blocks, retained(blocks, kept), strict=True):
        assert float(score) == round(optimum(block, keep))


@pytest.mark.parametrize(("keep", "size"), SQUARES)
def test_a_circulant_is_preferred_among_equally_good_blocks(keep: int, size: int) -> None:
    circulants = bands(size, keep, 1, size)
    assert torch.equal(best_regular(torch.zeros(2, size, size), keep), circulants[:1].expand(2, -1, -1))
    assert torch.equal(best_regular(circulants.float(), keep), circulants)


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (4, 8)])
def test_a_block_does_not_depend_on_its_neighbours(keep: int, size: int) -> None:
    blocks = torch.cat(list(sample_blocks(size, 3).values()))
    together = best_regular(blocks, keep)
    assert torch.equal(together, torch.cat([best_regular(block[None], keep) for block in blocks]))
    assert torch.equal(together, best_regular(blocks.double(), keep))


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (4, 8)])
def test_many_blocks_are_processed_in_batches(keep: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = sample_blocks(size, 20)["plain"]
    together = best_regular(blocks, keep)
    monkeypatch.setattr("eggs_ptp.core.regular._ELEMENTS", 3 * size**3)
    assert torch.equal(best_regular(blocks, keep), together)


@pytest.mark.parametrize(("keep", "size"), [(k, m) for k, m in SQUARES if m <= 8])
def test_best_retains_at_least_as_much_as_every_other_regular_diagonal(keep: int, size: int) -> None:
    pattern = Pattern(keep, size)
    others = [
        DiagonalBlocks(pattern, "circulant", offset="best"),
        DiagonalBlocks(pattern, "circulant"),
        DiagonalBlocks(pattern, "staircase"),
    ]
    others += [DiagonalBlocks(pattern, "staircase", offset="best")]
    others += [DiagonalBlocks(pattern, "block")] if size % keep == 0 else []
    for blocks in sample_blocks(size, 50).values():
        best = retained(blocks, DiagonalBlocks(pattern, "best").keep(blocks))
        slack = 1e-12 * blocks.double().abs().amax((1, 2)) * size * keep
        for diagonal_blocks in others:
            kept = diagonal_blocks.keep(blocks)
            assert_regular(kept, keep)
            assert (best >= retained(blocks, kept) - slack).all()


def test_the_diagonals_of_2_of_4() -> None:
    def drawn(diagonal_blocks: DiagonalBlocks, block: torch.Tensor) -> list[str]:
        return ["".join(".#"[bit] for bit in row) for row in diagonal_blocks.keep(block[None])[0].tolist()]

    pattern = Pattern(2, 4)
    square = torch.tensor([[9.0, 8, 7, 6], [9, 8, 7, 6], [9, 8, 7, 6], [0, 0, 0, 0]])
    assert drawn(DiagonalBlocks(pattern), square) == ["##..", ".##.", "..##", "#..#"]
    assert drawn(DiagonalBlocks(pattern, "staircase"), square) == ["##..", "..##", "##..", "..##"]
    assert drawn(DiagonalBlocks(pattern, "block"), square) == ["##..", "##..", "..##", "..##"]
    assert drawn(DiagonalBlocks(pattern, "forced"), square) == ["##..", "##..", "#.#.", "..##"]
    assert drawn(DiagonalBlocks(pattern, "staircase", "short"), square[:2]) == ["##..", "..##"]
    low = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0]])
    assert drawn(DiagonalBlocks(pattern, offset="best"), low) == [".##.", "..##", "#..#", "##.."]
    assert drawn(DiagonalBlocks(pattern, "staircase", "short", "best"), low[::2]) == [".##.", "#..#"]


def test_the_best_block_is_not_always_a_band() -> None:
    block = torch.tensor([[5.0, 0, 5, 0], [0, 5, 0, 5], [5, 0, 5, 0], [0, 5, 0, 5]])
    assert torch.equal(DiagonalBlocks(Pattern(2, 4), "best").keep(block[None])[0], block > 0)


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (1, 4), (3, 4), (2, 8), (4, 8), (3, 5), (1, 2)])
@pytest.mark.parametrize("diagonal", ["circulant", "staircase", "forced", "block"])
@pytest.mark.parametrize("offset", [0, "best"])
def test_keep_is_the_literal_reading(keep: int, size: int, diagonal: str, offset: int | str) -> None:
    if (diagonal == "block" and size % keep) or (offset == "best" and diagonal in ("forced", "block")):
        with pytest.raises((PatternError, MethodError)):
            DiagonalBlocks(Pattern(keep, size), diagonal, "square", offset)
        return
    diagonal_blocks = DiagonalBlocks(Pattern(keep, size), diagonal, "square", offset)
    assert diagonal_blocks.height == size
    kinds_here = sample_blocks(size, 6)
    for name in ("plain", "heavy", "tied", "sparse", "negative"):
        for block, kept in zip(kinds_here[name], diagonal_blocks.keep(kinds_here[name]), strict=True):
            literal = oracle.diagonal_block(block.double().tolist(), keep, diagonal, offset)
            assert kept.tolist() == literal, name


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (1, 4), (2, 8), (4, 8), (1, 2), (2, 6)])
@pytest.mark.parametrize("offset", [0, "best"])
def test_short_blocks_keep_each_column_once(keep: int, size: int, offset: int | str) -> None:
    diagonal_blocks = DiagonalBlocks(Pattern(keep, size), "staircase", "short", offset)
    assert diagonal_blocks.height == size // keep
    blocks = sample_blocks(size, 9)["plain"][:, : diagonal_blocks.height]
    kept = diagonal_blocks.keep(blocks)
    assert (kept.sum(1) == 1).all()
    assert (kept.sum(2) == keep).all()
    assert kept.tolist() == [oracle.diagonal_block(b.double().tolist(), keep, "staircase", offset) for b in blocks]


@pytest.mark.parametrize(
    ("pattern", "diagonal", "block", "offset", "error", "words"),
    [
        ((2, 4), "circulant", "short", 0, MethodError, ("steps.select.block", "'short'", "'circulant'")),
        ((2, 4), "best", "short", 0, MethodError, ("steps.select.block", "'best'")),
        ((3, 4), "staircase", "short", 0, PatternError, ("steps.select.block", "3:4", "'square'")),
        ((3, 5), "block", "square", 0, PatternError, ("diagonal 'block'", "3:5", "'circulant'")),
        ((2, 4), "forced", "square", "best", MethodError, ("steps.select.offset", "'forced'")),
        ((2, 4), "best", "square", "best", MethodError, ("steps.select.offset", "'best'")),
        ((2, 4), "block", "square", "best", MethodError, ("steps.select.offset", "'block'")),
    ],
)
def test_undefined_options_are_refused(pattern, diagonal, block, offset, error, words) -> None:
    with pytest.raises(error) as refusal:
        DiagonalBlocks(Pattern(*pattern), diagonal, block, offset)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_exact_down_to_small_differences() -> None:
    """One outlier does not hide differences of the other 63 scores, as it would if sums were computed in float32."""
    blocks = sample_blocks(8, 30)["plain"]
    outlier = blocks.clone()
    outlier[:, 0, 0] = 1e6
    kept = best_regular(outlier, 4)
    rest = outlier.clone()
    rest[:, 0, 0] = 0.0
    assert kept[:, 0, 0].all()
    for block, score in zip(rest, retained(rest, kept), strict=True):
        forced = block.double().clone()
        forced[0, 0] = 100.0
        assert float(score) + 100.0 == pytest.approx(optimum(forced, 4), rel=1e-11)
    assert math.isclose(float(retained(outlier, kept)[0]), float(retained(rest, kept)[0]) + 1e6)
