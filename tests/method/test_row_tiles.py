"""Methods whose steps divide rows among processes: the same bits for any division, and each process does its share."""

import pytest
import torch
from layers import layer
from threaded_row_tiles import run_threads

from eggs_ptp.core import row_tiles as row_tiles_module
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES
from eggs_ptp.method.apply import Job, prune_consumers
from eggs_ptp.method.catalogue import METHODS, find_method

WEIGHT, GRAM = layer(66, 24, seed=3)
CROSS = WEIGHT @ GRAM * 1.1
STATISTICS = {"gram": GRAM, "cross": CROSS, "tokens": torch.tensor(96.0), "input_norm": GRAM.diagonal().sqrt()}
SOLVING = {
    name
    for name, row in METHODS.items()
    if {"gram", "cross"} & (bound := row.bind()).statistics
    and all("row_tiles" in step.data for step in bound.bound_steps if {"gram", "cross"} & step.statistics)
}
JOINED = ["wanda+pcg", "eggs+reselect+pcg", "ria_cp+expander_loss"]
METHODS_WITH_ROW_TILES = [*sorted(SOLVING), *JOINED]


def pruned(method, row_tiles, weight=WEIGHT):
    job = Job("m", weight, Pattern(2, 4), find_method(method).bind(), row_tiles=row_tiles)
    return prune_consumers([job], lambda _, name: STATISTICS[name], seed=0)["m"]


def check_same(results, alone):
    for result in results:
        assert torch.equal(result.weight, alone.weight)
        assert torch.equal(result.mask, alone.mask)
        assert result.diagnostics == alone.diagnostics
        assert (result.permutation is None) == (alone.permutation is None)
        assert alone.permutation is None or torch.equal(result.permutation, alone.permutation)


@pytest.fixture
def small_row_tiles(monkeypatch):
    """Row tiles of 16 or 17 rows, so that a small matrix has several."""
    monkeypatch.setattr(row_tiles_module, "_MIN_ROWS", 1)
    monkeypatch.setattr(row_tiles_module, "_MIN_WEIGHTS", 1)


def test_the_presets_that_solve_divide_their_rows():
    assert {"alps", "eggs+", "eggs-max"} == SOLVING


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", METHODS_WITH_ROW_TILES)
def test_the_division_of_rows_changes_no_bit(small_row_tiles, method, count):
    alone = pruned(method, LOCAL_ROW_TILES)
    results, workers = run_threads(count, lambda row_tiles: pruned(method, row_tiles))
    check_same(results, alone)
    assert {worker.filled for worker in workers} == {sum(worker.computed for worker in workers)}
    assert max(worker.computed for worker in workers) <= (-(-4 // count) / 4 + 0.02) * workers[0].filled


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", ["eggs+", "ria_cp+expander_loss", "wanda+connect"])
def test_the_division_of_rows_changes_no_bit_where_a_sample_of_rows_decides(
    monkeypatch, small_row_tiles, method, count
):
    monkeypatch.setattr(row_tiles_module, "_MAX_ROWS", 4)
    assert len(row_tiles_module.sample_tiles(*WEIGHT.shape)) == 4 < len(row_tiles_module.tile_rows(*WEIGHT.shape))
    alone = pruned(method, LOCAL_ROW_TILES)
    results, _ = run_threads(count, lambda row_tiles: pruned(method, row_tiles))
    check_same(results, alone)


@pytest.mark.parametrize("method", METHODS_WITH_ROW_TILES)
def test_tiling_changes_no_more_than_rounding(monkeypatch, small_row_tiles, method):
    tiled = pruned(method, LOCAL_ROW_TILES)
    monkeypatch.setattr(row_tiles_module, "tile_rows", lambda rows, _columns: [slice(0, rows)])
    whole = pruned(method, LOCAL_ROW_TILES)
    same = (tiled.mask == whole.mask).all(1)
    assert same.float().mean() > 0.9
    torch.testing.assert_close(tiled.weight[same], whole.weight[same], rtol=1e-3, atol=1e-3)
