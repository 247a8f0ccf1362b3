from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_squares as oracle
from torch import Tensor

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.step_result import StepResult
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.step import Step
from eggs_ptp.update.alps import alps
from eggs_ptp.update.connect import connect
from eggs_ptp.update.pcg import pcg
from eggs_ptp.update.sparsegpt import sparsegpt

TWO_OF_FOUR = Pattern(2, 4)


def layer(out: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, a magnitude mask (not the best one), and the gram of correlated inputs of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x *= torch.rand(width, generator=generator).mul(2).exp()
    weight = torch.randn(out, width, generator=generator)
    return weight, keep_top(weight.abs(), TWO_OF_FOUR), x.T @ x / len(x)


def layer_loss(weight: Tensor, updated: Tensor, gram: Tensor) -> float:
    return float(oracle.losses(weight, updated, oracle.damped(gram, 0.01)).sum())


@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, Pattern(1, 4), Pattern(4, 8)], ids=str)
@pytest.mark.parametrize("diagonal", ["best", "circulant"])
@pytest.mark.parametrize("B", [0, 1, 3, 100])
def test_every_input_keeps_its_connections(pattern, diagonal, B):
    weight, _, gram = layer(26, 16)
    weight[:, 5] *= 1e-6  # an input that no mask would keep
    mask = keep_top(weight.abs(), pattern)
    (updated, connected), diagnostics = connect(weight, mask, None, pattern, gram, B=B, diagonal=diagonal)
    used = min(B, 26 // pattern.group)
    assert diagnostics["B"] == used
    assert diagnostics["diagonal_rows"] == used * pattern.group
    assert satisfies(connected, pattern)
    assert int(connected.sum(0).min()) >= used * pattern.keep
    assert int(mask[:, 5].sum()) == 0
    assert not updated[~connected].any()
    if not used:
        assert torch.equal(connected, mask)


@pytest.mark.parametrize("seed", range(4))
def test_auto_takes_the_number_of_blocks_of_least_loss(seed):
    weight, mask, gram = layer(32, 24, seed=seed)
    thorough = {"iterations": 60}
    result = connect(weight, mask, None, TWO_OF_FOUR, gram, B="auto", **thorough)
    results = {B: connect(weight, mask, None, TWO_OF_FOUR, gram, B=B, **thorough) for B in (0, 1, 2, 5, 8)}
    losses = {B: layer_loss(weight, candidate.value[0], gram) for B, candidate in results.items()}
    assert losses[1] < losses[0]  # the blocks improve a magnitude mask
    best = next(B for B, next_B in pairwise(losses) if losses[next_B] >= losses[B])
    assert result.diagnostics["B"] == best
    assert torch.equal(result.value[1], results[best].value[1])
    total_loss = layer_loss(weight, torch.zeros_like(weight), gram)
    assert result.diagnostics["layer_loss"] == pytest.approx(losses[best] / total_loss, rel=1e-3)
    assert result.diagnostics["layer_loss_B0"] == pytest.approx(losses[0] / total_loss, rel=1e-3)


@given(seed=st.integers(0, 99), out=st.integers(1, 30), groups=st.integers(1, 6), after=st.sampled_from("ams"))
@settings(max_examples=25, deadline=None)
def test_auto_never_loses_more_than_the_same_without_blocks(seed, out, groups, after):
    weight, mask, gram = layer(out, 4 * groups, seed=seed)
    start = None
    if after != "m":
        start, mask = (alps if after == "a" else sparsegpt)(weight, None, TWO_OF_FOUR, gram)
    result = connect(weight, mask, start, TWO_OF_FOUR, gram)
    without, _ = pcg(weight, mask, gram, start)
    solved_again, _ = pcg(weight, result.value[1], gram, result.value[0])
    assert result.diagnostics["layer_loss"] <= result.diagnostics["layer_loss_B0"]
    scale = layer_loss(weight, torch.zeros_like(weight), gram)
    assert layer_loss(weight, solved_again, gram) <= layer_loss(weight, without, gram) + 2e-3 * scale
    assert satisfies(result.value[1], TWO_OF_FOUR)


def test_no_blocks_are_added_where_each_row_has_the_best_mask():
    weight, _, gram = layer(8, 8, seed=3)
    hessian = oracle.damped(gram, 0.01)
    masks = oracle.group_masks(2, 4, 2)
    best = []
    for row in weight:
        losses = [oracle.losses(row[None], oracle.on_support(row[None], m[None], hessian), hessian) for m in masks]
        best.append(masks[int(torch.cat(losses).argmin())])
    result = connect(weight, torch.stack(best), None, TWO_OF_FOUR, gram, iterations=60)
    assert result.diagnostics["B"] == 0
    assert torch.equal(result.value[1], torch.stack(best))


def test_it_starts_from_the_given_weights():
    weight, mask, gram = layer(12, 16)
    solved, _ = pcg(weight, mask, gram, iterations=100, tolerance=0.0)
    (updated, _), _ = connect(weight, mask, solved, TWO_OF_FOUR, gram, B=0)
    torch.testing.assert_close(updated, solved, rtol=1e-3, atol=1e-3)


def test_fewer_rows_than_a_block_have_no_blocks():
    weight, mask, gram = layer(3, 8)
    result = connect(weight, mask, None, TWO_OF_FOUR, gram)
    assert isinstance(result, StepResult)
    assert result.diagnostics["B"] == 0
    assert torch.equal(result.value[1], mask)


def test_arguments_are_not_modified():
    weight, mask, gram = layer(8, 16)
    start = weight * mask
    copies = weight.clone(), mask.clone(), start.clone(), gram.clone()
    connect(weight, mask, start, TWO_OF_FOUR, gram, B=2)
    assert all(torch.equal(*pair) for pair in zip((weight, mask, start, gram), copies, strict=True))


def test_channels_that_are_always_zero_are_accepted():
    weight, mask, gram = layer(8, 16)
    gram[:, 3], gram[3] = 0.0, 0.0
    for damping in (0.0, 0.01):
        (updated, connected), _ = connect(weight, mask, None, TWO_OF_FOUR, gram, B=1, damping=damping)
        assert torch.isfinite(updated).all()
        assert satisfies(connected, TWO_OF_FOUR)


def test_impossible_arguments_are_refused():
    weight, mask, gram = layer(8, 16)
    with pytest.raises(MethodError, match=r"steps\.select"):
        connect(weight, None, None, TWO_OF_FOUR, gram)
    with pytest.raises(PatternError, match="'block' lines up squares"):
        connect(weight, mask, None, Pattern(3, 4), gram, diagonal="block")
    with pytest.raises(MethodError, match=r"steps\.update\.B: -1 is not possible"):
        Step("connect", {"B": -1}).bind("update")
