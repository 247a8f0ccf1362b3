import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import expander as oracle
from scipy.optimize import linprog

from eggs_ptp.core.blocks import Reading
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.regular import _all_regular, bands, best_regular, most_retained, transport
from eggs_ptp.errors import MethodError, PatternError

SQUARES = [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (2, 5), (3, 5), (2, 8), (3, 8), (4, 8), (7, 8), (4, 16)]


def kinds(size: int, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Blocks of every temper, (count, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, size)
    normal = torch.randn(shape, generator=generator)
    rows, columns = torch.rand(shape[:2], generator=generator), torch.rand(shape[:2], generator=generator)
    return {
        "plain": normal.abs(),
        "heavy": torch.exp(4 * normal),
        "tied": torch.randint(0, 3, shape, generator=generator).float(),
        "sparse": normal.abs() * (torch.rand(shape, generator=generator) < 0.3),
        "same columns wanted by all": columns[:, None, :] + 1e-3 * rows[:, :, None] * columns[:, None, :],
        "rank one": rows[:, :, None] * columns[:, None, :],
        "negative": normal - 2.0,
        "tiny": normal.abs() * 1e-38,
        "huge": normal.abs() * 1e37,
    }


def optimum(block: torch.Tensor, keep: int) -> float:
    """The transport problem by linear programming, whose vertices are whole: an independent solver."""
    size, exact = len(block), block.double().numpy()
    sums = np.zeros((2 * size, size * size))
    for t in range(size):
        sums[t, t * size : (t + 1) * size] = 1.0
        sums[size + t, t::size] = 1.0
    scaled = -exact.ravel() / (np.abs(exact).max() or 1.0)
    tight = {"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10}
    solved = linprog(scaled, A_eq=sums, b_eq=[keep] * 2 * size, bounds=(0, 1), options=tight)
    assert solved.success
    assert np.allclose(solved.x, solved.x.round())
    return math.fsum(exact.ravel()[solved.x.round() == 1])


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
    listed = _all_regular(size, keep)
    assert_regular(listed, keep)
    assert len(listed.flatten(1).unique(dim=0)) == count
    assert {tuple(map(tuple, m)) for m in oracle.regular_blocks(size, keep)} == {
        tuple(map(tuple, m)) for m in listed.tolist()
    }


@pytest.mark.parametrize(("keep", "size"), SQUARES)
def test_best_is_the_optimum(keep: int, size: int) -> None:
    for name, blocks in kinds(size, 8 if size < 8 else 3).items():
        kept = best_regular(blocks, keep)
        assert_regular(kept, keep)
        for block, found in zip(blocks, retained(blocks, kept), strict=True):
            assert float(found) == pytest.approx(
                optimum(block, keep), rel=1e-9, abs=1e-12 * float(block.abs().max())
            ), name


@pytest.mark.parametrize(("keep", "size"), [(1, 2), (1, 3), (1, 4), (2, 4), (3, 4), (2, 5), (3, 5)])
def test_transport_finds_what_enumeration_finds(keep: int, size: int) -> None:
    for name, blocks in kinds(size, 60, seed=1).items():
        flow, listed = transport(blocks, keep), most_retained(blocks, _all_regular(size, keep))
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
    for block, found in zip(blocks, retained(blocks, kept), strict=True):
        assert float(found) == round(optimum(block, keep))


@pytest.mark.parametrize(("keep", "size"), SQUARES)
def test_a_circulant_wins_among_equals(keep: int, size: int) -> None:
    circulants = bands(size, keep, 1, size)
    assert torch.equal(best_regular(torch.zeros(2, size, size), keep), circulants[:1].expand(2, -1, -1))
    assert torch.equal(best_regular(circulants.float(), keep), circulants)


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (4, 8)])
def test_a_block_does_not_depend_on_its_neighbours(keep: int, size: int) -> None:
    blocks = torch.cat(list(kinds(size, 3).values()))
    together = best_regular(blocks, keep)
    assert torch.equal(together, torch.cat([best_regular(block[None], keep) for block in blocks]))
    assert torch.equal(together, best_regular(blocks.double(), keep))


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (4, 8)])
def test_many_blocks_are_split(keep: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = kinds(size, 20)["plain"]
    whole = best_regular(blocks, keep)
    monkeypatch.setattr("eggs_ptp.core.regular._ELEMENTS", 3 * size**3)
    assert torch.equal(best_regular(blocks, keep), whole)


@pytest.mark.parametrize(("keep", "size"), [(k, m) for k, m in SQUARES if m <= 8])
def test_best_beats_every_other_regular_reading(keep: int, size: int) -> None:
    pattern = Pattern(keep, size)
    others = [
        Reading(pattern, "circulant", offset="best"),
        Reading(pattern, "circulant"),
        Reading(pattern, "staircase"),
    ]
    others += [Reading(pattern, "staircase", offset="best")]
    others += [Reading(pattern, "block")] if size % keep == 0 else []
    for blocks in kinds(size, 50).values():
        best = retained(blocks, Reading(pattern, "best").keep(blocks))
        slack = 1e-12 * blocks.double().abs().amax((1, 2)) * size * keep
        for reading in others:
            kept = reading.keep(blocks)
            assert_regular(kept, keep)
            assert (best >= retained(blocks, kept) - slack).all()


def test_the_diagonals_of_2_of_4() -> None:
    def drawn(reading: Reading, block: torch.Tensor) -> list[str]:
        return ["".join(".#"[bit] for bit in row) for row in reading.keep(block[None])[0].tolist()]

    pattern = Pattern(2, 4)
    square = torch.tensor([[9.0, 8, 7, 6], [9, 8, 7, 6], [9, 8, 7, 6], [0, 0, 0, 0]])
    assert drawn(Reading(pattern), square) == ["##..", ".##.", "..##", "#..#"]
    assert drawn(Reading(pattern, "staircase"), square) == ["##..", "..##", "##..", "..##"]
    assert drawn(Reading(pattern, "block"), square) == ["##..", "##..", "..##", "..##"]
    assert drawn(Reading(pattern, "forced"), square) == ["##..", "##..", "#.#.", "..##"]
    assert drawn(Reading(pattern, "staircase", "short"), square[:2]) == ["##..", "..##"]
    low = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0]])
    assert drawn(Reading(pattern, offset="best"), low) == [".##.", "..##", "#..#", "##.."]
    assert drawn(Reading(pattern, "staircase", "short", "best"), low[::2]) == [".##.", "#..#"]


def test_the_best_block_is_not_always_a_band() -> None:
    block = torch.tensor([[5.0, 0, 5, 0], [0, 5, 0, 5], [5, 0, 5, 0], [0, 5, 0, 5]])
    assert torch.equal(Reading(Pattern(2, 4), "best").keep(block[None])[0], block > 0)


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (1, 4), (3, 4), (2, 8), (4, 8), (3, 5), (1, 2)])
@pytest.mark.parametrize("diagonal", ["circulant", "staircase", "forced", "block"])
@pytest.mark.parametrize("offset", [0, "best"])
def test_keep_is_the_literal_reading(keep: int, size: int, diagonal: str, offset: int | str) -> None:
    if (diagonal == "block" and size % keep) or (offset == "best" and diagonal in ("forced", "block")):
        with pytest.raises((PatternError, MethodError)):
            Reading(Pattern(keep, size), diagonal, "square", offset)
        return
    reading = Reading(Pattern(keep, size), diagonal, "square", offset)
    assert reading.height == size
    kinds_here = kinds(size, 6)
    for name in ("plain", "heavy", "tied", "sparse", "negative"):
        for block, kept in zip(kinds_here[name], reading.keep(kinds_here[name]), strict=True):
            literal = oracle.diagonal_block(block.double().tolist(), keep, diagonal, offset)
            assert kept.tolist() == literal, name


@pytest.mark.parametrize(("keep", "size"), [(2, 4), (1, 4), (2, 8), (4, 8), (1, 2), (2, 6)])
@pytest.mark.parametrize("offset", [0, "best"])
def test_short_blocks_keep_each_column_once(keep: int, size: int, offset: int | str) -> None:
    reading = Reading(Pattern(keep, size), "staircase", "short", offset)
    assert reading.height == size // keep
    blocks = kinds(size, 9)["plain"][:, : reading.height]
    kept = reading.keep(blocks)
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
def test_undefined_readings_are_refused(pattern, diagonal, block, offset, error, words) -> None:
    with pytest.raises(error) as refusal:
        Reading(Pattern(*pattern), diagonal, block, offset)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_exact_down_to_small_differences() -> None:
    """One outlier does not hide what the other 63 scores say, as it would if sums were taken in float32."""
    blocks = kinds(8, 30)["plain"]
    outlier = blocks.clone()
    outlier[:, 0, 0] = 1e6
    kept = best_regular(outlier, 4)
    rest = outlier.clone()
    rest[:, 0, 0] = 0.0
    assert kept[:, 0, 0].all()
    for block, found in zip(rest, retained(rest, kept), strict=True):
        forced = block.double().clone()
        forced[0, 0] = 100.0
        assert float(found) + 100.0 == pytest.approx(optimum(forced, 4), rel=1e-11)
    assert math.isclose(float(retained(outlier, kept)[0]), float(retained(rest, kept)[0]) + 1e6)
