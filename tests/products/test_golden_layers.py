"""Magnitude, Wanda, RI and RIA against what their public code made of the golden layers."""

import functools
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from golden import arrays, cases, layer, needs_golden, parameters
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core import order as orders
from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.stats import Moments
from eggs_ptp.permute.deal import deal
from eggs_ptp.score.magnitude import magnitude
from eggs_ptp.score.ri import ri
from eggs_ptp.score.ria import ria
from eggs_ptp.score.wanda import wanda
from eggs_ptp.select.cumulative import cumulative
from eggs_ptp.select.top import top

METHODS = ("magnitude", "wanda", "ria")
EXACT = cases(*METHODS, exact=True)
COUNTS = {"magnitude": 22, "wanda": 39, "ri": 15, "ria": 115}
OTHERS = cases(*METHODS, exact=False)
CHANNEL_SCORE = {
    None: "sum",
    "retained_degree_unstructured": "retained_layer",
    "retained_degree_per_outneuron": "retained_row",
}


@functools.cache
def norm_of(name: str) -> Tensor:
    calib = layer(name)[1]
    moments = Moments(calib.shape[-1], frozenset({"input_norm"}))
    for sample in calib:
        moments.add(sample)
    return moments.read("input_norm", name)


def tokens_per_sample(case: dict[str, Any]) -> int:
    """The public code divides sums of squares by samples, not tokens."""
    return layer(case["layer"])[1].shape[1]


def name_of(case: dict[str, Any]) -> str:
    """Our score's name: the public code's RI is an option of its RIA."""
    return case["params"].get("score", case["method"])


def score_of(case: dict[str, Any]) -> tuple[Tensor, float]:
    """Our score, and the constant that it is short of against the public code's."""
    weight, norm = layer(case["layer"])[0], norm_of(case["layer"])
    match name_of(case):
        case "magnitude":
            return magnitude(weight), 1.0
        case "wanda":
            return wanda(weight, norm), tokens_per_sample(case) ** 0.5
        case "ri":
            return ri(weight), 1.0
        case _:
            alpha = case["params"]["a"]
            return ria(weight, norm, alpha=alpha), tokens_per_sample(case) ** (alpha / 2)


def pattern_of(case: dict[str, Any]) -> Pattern | Unstructured:
    params = case["params"]
    return Pattern(params["m"] - params["n"], params["m"]) if "m" in params else Unstructured(params["sparsity"])


def group_of(case: dict[str, Any]) -> str:
    published_wanda = case["method"] == "wanda" and "score" not in case["params"]
    return "row" if published_wanda or case["params"].get("per_output") else "layer"


def order_of(case: dict[str, Any], score: Tensor) -> Tensor:
    params, pattern = case["params"], pattern_of(case)
    if not params.get("reallocation"):
        return orders.identity(score.shape[1])
    return deal(
        score,
        pattern,
        channel_score=CHANNEL_SCORE[params.get("importance_score")],
        sparsity=params.get("sparsity", 0.5),
        assign=params.get("lsa", False),
        blocks=4 if params.get("fast") else 1,
    )


def prune(case: dict[str, Any], count: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mask in the weight's own columns, order, and score."""
    score, _ = score_of(case)
    order = order_of(case, score)
    if case["params"].get("use_variant"):
        return cumulative(score, pattern_of(case), original=count == "original").value, order, score
    ordered = top(orders.take_columns(score, order), pattern_of(case), group=group_of(case), count=count)
    return orders.take_columns(ordered, orders.invert(order)), order, score


@pytest.mark.parametrize("case", parameters(EXACT))
def test_the_mask_and_order_are_those_of_the_public_code(case):
    want = arrays(case)
    mask, order, _ = prune(case, "original")
    assert torch.equal(mask, ~want["mask"])
    if case.get("perm_match") == "exact":
        assert torch.equal(order.int(), want["perm"])


@pytest.mark.parametrize("case", parameters([c for c in EXACT if "score" in c["arrays"]]))
def test_the_score_is_that_of_the_public_code(case):
    want = arrays(case)
    score, constant = score_of(case)
    assert_close(score * constant, want["score"], rtol=1e-4, atol=0.0)
    if "scaler_row" in want:
        assert_close(norm_of(case["layer"]).square() * tokens_per_sample(case), want["scaler_row"], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("case", parameters([c for c in EXACT if "retained_final" in c["arrays"]]))
def test_the_retained_scores_are_those_of_the_public_code(case):
    want, pattern = arrays(case), pattern_of(case)
    score, constant = score_of(case)
    dealt = order_of({**case, "params": {**case["params"], "lsa": False}}, score)
    for name, order in (
        ("retained_plain", orders.identity(score.shape[1])),
        ("retained_heuristic", dealt),
        ("retained_final", order_of(case, score)),
    ):
        ordered = orders.take_columns(score, order)
        ours = (ordered * keep_top(ordered, pattern)).sum(dtype=torch.float64) * constant
        assert_close(ours, want[name].double(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("case", parameters(OTHERS))
def test_where_the_public_code_is_not_to_be_followed_the_lowest_go_and_counts_are_exact(case):
    mask, order, score = prune(case, "exact")
    pattern, width = pattern_of(case), score.shape[1]
    orders.check(order, width, case["case"])
    assert torch.isfinite(score).all()
    if isinstance(pattern, Pattern):
        compared, pruned = pattern.group, pattern.group - pattern.keep
        assert satisfies(orders.take_columns(mask, order), pattern)
    else:
        compared = mask.numel() if group_of(case) == "layer" else width
        pruned = round(compared * pattern.sparsity)
    keep = orders.take_columns(mask, order).reshape(-1, compared)
    ordered = orders.take_columns(score, order).reshape(-1, compared)
    assert ((~keep).sum(1) == pruned).all()
    # What the public code ranks highest by 0/0 is ranked lowest here.
    assert (ordered.masked_fill(~keep, torch.inf).amin(1) >= ordered.masked_fill(keep, -torch.inf).amax(1)).all()


@needs_golden
def test_number_of_exact_cases_matched():
    matched = dict.fromkeys(COUNTS, 0)
    for case in EXACT:
        want = arrays(case)
        mask, order, _ = prune(case, "original")
        same_order = case.get("perm_match") != "exact" or torch.equal(order.int(), want["perm"])
        matched[name_of(case)] += torch.equal(mask, ~want["mask"]) and same_order
    total = Counter(map(name_of, EXACT))
    found = ", ".join(f"{name} {count} of {total[name]}" for name, count in matched.items())
    sys.stdout.write(f"exact golden cases matched: {found}, total {sum(matched.values())} of {len(EXACT)}\n")
    assert matched == total == COUNTS
