import pytest
import torch

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.select.top import top

SCORE = torch.rand(6, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)[:, None]


@pytest.mark.parametrize("count", ["exact", "original"])
def test_the_group_decides_what_an_unstructured_mask_compares(count):
    pattern = Unstructured(0.6)
    by_row, by_layer = top(SCORE, pattern, group="row", count=count), top(SCORE, pattern, group="layer", count=count)
    assert torch.equal(by_row, keep_top(SCORE, pattern, group="row", count=count))
    assert torch.equal(by_layer, keep_top(SCORE, pattern, group="layer", count=count))
    assert len(set(by_row.sum(1).tolist())) == 1
    assert len(set(by_layer.sum(1).tolist())) > 1


def test_an_nm_mask_ignores_the_options():
    expected = keep_top(SCORE, Pattern(2, 4))
    for options in ({}, {"group": "layer"}, {"group": "block", "block_size": 6}, {"count": "original"}):
        assert torch.equal(top(SCORE, Pattern(2, 4), **options), expected)


@pytest.mark.parametrize("count", ["exact", "original"])
def test_a_block_of_columns_may_be_a_group_too(count):
    by_block = top(SCORE, Unstructured(0.6), group="block", block_size=6, count=count)
    assert torch.equal(by_block, keep_top(SCORE, Unstructured(0.6), group="block", block_size=6, count=count))
    pruned = [int((~block).sum()) for block in by_block.split(6, 1)]
    assert pruned == ([22, 22, 14] if count == "exact" else [22, 22, 15])


@pytest.mark.parametrize(
    "options", [{"group": "column"}, {"count": "rounded"}, {"groups": "row"}, {"block_size": 0}, {"block_size": 1.5}]
)
def test_other_options_are_refused(options):
    with pytest.raises(MethodError, match=r"steps\.select"):
        Step("top", options).bind("select")


def test_any_pattern_is_accepted():
    assert Step("top").bind("select").patterns is None
