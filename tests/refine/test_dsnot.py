from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dsnot as oracle
from torch import Tensor

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.refine.dsnot import dsnot

PATTERNS: list[AnyPattern] = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 8), Unstructured(0.6)]


def layer(out: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(width, generator=generator).mul(2).exp()
    x = (torch.randn(6, 9, width, generator=generator) + torch.randn(width, generator=generator)) * scale
    within = x.var(1, correction=0).mean(0)
    flat = x.reshape(-1, width)
    return {
        "weight": torch.randn(out, width, generator=generator),
        "input_mean": flat.mean(0),
        "input_var": flat.var(0, correction=0),
        "input_var_within": within,
        "input_norm": flat.square().mean(0).sqrt(),
    }


def start_of(data: dict[str, Tensor], pattern: AnyPattern, wanda: bool = True) -> tuple[Tensor, Tensor]:
    score = data["weight"].abs() * (data["input_norm"] if wanda else 1.0)
    return keep_top(score, pattern), score


def refined(data: dict[str, Tensor], mask: Tensor, score: Tensor, pattern: AnyPattern, **options: Any) -> Tensor:
    options = {"sample_tokens": 1, "role": "attention", **options}
    return dsnot(mask, score, data["weight"], pattern, *(data[f"input_{n}"] for n in STATISTICS), **options)


STATISTICS = ("mean", "var", "var_within", "norm")


def errors(data: dict[str, Tensor], mask: Tensor) -> Tensor:
    return (data["weight"] * data["input_mean"]).double().masked_fill(mask, 0.0).sum(1)


def by_oracle(
    data: dict[str, Tensor], mask: Tensor, score: Tensor, pattern: AnyPattern, power: float, spread: str, **rule: Any
) -> Tensor:
    contribution = (data["weight"] * data["input_mean"]).double().tolist()
    variance = data[spread].double().tolist()
    grow = [[oracle.divided_by_variance(row[j], variance[j], power) for j in range(len(row))] for row in contribution]
    group = pattern.group if isinstance(pattern, Pattern) else None
    prune = score if group else data["weight"].abs() * data["input_norm"]
    none = [[0.0] * len(row) for row in contribution]
    return torch.tensor(oracle.refine(mask.tolist(), contribution, grow, none, prune.tolist(), group=group, **rule))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("wanda", [True, False], ids=["wanda", "magnitude"])
@pytest.mark.parametrize("cycles", [1, 3, 50])
@pytest.mark.parametrize(("power", "spread"), [(1.0, "within"), (0.0, "within"), (0.5, "all")])
@pytest.mark.parametrize("same_sign", ["original", "always", "never"])
def test_swaps_as_the_paper_one_row_and_one_swap_at_a_time(pattern, wanda, cycles, power, spread, same_sign):
    data = layer(12, 40, seed=cycles)
    mask, score = start_of(data, pattern, wanda)
    rule = {"max_cycles": cycles, "threshold": 0.1}
    swapped = refined(data, mask, score, pattern, power=power, variance=spread, same_sign=same_sign, **rule)
    no_crossing = same_sign == "always" or (same_sign == "original" and isinstance(pattern, Pattern))
    variance = "input_var_within" if spread == "within" else "input_var"
    assert torch.equal(swapped, by_oracle(data, mask, score, pattern, power, variance, no_crossing=no_crossing, **rule))
    assert not torch.equal(swapped, mask)


def degrade(data: dict[str, Tensor], kind: str) -> None:
    if kind == "zero weights":
        data["weight"][::2] = 0.0
        data["weight"][:, ::3] = 0.0
    elif kind == "silent channels":
        for name in ("input_mean", "input_var", "input_var_within", "input_norm"):
            data[name][::3] = 0.0
    elif kind == "constant channels":
        data["input_var"][::3] = 0.0
        data["input_var_within"][::3] = 0.0
    elif kind == "few levels":
        data["weight"] = data["weight"].round()
        for name in ("input_mean", "input_var", "input_var_within", "input_norm"):
            data[name] = data[name].sign()


@given(
    pattern=st.sampled_from(PATTERNS),
    groups=st.integers(1, 8),
    out=st.integers(1, 6),
    cycles=st.integers(0, 200),
    threshold=st.sampled_from([0.0, 0.1, 5.0]),
    same_sign=st.sampled_from(["original", "always", "never"]),
    zero_variance=st.sampled_from(["never", "first"]),
    wanda=st.booleans(),
    kind=st.sampled_from(["plain", "zero weights", "silent channels", "constant channels", "few levels"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_rows_and_groups_keep_as_many_at_any_width_and_number_of_cycles(
    pattern, groups, out, cycles, threshold, same_sign, zero_variance, wanda, kind, seed
):
    data = layer(out, 8 * groups if isinstance(pattern, Pattern) else 5 * groups - 4, seed)
    degrade(data, kind)
    mask, score = start_of(data, pattern, wanda)
    before = mask.clone()
    options = {"threshold": threshold, "same_sign": same_sign, "zero_variance": zero_variance}
    swapped = refined(data, mask, score, pattern, max_cycles=cycles, **options)
    assert torch.equal(mask, before)
    assert torch.equal(swapped.sum(1), mask.sum(1))
    if isinstance(pattern, Pattern):
        assert satisfies(swapped, pattern)
    assert ((swapped != mask).sum(1) <= 2 * cycles).all()


@given(seed=st.integers(0, 500), power=st.sampled_from([0.0, 1.0]), cycles=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_with_the_sign_rule_no_row_ends_with_more_error(seed, power, cycles):
    data = layer(8, 30, seed)
    mask, score = start_of(data, Unstructured(0.6))
    swapped = refined(data, mask, score, Unstructured(0.6), power=power, max_cycles=cycles, same_sign="always")
    before, after = errors(data, mask), errors(data, swapped)
    changed = (swapped != mask).any(1)
    assert (after.abs()[changed] < before.abs()[changed]).all()
    assert (after.sign()[changed] == before.sign()[changed]).all()


@given(seed=st.integers(0, 500), cycles=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_without_it_a_row_overshoots_by_less_than_its_largest_swap(seed, cycles):
    data = layer(8, 30, seed)
    mask, score = start_of(data, Unstructured(0.6))
    swapped = refined(data, mask, score, Unstructured(0.6), max_cycles=cycles)
    contribution = (data["weight"] * data["input_mean"]).abs()
    largest_swap = contribution.masked_fill(mask, 0.0).amax(1) + contribution.masked_fill(~mask, 0.0).amax(1)
    assert (errors(data, swapped).abs() <= torch.maximum(errors(data, mask).abs(), largest_swap) + 1e-6).all()


def test_rows_below_the_threshold_are_not_changed_and_all_others_are():
    data = layer(40, 60)
    mask, score = start_of(data, Unstructured(0.5))
    threshold = float(errors(data, mask).abs().median())
    swapped = refined(data, mask, score, Unstructured(0.5), threshold=threshold)
    small = errors(data, mask).abs() <= threshold
    assert torch.equal(swapped[small], mask[small])
    assert (swapped[~small] != mask[~small]).any(1).all()


def test_the_threshold_is_per_sample_so_its_length_matters():
    data = layer(20, 40)
    mask, score = start_of(data, Unstructured(0.5))
    once = refined(data, mask, score, Unstructured(0.5), sample_tokens=1, threshold=0.25)
    again = refined(data, mask, score, Unstructured(0.5), sample_tokens=64, threshold=16.0)
    tight = refined(data, mask, score, Unstructured(0.5), sample_tokens=64, threshold=0.25)
    assert torch.equal(once, again)
    assert not torch.equal(once, tight)


def test_a_row_without_candidates_stops_and_the_others_go_on():
    data = layer(2, 8)
    data["input_mean"] = torch.ones(8)
    data["weight"] = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3, 2], [9.0, -0.1, 7, 6, 5, 4, 3, -2]])
    mask = torch.tensor([[True] * 4 + [False] * 4, [True] * 4 + [False] * 4])
    swapped = refined(data, mask, data["weight"].abs(), Unstructured(0.5), threshold=0.0)
    assert torch.equal(swapped[0], mask[0])  # nothing kept has the opposite sign
    assert not swapped[1, 1]  # the only kept weight with the opposite sign is pruned, and then the row stops
    assert int((swapped[1] != mask[1]).sum()) == 2


def test_in_a_group_each_weight_is_pruned_once_and_a_grown_one_never():
    data = layer(1, 8)
    for name in ("input_mean", "input_var", "input_var_within", "input_norm"):
        data[name] = torch.ones(8)
    data["weight"] = torch.tensor([[0.1, 0.2, 9.0, 8.0, 0.3, 0.4, 7.0, 6.0]])
    mask = torch.tensor([[True, True, False, False, True, True, False, False]])
    score = data["weight"].abs()
    for cycles, columns in ((1, [2, 1, 4, 5]), (2, [2, 3, 4, 5]), (3, [2, 3, 6, 5]), (50, [2, 3, 6, 7])):
        swapped = refined(data, mask, score, Pattern(2, 4), max_cycles=cycles, threshold=0.0, same_sign="never")
        assert sorted(swapped[0].nonzero()[:, 0].tolist()) == sorted(columns)


def test_constant_channels_are_not_grown_unless_zero_variance_is_first():
    data = layer(30, 24)
    data["input_norm"][5] = data["input_mean"][5] = 3.0
    data["input_var_within"][5] = 3e-7 * 9.0  # what rounding leaves of zero
    mask, score = start_of(data, Unstructured(0.5), wanda=False)
    never = refined(data, mask, score, Unstructured(0.5), threshold=0.0)
    assert not (never[:, 5] & ~mask[:, 5]).any()
    first = refined(data, mask, score, Unstructured(0.5), threshold=0.0, max_cycles=1, zero_variance="first")
    contribution = data["weight"][:, 5] * data["input_mean"][5]
    fits = ~mask[:, 5] & (contribution.sign() == errors(data, mask).sign()) & (first != mask).any(1)
    assert fits.sum() > 3
    assert first[fits, 5].all()


@pytest.mark.parametrize(
    ("role", "skip", "moves"), [("mlp", "mlp", False), ("attention", "mlp", True), ("mlp", "none", True)]
)
def test_the_mlp_is_not_refined_unless_skip_is_none(role, skip, moves):
    data = layer(10, 20)
    mask, score = start_of(data, Unstructured(0.6))
    assert torch.equal(refined(data, mask, score, Unstructured(0.6), role=role, skip=skip), mask) is not moves


def test_any_mask_is_accepted_and_each_row_keeps_its_own_count():
    data = layer(10, 20)
    mask = keep_top(data["weight"].abs(), Unstructured(0.6), group="layer")
    swapped = refined(data, mask, data["weight"].abs(), Unstructured(0.6))
    assert torch.equal(swapped.sum(1), mask.sum(1))
    assert not torch.equal(swapped, mask)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_layout_in_memory_does_not_matter(pattern):
    data = layer(10, 24)
    mask, score = start_of(data, pattern)
    strided = {**data, "weight": data["weight"].T.contiguous().T}
    swapped = refined(strided, mask.T.contiguous().T, score.T.contiguous().T, pattern)
    assert torch.equal(swapped, refined(data, mask, score, pattern))


def test_equal_keys_grow_the_higher_column_and_prune_the_lower():
    data = layer(1, 8)
    for name in ("input_mean", "input_var", "input_var_within", "input_norm"):
        data[name] = torch.ones(8)
    data["weight"] = torch.tensor([[1.0, 1.0, 1.0, 1.0, -2.0, -2.0, -2.0, -2.0]])
    mask = data["weight"] < 0
    swapped = refined(data, mask, data["weight"].abs(), Unstructured(0.5), max_cycles=1)
    assert swapped[0].tolist() == [False, False, False, True, False, True, True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"max_cycles": -1},
        {"threshold": -0.1},
        {"sample_tokens": 0},
        {"power": -1.0},
        {"variance": "between"},
        {"zero_variance": "last"},
        {"same_sign": True},
        {"skip": "attention"},
        {"cycles": 3},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_before_anything_runs(options):
    with pytest.raises(MethodError, match=rf"steps\.refine\.{next(iter(options))}"):
        Step("dsnot", options).bind("refine")


def test_it_requests_both_variances_and_accepts_every_pattern():
    bound = Step("dsnot").bind("refine")
    assert bound.statistics == {"input_mean", "input_var", "input_var_within", "input_norm"}
    assert bound.patterns is None
