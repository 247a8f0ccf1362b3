import math
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
from eggs_ptp.refine.r2_dsnot import r2_dsnot
from eggs_ptp.score.ria import ria

PATTERNS: list[AnyPattern] = [Pattern(2, 4), Pattern(3, 8), Unstructured(0.6)]
WANDA = {"relative_grow": False, "relative_prune": True, "gamma2": 1e-3}
OFF = {"relative_grow": False, "relative_prune": False, "gamma1": 0.0, "gamma2": 0.0, "alpha": 1.0}
READINGS: list[dict[str, Any]] = [
    {},
    WANDA,
    {"relative_prune": True, "gamma1": 0.5, "gamma2": 0.02},
    {"relative_grow": False, "gamma1": -0.3, "gamma2": 0.05, "p": 1.0},
    {"gamma1": 0.5, "gamma2": 0.05, "p": math.inf},
    {"gamma1": 0.5, "gamma2": 0.05, "p": 0.5, "alpha": 0.0},
    {"gamma1": 2.0, "gamma2": 0.05, "reference": "dense", "relative_prune": True},
    {"gamma1": 0.5, "gamma2": 0.05, "norm": "output"},
    {"gamma1": 2.0, "gamma2": 1.0, "norm": "output_after", "p": 3.0},
    {"gamma1": 2.0, "gamma2": 1.0, "norm": "output_after", "p": math.inf},
    {"grow": "literal"},
    {"grow": "literal", "relative_grow": False, "gamma1": 0.1, "power": 0.5},
    {"variance": "all", "same_sign": "always", "max_cycles": 2},
]
STATISTICS = ("mean", "var", "var_within", "norm")


def layer(out: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean, var = torch.randn(width, generator=generator), torch.rand(width, generator=generator) + 0.1
    extra = torch.rand(width, generator=generator)
    return {
        "weight": torch.randn(out, width, generator=generator) * torch.rand(width, generator=generator).exp(),
        "input_mean": mean,
        "input_var": var + extra,
        "input_var_within": var,
        "input_norm": (mean.square() + var + extra).sqrt(),
    }


def refined(data: dict[str, Tensor], mask: Tensor, pattern: AnyPattern, **options: Any) -> Tensor:
    options = {"sample_tokens": 16, "role": "attention", **options}
    return r2_dsnot(mask, data["weight"], pattern, *(data[f"input_{n}"] for n in STATISTICS), **options)


def norm_of(row: list[float], column: list[float], keep: list[bool], j: int, p: float, norm: str, dense: bool) -> float:
    """The regulariser's norm for weight j: of its reference column or row, or of its row after the swap."""
    if norm == "input":
        return oracle.norm(column, p)
    if norm == "output":
        return oracle.norm(row, p)
    kept = [abs(w) if keep[k] != (k == j) else 0.0 for k, w in enumerate(row)]  # after j has been grown or pruned
    return oracle.norm(kept, p)


def by_oracle(data: dict[str, Tensor], mask: Tensor, pattern: AnyPattern, **options: Any) -> Tensor:
    settings_used = {
        "relative_grow": True,
        "gamma1": 0.0,
        "relative_prune": False,
        "gamma2": 1e-4,
        "p": 2.0,
        "alpha": 0.5,
    }
    settings_used |= {"reference": "sparse", "norm": "input", "grow": "weighted", "power": 1.0, "variance": "within"}
    settings_used |= {"same_sign": "original", "max_cycles": 50, "threshold": 0.1, "sample_tokens": 16} | options
    weight, keep = data["weight"].double().tolist(), mask.tolist()
    tokens, width = settings_used["sample_tokens"], len(weight[0])
    mean, norm = data["input_mean"].double().tolist(), data["input_norm"].double().tolist()
    variance = data["input_var_within" if settings_used["variance"] == "within" else "input_var"].double().tolist()
    dense = settings_used["reference"] == "dense"
    reference = [
        [w if dense or k else 0.0 for w, k in zip(*pair, strict=True)] for pair in zip(weight, keep, strict=True)
    ]
    relative = oracle.relative(reference)
    contribution, grow, bonus, prune = [], [], [], []
    for i, row in enumerate(weight):
        contribution.append([row[j] * tokens * mean[j] for j in range(width)])
        gain = contribution[i] if settings_used["grow"] == "weighted" else [tokens * m for m in mean]
        gain = [oracle.divided_by_variance(gain[j], variance[j], settings_used["power"]) for j in range(width)]
        grow.append([gain[j] * (relative[i][j] if settings_used["relative_grow"] else 1.0) for j in range(width)])
        cost = [abs(row[j]) * (math.sqrt(tokens) * norm[j]) ** settings_used["alpha"] for j in range(width)]
        cost = [cost[j] * (relative[i][j] if settings_used["relative_prune"] else 1.0) for j in range(width)]
        after = settings_used["norm"] == "output_after"
        norms = [
            norm_of(
                row if after else reference[i],
                [r[j] for r in reference],
                keep[i],
                j,
                settings_used["p"],
                settings_used["norm"],
                dense,
            )
            for j in range(width)
        ]
        bonus.append([settings_used["gamma1"] * n for n in norms])
        prune.append([cost[j] + settings_used["gamma2"] * norms[j] for j in range(width)])
    is_nm = isinstance(pattern, Pattern)
    return torch.tensor(
        oracle.refine(
            keep,
            contribution,
            grow,
            bonus,
            prune,
            group=pattern.group if is_nm else None,
            max_cycles=settings_used["max_cycles"],
            threshold=settings_used["threshold"],
            no_crossing=settings_used["same_sign"] == "always" or (settings_used["same_sign"] == "original" and is_nm),
        )
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("options", READINGS, ids=str)
def test_swaps_as_the_paper_one_row_and_one_swap_at_a_time(pattern, options):
    data = layer(10, 32)
    mask = keep_top(ria(data["weight"], data["input_norm"]), pattern)
    swapped = refined(data, mask, pattern, **options)
    assert torch.equal(swapped, by_oracle(data, mask, pattern, **options))
    assert not torch.equal(swapped, mask)


@pytest.mark.parametrize("options", [o for o in READINGS[1:] if o.get("norm") != "output"], ids=str)
def test_each_option_changes_what_is_chosen(options):
    data = layer(40, 64)
    mask = keep_top(ria(data["weight"], data["input_norm"]), Unstructured(0.6))
    assert not torch.equal(refined(data, mask, Unstructured(0.6), **options), refined(data, mask, Unstructured(0.6)))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(seed=st.integers(0, 1000), cycles=st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_with_its_switches_off_after_wanda_it_is_dsnot(pattern, seed, cycles):
    data = layer(8, 40, seed)
    score = data["weight"].abs() * data["input_norm"]
    mask = keep_top(score, pattern)
    statistics = [data[f"input_{name}"] for name in STATISTICS]
    rule = {"max_cycles": cycles, "sample_tokens": 16}
    expected = dsnot(mask, score, data["weight"], pattern, *statistics, "attention", **rule)
    assert torch.equal(refined(data, mask, pattern, **OFF, **rule), expected)


def test_the_norm_of_the_row_changes_nothing():
    data = layer(12, 40)
    mask = keep_top(ria(data["weight"], data["input_norm"]), Unstructured(0.6))
    plain = refined(data, mask, Unstructured(0.6), gamma2=0.0)
    assert torch.equal(refined(data, mask, Unstructured(0.6), gamma1=0.25, gamma2=0.25, norm="output"), plain)


@given(
    pattern=st.sampled_from(PATTERNS),
    groups=st.integers(1, 5),
    cycles=st.integers(0, 100),
    options=st.sampled_from(READINGS),
    empty=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_rows_and_groups_keep_as_many(pattern, groups, cycles, options, empty, seed):
    data = layer(6, 8 * groups if isinstance(pattern, Pattern) else 3 * groups - 2, seed)
    if empty:
        data["weight"][::2], data["weight"][:, ::3] = 0.0, 0.0
        for name in STATISTICS:
            data[f"input_{name}"][1::4] = 0.0
    mask = keep_top(ria(data["weight"], data["input_norm"]), pattern)
    swapped = refined(data, mask, pattern, **{**options, "max_cycles": cycles, "threshold": 0.0})
    assert torch.equal(swapped.sum(1), mask.sum(1))
    if isinstance(pattern, Pattern):
        assert satisfies(swapped, pattern)


def test_the_mlp_is_not_refined_unless_skip_is_none():
    data = layer(10, 20)
    mask = keep_top(data["weight"].abs(), Unstructured(0.6))
    assert torch.equal(refined(data, mask, Unstructured(0.6), role="mlp"), mask)
    assert not torch.equal(refined(data, mask, Unstructured(0.6), role="mlp", skip="none"), mask)


@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.0},
        {"p": -1.0},
        {"alpha": -0.5},
        {"gamma1": math.inf},
        {"reference": "both"},
        {"norm": "row"},
        {"grow": "signed"},
        {"max_cycles": -1},
        {"threshold": -1.0},
        {"relative_grow": 2},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_before_anything_runs(options):
    with pytest.raises(MethodError, match=rf"steps\.refine\.{next(iter(options))}"):
        Step("r2_dsnot", options).bind("refine")


def test_an_infinite_p_is_accepted():
    assert Step("r2_dsnot", {"p": math.inf}).bind("refine").options["p"] == math.inf
