import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer
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


def masked_by_score(weight: Tensor, pattern: AnyPattern, gram: Tensor) -> Tensor:
    return keep_top(weight.abs() * gram.diagonal().sqrt(), pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_it_converges_to_the_dense_solution_of_every_row(pattern, damping):
    weight, gram = layer(9, 24)
    mask = masked_by_score(weight, pattern, gram)
    updated, returned_mask = pcg(weight, mask, gram, iterations=200, damping=damping, tolerance=0.0)
    assert returned_mask is mask
    assert_close(updated, oracle.on_support(weight, mask, oracle.damped(gram, damping)).float(), rtol=2e-3, atol=2e-4)


def test_as_many_iterations_as_kept_weights_solve_a_well_conditioned_row():
    weight, gram = layer(3, 8, tokens=400)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
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
    zero_channels = [j for j in dead if j < width - 1]
    gram[zero_channels], gram[:, zero_channels] = 0.0, 0.0
    mask = torch.rand(out, width, generator=torch.Generator().manual_seed(seed)) < share
    hessian = oracle.damped(gram, damping)
    before = oracle.losses(weight, weight * mask, hessian)
    scale = oracle.losses(weight, torch.zeros_like(weight), hessian)
    for iterations in (0, 1, 2, 3, 5, 20, 100):
        updated, _ = pcg(weight, mask, gram, iterations=iterations, damping=damping, tolerance=0.0)
        after = oracle.losses(weight, updated, hessian)
        assert (after <= before + 5e-5 * scale).all()  # float32, and a gram that may have rank 1
        assert (updated[~mask] == 0).all()
        assert torch.equal(updated[:, zero_channels], (weight * mask)[:, zero_channels])
        before = after


def test_without_iterations_only_the_mask_is_applied():
    weight, gram = layer(4, 8)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    assert torch.equal(pcg(weight, mask, gram, iterations=0)[0], weight * mask)


def test_it_loses_less_than_one_sweep_of_sparsegpt():
    weight, gram = layer(16, 64, tokens=2000)
    hessian = oracle.damped(gram, 0.01)
    for pattern in PATTERNS:
        sparsegpt_weight, mask = sparsegpt(weight, None, pattern, gram)
        updated, _ = pcg(weight, mask, gram)
        assert (oracle.losses(weight, updated, hessian) < oracle.losses(weight, sparsegpt_weight, hessian)).all()


def test_fully_kept_rows_do_not_change_and_fully_pruned_rows_are_zero():
    weight, gram = layer(3, 8)
    mask = torch.tensor([[True], [False], [True]]).expand(3, 8)
    updated, _ = pcg(weight, mask, gram)
    assert torch.equal(updated, weight * mask)


def test_rows_do_not_depend_on_one_another():
    weight, gram = layer(12, 32)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    together, _ = pcg(weight, mask, gram)
    for i in range(12):
        alone, _ = pcg(weight[i : i + 1], mask[i : i + 1], gram)
        assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)
    assert torch.equal(together, pcg(weight, mask, gram)[0])


def test_a_row_stops_once_it_has_little_left_to_gain():
    weight, gram = layer(6, 32)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    hessian = oracle.damped(gram, 0.01)
    loss = {
        tolerance: oracle.losses(weight, pcg(weight, mask, gram, tolerance=tolerance)[0], hessian)
        for tolerance in (0.0, 1e-5, 0.9)
    }
    once = oracle.losses(weight, pcg(weight, mask, gram, iterations=1)[0], hessian)
    assert (loss[0.9] <= once * 1.0001).all()
    assert (loss[0.9] > loss[0.0]).any()
    assert_close(loss[1e-5], loss[0.0], rtol=1e-3, atol=0)


def test_damping_makes_fewer_tokens_than_channels_solvable():
    weight, gram = layer(5, 40, tokens=7)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    for damping in (0.01, 0.1):
        updated, _ = pcg(weight, mask, gram, damping=damping, iterations=200, tolerance=0.0)
        hessian = oracle.damped(gram, damping)
        least = oracle.losses(weight, oracle.on_support(weight, mask, hessian), hessian)
        assert_close(oracle.losses(weight, updated, hessian), least, rtol=1e-3, atol=1e-4)


def test_half_precision_weights_are_solved_in_float32():
    weight, gram = layer(4, 16)
    rounded = weight.bfloat16()
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    updated, _ = pcg(rounded, mask, gram)
    assert updated.dtype == torch.float32
    assert torch.equal(updated, pcg(rounded.float(), mask, gram)[0])


def test_arguments_are_not_modified():
    weight, gram = layer(4, 16)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    copies = weight.clone(), mask.clone(), gram.clone()
    pcg(weight, mask, gram)
    assert all(torch.equal(*pair) for pair in zip((weight, mask, gram), copies, strict=True))


def test_without_a_mask_it_says_what_is_missing():
    weight, gram = layer(4, 16)
    with pytest.raises(MethodError, match=r"steps\.select"):
        pcg(weight, None, gram)


def test_a_layer_without_calibration_tokens_is_refused():
    mask = torch.tensor([[True, False, True, False]])
    with pytest.raises(NumericsError, match="calibration"):
        pcg(torch.ones(1, 4), mask, torch.zeros(4, 4), tokens=torch.tensor(0.0))


def test_weights_of_inputs_that_never_fired_stay_as_they_are():
    weight, mask = torch.tensor([[3.0, -2.0, 0.5, 7.0]]), torch.tensor([[True, False, True, False]])
    updated, kept = pcg(weight, mask, torch.zeros(4, 4), tokens=torch.tensor(64.0))
    torch.testing.assert_close(updated * kept, weight * mask)


@pytest.mark.parametrize(("option", "value"), [("iterations", -1), ("damping", -0.1), ("tolerance", 1.0)])
def test_options_have_bounds(option, value):
    with pytest.raises(MethodError, match=rf"steps\.update\.{option}"):
        Step("pcg", {option: value}).bind("update")


def test_the_scale_of_the_inputs_changes_nothing():
    weight, gram = layer(4, 16)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    assert torch.equal(pcg(weight, mask, gram)[0], pcg(weight, mask, gram * 2.0**-40)[0])


@given(out=st.integers(1, 6), groups=st.integers(1, 8), tokens=st.integers(1, 100), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_after_sparsegpt_no_iteration_raises_any_rows_loss(out, groups, tokens, seed):
    weight, gram = layer(out, 4 * groups, tokens=tokens, seed=seed)
    sparsegpt_weight, mask = sparsegpt(weight, None, Pattern(2, 4), gram, damping=0.1)
    hessian = oracle.damped(gram, 0.1)
    scale = oracle.losses(weight, torch.zeros_like(weight), hessian)
    before = oracle.losses(weight, sparsegpt_weight, hessian)
    for iterations in (0, 1, 2, 5, 20, 100):
        updated, returned_mask = pcg(
            weight, mask, gram, sparsegpt_weight, damping=0.1, iterations=iterations, tolerance=0.0
        )
        after = oracle.losses(weight, updated, hessian)
        assert (after <= before + 5e-5 * scale).all()
        assert returned_mask is mask
        before = after


def test_it_starts_from_the_given_weights_and_converges_to_the_same_solution():
    weight, gram = layer(8, 24)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    start = weight * mask * 0.5
    assert torch.equal(pcg(weight, mask, gram, start, iterations=0)[0], start)
    solutions = [pcg(weight, mask, gram, initial, iterations=200, tolerance=0.0)[0] for initial in (None, start)]
    assert_close(*solutions, rtol=2e-3, atol=2e-4)


def test_inputs_that_are_always_zero_keep_dense_weights_for_any_start():
    weight, gram = layer(6, 16)
    gram[:, 4], gram[4] = 0.0, 0.0
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    mask[:, 4:8] = torch.tensor([True, True, False, False])
    updated, _ = pcg(weight, mask, gram, torch.full_like(weight, 9.0))
    assert torch.equal(updated[:, 4], weight[:, 4])


@pytest.mark.parametrize(("tokens", "times"), [(16, 32.0), (64, 8.0), (256, 2.0), (512, 1.0), (100_000, 1.0)])
def test_damping_grows_where_tokens_are_few(tokens, times):
    weight, gram = layer(5, 16)
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    updated, _ = pcg(weight, mask, gram, tokens=torch.tensor(float(tokens)))
    assert torch.equal(updated, pcg(weight, mask, gram, damping=0.01 * times)[0])


def test_with_few_tokens_the_update_still_lowers_held_out_loss():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=generator) * torch.linspace(0, -1, 64).exp()
    weight = torch.randn(48, 64, generator=generator)
    calibration, held_out = (torch.randn(n, 64, generator=generator) @ mix.T for n in (32, 20_000))
    gram, held_out_gram = calibration.T @ calibration / 32, held_out.T @ held_out / 20_000
    mask = masked_by_score(weight, Pattern(2, 4), gram)
    held_out_loss = {
        name: float(oracle.losses(weight, updated, oracle.damped(held_out_gram, 0.0)).sum())
        for name, updated in {
            "none": weight * mask,
            "plain": pcg(weight, mask, gram)[0],
            "scaled": pcg(weight, mask, gram, tokens=torch.tensor(32.0))[0],
        }.items()
    }
    assert held_out_loss["scaled"] < held_out_loss["plain"]
    assert held_out_loss["scaled"] < held_out_loss["none"]
