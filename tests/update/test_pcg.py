import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_squares as oracle
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.method.step import Step
from eggs_ptp.update.pcg import pcg
from eggs_ptp.update.sparsegpt import sparsegpt

PATTERNS: list[AnyPattern] = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 8), Unstructured(0.5)]


def layer(out: int, width: int, *, tokens: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (out, in) and the gram of correlated inputs of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens or 4 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x *= torch.rand(width, generator=generator).mul(2).exp()
    return torch.randn(out, width, generator=generator), x.T @ x / len(x)


def chosen(weight: Tensor, pattern: AnyPattern, gram: Tensor) -> Tensor:
    return keep_top(weight.abs() * gram.diagonal().sqrt(), pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_it_converges_to_the_dense_solution_of_every_row(pattern, damping):
    weight, gram = layer(9, 24)
    mask = chosen(weight, pattern, gram)
    updated, same = pcg(weight, mask, gram, iterations=200, damping=damping, tolerance=0.0)
    assert same is mask
    assert_close(updated, oracle.on_support(weight, mask, oracle.damped(gram, damping)).float(), rtol=2e-3, atol=2e-4)


def test_as_many_iterations_as_kept_weights_solve_a_well_conditioned_row():
    weight, gram = layer(3, 8, tokens=400)
    mask = chosen(weight, Pattern(2, 4), gram)
    updated, _ = pcg(weight, mask, gram, iterations=4, damping=0.5, tolerance=0.0)
    assert_close(updated, oracle.on_support(weight, mask, oracle.damped(gram, 0.5)).float(), rtol=1e-3, atol=1e-4)


@given(
    out=st.integers(1, 6),
    width=st.integers(1, 40),
    tokens=st.integers(1, 100),
    share=st.floats(0, 1),
    dead=st.sets(st.integers(0, 39)),
    damping=st.sampled_from([0.0, 1e-4, 0.01, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_no_iteration_raises_any_rows_loss(out, width, tokens, share, dead, damping, seed):
    weight, gram = layer(out, width, tokens=tokens, seed=seed)
    silent = [j for j in dead if j < width - 1]
    gram[silent], gram[:, silent] = 0.0, 0.0
    mask = torch.rand(out, width, generator=torch.Generator().manual_seed(seed)) < share
    hessian = oracle.damped(gram, damping)
    before = oracle.losses(weight, weight * mask, hessian)
    size = oracle.losses(weight, torch.zeros_like(weight), hessian)
    for iterations in (0, 1, 2, 3, 5, 20, 100):
        updated, _ = pcg(weight, mask, gram, iterations=iterations, damping=damping, tolerance=0.0)
        after = oracle.losses(weight, updated, hessian)
        assert (after <= before + 5e-5 * size).all()  # float32, and a gram that may have rank 1
        assert (updated[~mask] == 0).all()
        assert torch.equal(updated[:, silent], (weight * mask)[:, silent])
        before = after


def test_without_iterations_the_mask_is_all_there_is():
    weight, gram = layer(4, 8)
    mask = chosen(weight, Pattern(2, 4), gram)
    assert torch.equal(pcg(weight, mask, gram, iterations=0)[0], weight * mask)


def test_it_makes_up_for_more_than_one_sweep_of_sparsegpt():
    weight, gram = layer(16, 64, tokens=2000)
    hessian = oracle.damped(gram, 0.01)
    for pattern in PATTERNS:
        swept, mask = sparsegpt(weight, None, pattern, gram)
        updated, _ = pcg(weight, mask, gram)
        assert (oracle.losses(weight, updated, hessian) < oracle.losses(weight, swept, hessian)).all()


def test_nothing_changes_where_nothing_is_pruned_and_nothing_stays_where_all_is():
    weight, gram = layer(3, 8)
    mask = torch.tensor([[True], [False], [True]]).expand(3, 8)
    updated, _ = pcg(weight, mask, gram)
    assert torch.equal(updated, weight * mask)


def test_rows_do_not_depend_on_one_another():
    weight, gram = layer(12, 32)
    mask = chosen(weight, Pattern(2, 4), gram)
    together, _ = pcg(weight, mask, gram)
    for i in range(12):
        alone, _ = pcg(weight[i : i + 1], mask[i : i + 1], gram)
        assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)
    assert torch.equal(together, pcg(weight, mask, gram)[0])


def test_a_row_stops_once_it_has_little_left_to_gain():
    weight, gram = layer(6, 32)
    mask = chosen(weight, Pattern(2, 4), gram)
    hessian = oracle.damped(gram, 0.01)
    loss = {
        tolerance: oracle.losses(weight, pcg(weight, mask, gram, tolerance=tolerance)[0], hessian)
        for tolerance in (0.0, 1e-5, 0.9)
    }
    once = oracle.losses(weight, pcg(weight, mask, gram, iterations=1)[0], hessian)
    assert (loss[0.9] <= once * 1.0001).all()
    assert (loss[0.9] > loss[0.0]).any()
    assert_close(loss[1e-5], loss[0.0], rtol=1e-3, atol=0)


def test_fewer_tokens_than_channels_are_settled_by_the_damping():
    weight, gram = layer(5, 40, tokens=7)
    mask = chosen(weight, Pattern(2, 4), gram)
    for damping in (0.01, 0.1):
        updated, _ = pcg(weight, mask, gram, damping=damping, iterations=200, tolerance=0.0)
        hessian = oracle.damped(gram, damping)
        least = oracle.losses(weight, oracle.on_support(weight, mask, hessian), hessian)
        assert_close(oracle.losses(weight, updated, hessian), least, rtol=1e-3, atol=1e-4)


def test_half_precision_weights_are_solved_in_float32():
    weight, gram = layer(4, 16)
    rounded = weight.bfloat16()
    mask = chosen(weight, Pattern(2, 4), gram)
    updated, _ = pcg(rounded, mask, gram)
    assert updated.dtype == torch.float32
    assert torch.equal(updated, pcg(rounded.float(), mask, gram)[0])


def test_what_is_given_is_only_read():
    weight, gram = layer(4, 16)
    mask = chosen(weight, Pattern(2, 4), gram)
    copies = weight.clone(), mask.clone(), gram.clone()
    pcg(weight, mask, gram)
    assert all(torch.equal(*pair) for pair in zip((weight, mask, gram), copies, strict=True))


def test_without_a_mask_it_says_what_is_missing():
    weight, gram = layer(4, 16)
    with pytest.raises(MethodError, match=r"steps\.select"):
        pcg(weight, None, gram)


def test_a_layer_that_was_never_reached_is_refused():
    with pytest.raises(NumericsError, match="calibration"):
        pcg(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.zeros(4, 4))


@pytest.mark.parametrize(("option", "value"), [("iterations", -1), ("damping", -0.1), ("tolerance", 1.0)])
def test_options_have_bounds(option, value):
    with pytest.raises(MethodError, match=rf"steps\.update\.{option}"):
        Step("pcg", {option: value}).bind("update")


def test_the_scale_of_the_inputs_changes_nothing():
    weight, gram = layer(4, 16)
    mask = chosen(weight, Pattern(2, 4), gram)
    assert torch.equal(pcg(weight, mask, gram)[0], pcg(weight, mask, gram * 2.0**-40)[0])
