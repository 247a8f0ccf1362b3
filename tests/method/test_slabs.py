"""Methods whose steps work slab by slab: the same bits whoever works on which, and the work is shared."""

import pytest
import torch
from beside import side_by_side
from layers import layer

from eggs_ptp.core import slabs as slabs_module
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.slabs import ALONE
from eggs_ptp.method.apply import Job, prune_readers
from eggs_ptp.method.catalogue import METHODS, find_method

WEIGHT, GRAM = layer(66, 24, seed=3)
CROSS = WEIGHT @ GRAM * 1.1
STATISTICS = {"gram": GRAM, "cross": CROSS, "tokens": torch.tensor(96.0), "input_norm": GRAM.diagonal().sqrt()}
SOLVING = {
    name
    for name, row in METHODS.items()
    if {"gram", "cross"} & (bound := row.bind()).statistics
    and all("slabs" in step.data for step in bound.links if {"gram", "cross"} & step.statistics)
}
JOINED = ["wanda+pcg", "eggs+reselect+pcg", "ria_cp+expander_loss"]
METHODS_BY_SLABS = [*sorted(SOLVING), *JOINED]


def pruned(method, slabs, weight=WEIGHT):
    job = Job("m", weight, Pattern(2, 4), find_method(method).bind(), slabs=slabs)
    return prune_readers([job], lambda _, name: STATISTICS[name], seed=0)["m"]


def check_same(found, alone):
    for result in found:
        assert torch.equal(result.weight, alone.weight)
        assert torch.equal(result.mask, alone.mask)
        assert result.facts == alone.facts
        assert (result.order is None) == (alone.order is None)
        assert alone.order is None or torch.equal(result.order, alone.order)


@pytest.fixture
def small_slabs(monkeypatch):
    """Of 17 rows or 16, so that a small matrix has several."""
    monkeypatch.setattr(slabs_module, "_LEAST_ROWS", 1)
    monkeypatch.setattr(slabs_module, "_LEAST", 1)


def test_the_presets_that_solve_do_so_by_slabs():
    assert {"alps", "eggs+", "eggs-max"} == SOLVING


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", METHODS_BY_SLABS)
def test_who_works_on_which_rows_makes_no_difference(small_slabs, method, count):
    alone = pruned(method, ALONE)
    found, workers = side_by_side(count, lambda slabs: pruned(method, slabs))
    check_same(found, alone)
    assert {one.filled for one in workers} == {sum(one.worked for one in workers)}
    assert max(one.worked for one in workers) <= (-(-4 // count) / 4 + 0.02) * workers[0].filled


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", ["eggs+", "ria_cp+expander_loss", "wanda+connect"])
def test_nor_does_it_where_some_rows_decide_for_all(monkeypatch, small_slabs, method, count):
    monkeypatch.setattr(slabs_module, "_MOST_ROWS", 4)
    assert len(slabs_module.quarters(*WEIGHT.shape)) == 4 < len(slabs_module.cut(*WEIGHT.shape))
    alone = pruned(method, ALONE)
    found, _ = side_by_side(count, lambda slabs: pruned(method, slabs))
    check_same(found, alone)


@pytest.mark.parametrize("method", METHODS_BY_SLABS)
def test_slabs_change_no_more_than_rounding(monkeypatch, small_slabs, method):
    cut = pruned(method, ALONE)
    monkeypatch.setattr(slabs_module, "cut", lambda rows, _columns: [slice(0, rows)])
    whole = pruned(method, ALONE)
    same = (cut.mask == whole.mask).all(1)
    assert same.float().mean() > 0.9
    torch.testing.assert_close(cut.weight[same], whole.weight[same], rtol=1e-3, atol=1e-3)
