import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer
from oracles import least_squares as oracle
from torch import Tensor

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.catalogue import find_method
from eggs_ptp.method.step import Step
from eggs_ptp.refine.bcd import bcd
from eggs_ptp.select.expander import expander

PATTERNS = [(2, 4), (1, 4), (3, 4), (4, 8), (2, 5), (1, 2)]


def masked_by_score(weight: Tensor, pattern: Pattern, gram: Tensor) -> Tensor:
    return keep_top(weight.abs() * gram.diagonal().sqrt(), pattern)


def losses(weight: Tensor, mask: Tensor, gram: Tensor, damping: float = 0.01) -> Tensor:
    return oracle.losses(weight, weight * mask, oracle.damped(gram, damping))


@pytest.mark.parametrize(("kept", "group"), [*PATTERNS, (8, 12)])
def test_a_single_group_gets_the_best_of_all_patterns(kept, group):
    weight, gram = layer(20, group)
    pattern = Pattern(kept, group)
    mask = bcd(masked_by_score(weight, pattern, gram), weight, pattern, gram)
    masks = oracle.group_masks(kept, group, 1)
    for i, row in enumerate(weight):
        best = oracle.best_loss(row, oracle.damped(gram, 0.01), masks, solve=False)
        assert float(losses(row[None], mask[i : i + 1], gram)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(("kept", "group", "groups"), [(2, 4, 3), (1, 4, 3), (3, 4, 3), (4, 8, 2), (1, 2, 6)])
def test_it_ends_where_no_other_pattern_of_any_group_is_better(kept, group, groups):
    weight, gram = layer(12, group * groups)
    pattern = Pattern(kept, group)
    start = masked_by_score(weight, pattern, gram)
    mask = bcd(start, weight, pattern, gram, sweeps=50)
    final, before = losses(weight, mask, gram), losses(weight, start, gram)
    assert satisfies(mask, pattern)
    for low in range(0, group * groups, group):
        for choice in oracle.group_masks(kept, group, 1):
            candidate = mask.clone()
            candidate[:, low : low + group] = choice
            assert (losses(weight, candidate, gram) >= final - 1e-4 * before).all()
    masks = oracle.group_masks(kept, group, groups)
    best = [oracle.best_loss(row, oracle.damped(gram, 0.01), masks, solve=False) for row in weight]
    assert (final >= torch.tensor(best) * (1 - 1e-4)).all()
    assert float((before - final).sum()) > 0.6 * float(before.sum() - sum(best)) > 0


@given(
    pattern=st.sampled_from(PATTERNS),
    groups=st.integers(1, 50),
    out=st.integers(1, 9),
    tokens=st.integers(1, 100),
    dead=st.sets(st.integers(0, 39)),
    damping=st.sampled_from([0.0, 0.01, 1.0]),
    floor=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_no_sweep_raises_any_rows_loss(pattern, groups, out, tokens, dead, damping, floor, seed):
    pattern = Pattern(*pattern)
    weight, gram = layer(out, pattern.group * groups, tokens=tokens, seed=seed)
    zero_channels = [j for j in dead if 0 < j < len(gram)]
    gram[zero_channels], gram[:, zero_channels] = 0.0, 0.0
    start = keep_top(torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)), pattern)
    scale = losses(weight, torch.zeros_like(start), gram, damping)
    before = losses(weight, start, gram, damping)
    for sweeps in (0, 1, 2, 3, 20):
        mask = bcd(start, weight, pattern, gram, sweeps=sweeps, damping=damping, keep_floor=floor)
        after = losses(weight, mask, gram, damping)
        assert satisfies(mask, pattern)
        assert (after <= before + 1e-5 * scale).all()
        assert torch.equal(mask, start) or sweeps
        if floor:
            assert mask.sum(0).min() >= start.sum(0).min()
        before = after


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8)], ids=str)
def test_the_floor_of_eggs_is_kept_and_costs_little(pattern):
    weight, gram = layer(64, 48, tokens=500)
    weight[:, :8] *= 0.01  # inputs that only the floor keeps
    norm = gram.diagonal().sqrt()
    start = expander(weight.abs() * norm, weight, pattern, norm, B=2).value
    least = int(start.sum(0).min())
    assert least >= 2 * pattern.keep
    without_floor, with_floor = (bcd(start, weight, pattern, gram, keep_floor=floor) for floor in (False, True))
    assert without_floor.sum(0).min() < least
    assert with_floor.sum(0).min() >= least
    assert satisfies(with_floor, pattern)
    start_loss, loss_without_floor, loss_with_floor = (
        losses(weight, mask, gram) for mask in (start, without_floor, with_floor)
    )
    assert (loss_with_floor <= start_loss * (1 + 1e-5)).all()
    assert loss_without_floor.sum() <= loss_with_floor.sum() < 0.9 * start_loss.sum()


def test_rows_do_not_depend_on_one_another_nor_on_how_columns_are_blocked(monkeypatch):
    weight, gram = layer(12, 64)
    start = masked_by_score(weight, Pattern(2, 4), gram)
    together = bcd(start, weight, Pattern(2, 4), gram)
    for i in range(12):
        assert torch.equal(bcd(start[i : i + 1], weight[i : i + 1], Pattern(2, 4), gram)[0], together[i])
    monkeypatch.setattr("eggs_ptp.refine.bcd._COLUMNS_PER_UPDATE", 1)
    monkeypatch.setattr("eggs_ptp.refine.bcd._COSTS_PER_BATCH", 8)
    assert torch.equal(bcd(start, weight, Pattern(2, 4), gram), together)


def test_ties_and_inputs_that_are_always_zero_do_not_change_the_mask():
    gram = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    start = torch.tensor([[False, True, True, False, True, False, False, True]])
    assert torch.equal(bcd(start, torch.ones(1, 8), Pattern(2, 4), gram), start)
    assert torch.equal(bcd(start, torch.rand(1, 8), Pattern(2, 4), gram, damping=0.0)[:, 4:], start[:, 4:])


def test_a_pair_of_opposite_inputs_is_pruned_together():
    gram = torch.eye(4) + 0.99 * torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    weight = torch.tensor([[3.0, -3.0, 1.0, 1.0]])
    start = masked_by_score(weight, Pattern(2, 4), gram)
    assert start.tolist() == [[True, True, False, False]]
    assert bcd(start, weight, Pattern(2, 4), gram, damping=0.0).tolist() == [[False, False, True, True]]


def test_a_mask_that_keeps_fewer_weights_is_filled():
    weight, gram = layer(5, 16)
    start = torch.zeros(5, 16, dtype=torch.bool)
    assert satisfies(bcd(start, weight, Pattern(2, 4), gram), Pattern(2, 4))


def test_arguments_are_not_modified_and_half_precision_is_computed_in_float32():
    weight, gram = layer(6, 32)
    weight = weight.bfloat16()
    start = masked_by_score(weight.float(), Pattern(2, 4), gram)
    copies = start.clone(), weight.clone(), gram.clone()
    mask = bcd(start, weight, Pattern(2, 4), gram)
    assert torch.equal(mask, bcd(start, weight.float(), Pattern(2, 4), gram))
    assert all(torch.equal(*pair) for pair in zip((start, weight, gram), copies, strict=True))
    assert not torch.equal(mask, start)


def test_where_no_input_ever_fires_the_largest_weights_are_kept():
    weight, _ = layer(6, 8)
    mask = bcd(torch.zeros(6, 8, dtype=torch.bool), weight, Pattern(2, 4), torch.zeros(8, 8))
    groups = weight.abs().reshape(6, 2, 4)
    largest = groups >= groups.sort(dim=-1).values[..., 2:3]
    torch.testing.assert_close(mask, largest.reshape(6, 8))


def test_impossible_arguments_are_refused():
    weight, gram = layer(2, 40)
    with pytest.raises(PatternError, match="137846528820"):
        bcd(torch.zeros(2, 40, dtype=torch.bool), weight, Pattern(20, 40), gram)
    with pytest.raises(PatternError, match="groups keep more"):
        bcd(torch.ones(2, 40, dtype=torch.bool), weight, Pattern(2, 4), gram)
    with pytest.raises(PatternError, match="bcd"):
        find_method("wanda+bcd").bind().check_pattern(Unstructured(0.5), "w")
    with pytest.raises(MethodError, match=r"steps\.refine\.sweeps"):
        Step("bcd", {"sweeps": -1}).bind("refine")


def test_the_scale_of_the_inputs_changes_nothing():
    weight, gram = layer(4, 32)
    start = masked_by_score(weight, Pattern(2, 4), gram)
    tiny = bcd(start, weight, Pattern(2, 4), gram * 2.0**-40)
    assert torch.equal(tiny, bcd(start, weight, Pattern(2, 4), gram))
    assert not torch.equal(tiny, start)
