"""GPTQ on kept weights: the paper's sweep, passes that never lose, and weights on the quantisation grid of packing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer
from oracles import grid as oracle
from oracles import least_squares
from oracles.packing import same_bits

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pack import kept_values, pack, quantise
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.quantisation import GRIDS, compute_scales
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.method.catalogue import find_method
from eggs_ptp.method.step import Step
from eggs_ptp.update.gptq import gptq
from eggs_ptp.update.pcg import pcg

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(3, 4), Pattern(1, 4)]


def problem(out=6, width=32, pattern=Pattern(2, 4), tokens=200, seed=0):  # noqa: B008
    weight, gram = layer(out, width, tokens=tokens, seed=seed)
    return weight, keep_top(weight.abs(), pattern), gram


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_the_sweep_is_that_of_the_paper(values, damping):
    weight, mask, gram = problem()
    quantised, _ = gptq(weight, mask, Pattern(2, 4), gram, values=values, damping=damping, passes=0)
    max_level, begin = GRIDS[values].max_level, torch.where(mask, weight, 0.0)
    # How it is chosen is tested below; given the scale, the sweep is determined.
    scale = compute_scales(quantised, quantised.shape[1])
    step = (scale / max_level).expand_as(weight).double().numpy()
    peak = torch.zeros_like(mask).scatter_(1, begin.abs().argmax(1, keepdim=True), True).numpy()
    hessian = least_squares.damped(gram, damping)
    expected = oracle.quantised_columns(begin.numpy(), mask.numpy(), np.asarray(hessian), step, peak, max_level)
    differs = np.abs(quantised.double().numpy() - expected) > 0.5 * step
    assert differs.mean() < 0.02  # a weight halfway between two numbers may fall to the other side in float32
    assert (quantised == 0)[~mask].all()


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_after_enough_passes_no_single_weight_can_do_better(values):
    weight, mask, gram = problem(out=3)
    quantised, _ = gptq(weight, mask, Pattern(2, 4), gram, values=values, damping=0.1, passes=100)
    max_level, begin = GRIDS[values].max_level, torch.where(mask, weight, 0.0).double().numpy()
    quantised_array, hessian = quantised.double().numpy(), np.asarray(least_squares.damped(gram, 0.1))
    for i in range(3):
        scale = np.abs(quantised_array[i]).max()
        for j in np.flatnonzero(mask[i].numpy()):
            if abs(quantised_array[i, j]) < scale:
                best = oracle.best_grid_value(quantised_array, begin, hessian, i, j, scale / max_level, max_level)
                assert quantised_array[i, j] == pytest.approx(best, rel=1e-6, abs=1e-9)


@given(
    out=st.integers(1, 5),
    groups=st.integers(1, 12),
    pattern=st.sampled_from(PATTERNS),
    values=st.sampled_from(sorted(GRIDS)),
    damping=st.sampled_from([0.001, 0.01, 1.0]),
    dead=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_passes_never_raise_the_loss(out, groups, pattern, values, damping, dead, seed):
    weight, mask, gram = problem(out, groups * pattern.group, pattern, seed=seed)
    if dead:
        gram[0], gram[:, 0] = 0.0, 0.0
    begin, hessian = torch.where(mask, weight, 0.0), least_squares.damped(gram, damping)
    before = float("inf")
    for passes in (0, 1, 2, 8):
        quantised, returned_mask = gptq(weight, mask, pattern, gram, values=values, damping=damping, passes=passes)
        assert returned_mask is mask
        assert torch.isfinite(quantised).all()
        loss = float(np.sum(np.asarray(least_squares.losses(begin, quantised, hessian))))
        assert loss <= before * (1 + 1e-5) + 1e-9
        before = loss


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("start", [False, True])
def test_packing_with_the_same_values_changes_no_bit(values, pattern, start):
    weight, mask, gram = problem(9, 288, pattern)
    begin = pcg(weight, mask, gram)[0] if start else None
    quantised, _ = gptq(weight, mask, pattern, gram, begin, values=values)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        packed = pack(quantised.to(dtype), pattern)
        assert same_bits(kept_values(quantise(packed, values)), packed.values)


@pytest.mark.parametrize(("values", "least"), [("int8", 1.0), ("int4", 1.15)])
def test_it_beats_rounding_to_the_nearest(values, least):
    pattern = Pattern(2, 4)
    weight, mask, gram = problem(32, 256, pattern, tokens=2000)
    begin, _ = pcg(weight, mask, gram, iterations=50)
    nearest = quantise(pack(begin, pattern), values)
    rounded = torch.zeros_like(begin).masked_scatter_(mask, kept_values(nearest))
    hessian = least_squares.damped(gram, 0.01)
    excess = [
        float(np.sum(np.asarray(least_squares.losses(begin, candidate, hessian))))
        for candidate in (rounded, gptq(weight, mask, pattern, gram, begin, values=values)[0])
    ]
    assert excess[0] > least * excess[1]


def test_each_group_of_int4_has_its_own_scale():
    pattern = Pattern(2, 4)
    weight, mask, gram = problem(4, 256, pattern, tokens=2000)
    weight[:, 128:] *= 1000
    quantised, _ = gptq(weight, mask, pattern, gram, values="int4")
    scales = compute_scales(pack(quantised, pattern).values, 64)
    assert scales.shape == (4, 2)
    assert bool((scales[:, 1] > 100 * scales[:, 0]).all())
    assert same_bits(scales.bfloat16().float(), scales)


def test_rows_of_zeros_stay_zero():
    weight, mask, gram = problem()
    weight[1] = 0
    assert not gptq(weight, mask, Pattern(2, 4), gram)[0][1].any()


def test_it_is_appended_to_the_update_steps_of_a_method():
    before = find_method("eggs+").bind().steps["update"].name
    assert find_method("eggs++gptq").bind().steps["update"].name == f"{before}+gptq"
    assert find_method("sparsegpt+gptq").bind().steps["update"].name == "sparsegpt+gptq"
    assert Step("gptq").bind("update").patterns is Pattern


def test_impossible_arguments_are_refused():
    weight, mask, gram = problem()
    with pytest.raises(MethodError, match="gptq quantises the weights of a given mask, and there is none"):
        gptq(weight, None, Pattern(2, 4), gram)
    with pytest.raises(NumericsError, match="got a mean of nan"):
        gptq(weight, mask, Pattern(2, 4), torch.full_like(gram, float("nan")))
    with pytest.raises(MethodError, match="values"):
        Step("gptq", {"values": "int3"}).bind("update")
