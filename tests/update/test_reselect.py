import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_squares as oracle
from torch import Tensor

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import MethodError
from eggs_ptp.update.pcg import pcg
from eggs_ptp.update.reselect import reselect

PATTERNS: list[AnyPattern] = [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Unstructured(0.5)]


def layer(out: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return torch.randn(out, width, generator=generator), x.T @ x / len(x)


@given(seed=st.integers(0, 99), out=st.integers(1, 12), groups=st.integers(1, 5), pattern=st.sampled_from(PATTERNS))
@settings(max_examples=40, deadline=None)
def test_no_round_raises_any_rows_loss(seed, out, groups, pattern):
    weight, gram = layer(out, 8 * groups, seed=seed)
    mask = keep_top(weight.abs(), pattern)
    hessian = oracle.damped(gram, 0.01)
    scale = oracle.losses(weight, torch.zeros_like(weight), hessian)
    before = oracle.losses(weight, pcg(weight, mask, gram, iterations=10)[0], hessian)
    for rounds in (0, 1, 2, 5):
        updated, reselected = reselect(weight, mask, None, pattern, gram, rounds=rounds)
        after = oracle.losses(weight, updated, hessian)
        assert (after <= before + 5e-5 * scale).all()
        assert not updated[~reselected].any()
        assert torch.equal(reselected.sum(1), mask.sum(1))
        assert not isinstance(pattern, Pattern) or satisfies(reselected, pattern)
        before = after


def test_it_finds_better_masks():
    weight, gram = layer(40, 32)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    hessian = oracle.damped(gram, 0.01)
    before = oracle.losses(weight, pcg(weight, mask, gram)[0], hessian).sum()
    after = oracle.losses(weight, reselect(weight, mask, None, Pattern(2, 4), gram)[0], hessian).sum()
    assert after < 0.8 * before


def test_with_a_diagonal_gram_one_round_gives_the_mask_of_weight_times_norm():
    weight, _ = layer(6, 16)
    gram = torch.rand(16, generator=torch.Generator().manual_seed(1)).add(0.1).diag()
    start = keep_top(torch.rand(6, 16, generator=torch.Generator().manual_seed(2)), Pattern(2, 4))
    updated, reselected = reselect(weight, start, None, Pattern(2, 4), gram, rounds=1, damping=0.0)
    assert torch.equal(reselected, keep_top(weight.abs() * gram.diagonal().sqrt(), Pattern(2, 4)))
    torch.testing.assert_close(updated, weight * reselected)


def test_it_starts_from_the_given_weights():
    weight, gram = layer(8, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    solved, _ = pcg(weight, mask, gram, iterations=200, tolerance=0.0)
    updated, _ = reselect(weight, mask, solved, Pattern(2, 4), gram, rounds=0)
    torch.testing.assert_close(updated, solved, rtol=1e-3, atol=1e-3)


def test_fewer_tokens_raise_the_damping():
    weight, gram = layer(8, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    few = reselect(weight, mask, None, Pattern(2, 4), gram, torch.tensor(16.0))[0]
    assert torch.equal(few, reselect(weight, mask, None, Pattern(2, 4), gram, damping=0.32)[0])


def test_arguments_are_not_modified():
    weight, gram = layer(8, 16)
    mask = keep_top(weight.abs(), Pattern(2, 4))
    copies = weight.clone(), mask.clone(), gram.clone()
    reselect(weight, mask, weight * mask, Pattern(2, 4), gram)
    assert all(torch.equal(*pair) for pair in zip((weight, mask, gram), copies, strict=True))


def test_without_a_mask_it_says_what_is_missing():
    weight, gram = layer(4, 16)
    with pytest.raises(MethodError, match=r"steps\.select"):
        reselect(weight, None, None, Pattern(2, 4), gram)
