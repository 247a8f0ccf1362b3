import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer
from oracles import group_descent as oracle
from oracles import least_squares

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import MethodError, NumericsError, PatternError
from eggs_ptp.update import group_descent as module
from eggs_ptp.update.group_descent import group_descent
from eggs_ptp.update.sparsegpt import sparsegpt

FEW = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 8), Pattern(2, 5), Pattern(1, 2)]
MANY = [Pattern(8, 16), Pattern(16, 32), Pattern(5, 10)]  # too many patterns to compare all of them


@pytest.mark.parametrize("pattern", FEW, ids=str)
@pytest.mark.parametrize("sweeps", [1, 2])
def test_it_is_the_definition(pattern, sweeps):
    weight, gram = layer(5, 8 * pattern.group)
    mask = keep_top(weight.abs(), pattern)
    expected = oracle.group_descent(
        weight, weight * mask, least_squares.damped(gram, 0.01), pattern.group, pattern.keep, sweeps
    )
    updated, chosen = group_descent(weight, mask, None, pattern, gram.double(), sweeps=sweeps)
    assert torch.equal(chosen, expected != 0)
    torch.testing.assert_close(updated, expected, rtol=1e-7, atol=1e-9)


@given(seed=st.integers(0, 99), out=st.integers(1, 9), groups=st.integers(1, 9), pattern=st.sampled_from([*FEW, *MANY]))
@settings(max_examples=60, deadline=None)
def test_no_sweep_raises_any_rows_loss(seed, out, groups, pattern):
    weight, gram = layer(out, pattern.group * groups, seed=seed)
    mask = keep_top(weight.abs(), pattern)
    hessian = least_squares.damped(gram, 0.01)
    scale = least_squares.losses(weight, torch.zeros_like(weight), hessian)
    before = least_squares.losses(weight, weight * mask, hessian)
    for sweeps in (0, 1, 2, 4):
        updated, chosen = group_descent(weight, mask, None, pattern, gram, sweeps=sweeps)
        after = least_squares.losses(weight, updated, hessian)
        assert (after <= before + 5e-5 * scale).all()
        assert satisfies(chosen, pattern)
        assert torch.equal(chosen.sum(1), mask.sum(1))
        assert not updated[~chosen].any()
        before = after


@pytest.mark.parametrize("pattern", [*FEW, *MANY], ids=str)
def test_it_lowers_the_loss_that_sparsegpt_leaves(pattern):
    weight, gram = layer(48, 16 * pattern.group)
    hessian = least_squares.damped(gram, 0.01)
    swept, mask = sparsegpt(weight, None, pattern, gram)
    updated, chosen = group_descent(weight, mask, swept, pattern, gram, sweeps=3)
    before, after = (least_squares.losses(weight, each, hessian).sum() for each in (swept, updated))
    assert after < 0.95 * before
    assert not torch.equal(chosen, mask)


@pytest.mark.parametrize("pattern", [*FEW, *MANY], ids=str)
def test_where_no_input_ever_fired_the_largest_weights_are_kept(pattern):
    weight, gram = layer(6, 4 * pattern.group)
    dead = slice(pattern.group, 2 * pattern.group)
    gram[dead] = gram[:, dead] = 0.0
    mask = keep_top(torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)), pattern)
    updated, chosen = group_descent(weight, mask, None, pattern, gram)
    assert torch.equal(chosen[:, dead], keep_top(weight[:, dead].abs(), pattern))
    torch.testing.assert_close(updated[:, dead], weight[:, dead] * chosen[:, dead])


def test_equal_weights_still_give_the_pattern():
    weight = torch.zeros(3, 16)
    weight[1] = 1.0
    _, gram = layer(3, 16)
    mask = keep_top(torch.rand(3, 16, generator=torch.Generator().manual_seed(4)), Pattern(2, 4))
    _, chosen = group_descent(weight, mask, None, Pattern(2, 4), gram.diagonal().diag())
    assert satisfies(chosen, Pattern(2, 4))
    assert int(chosen.sum()) == 3 * 8


def test_columns_of_a_block_change_nothing_but_rounding(monkeypatch):
    weight, gram = layer(7, 96)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    whole, chosen = group_descent(weight, mask, None, Pattern(2, 4), gram.double())
    monkeypatch.setattr(module, "_COLUMNS", 20)
    parts, chosen_in_parts = group_descent(weight, mask, None, Pattern(2, 4), gram.double())
    assert torch.equal(chosen, chosen_in_parts)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_without_sweeps_it_returns_its_start():
    weight, gram = layer(4, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    start = torch.randn(4, 16, generator=torch.Generator().manual_seed(5))
    updated, chosen = group_descent(weight, mask, start, Pattern(2, 4), gram, sweeps=0)
    torch.testing.assert_close(updated, start * mask)
    assert torch.equal(chosen, mask)


def test_fewer_tokens_raise_the_damping():
    weight, gram = layer(8, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    few = group_descent(weight, mask, None, Pattern(2, 4), gram, torch.tensor(16.0))[0]
    assert torch.equal(few, group_descent(weight, mask, None, Pattern(2, 4), gram, damping=0.32)[0])


def test_arguments_are_not_modified():
    weight, gram = layer(8, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    arguments = (weight, mask, weight * mask, gram)
    copies = [argument.clone() for argument in arguments]
    group_descent(weight, mask, arguments[2], Pattern(2, 4), gram)
    assert all(torch.equal(*pair) for pair in zip(arguments, copies, strict=True))


def test_impossible_arguments_are_refused():
    weight, gram = layer(4, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    with pytest.raises(MethodError, match=r"steps\.select"):
        group_descent(weight, None, None, Pattern(2, 4), gram)
    with pytest.raises(PatternError, match="groups of 5"):
        group_descent(weight, mask, None, Pattern(2, 5), gram)
    with pytest.raises(NumericsError, match="calibration"):
        group_descent(weight, mask, None, Pattern(2, 4), gram, torch.tensor(0.0))


def test_relative_damping_is_a_share_of_each_entry_of_the_diagonal():
    weight, gram = layer(8, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    damped = gram + 0.3 * gram.diagonal().diag()
    updated, chosen = group_descent(weight, mask, None, Pattern(2, 4), gram, damping=0.0, relative_damping=0.3)
    expected, expected_mask = group_descent(weight, mask, None, Pattern(2, 4), damped, damping=0.0)
    assert torch.equal(chosen, expected_mask)
    torch.testing.assert_close(updated, expected)
