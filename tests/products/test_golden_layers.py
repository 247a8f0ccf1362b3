"""Magnitude, Wanda, RI and RIA compared with the results of their public code on the golden layers."""

import functools
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from golden import arrays, cases, layer, needs_golden, parameters
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.permutation import check_permutation, identity, invert, take_columns
from eggs_ptp.core.stats import Moments
from eggs_ptp.permute.allocate import allocate
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
    """By which the public code's sums of squares differ: it divides them by samples, not tokens."""
    return layer(case["layer"])[1].shape[1]


def name_of(case: dict[str, Any]) -> str:
    """The name of the score here: the public code's RI is an option of its RIA."""
    return case["params"].get("score", case["method"])


def score_of(case: dict[str, Any]) -> tuple[Tensor, float]:
    """The score, and the constant factor between it and that of the public code."""
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


def shared_permutation_of(case: dict[str, Any], score: Tensor) -> Tensor:
    params, pattern = case["params"], pattern_of(case)
    if not params.get("reallocation"):
        return identity(score.shape[1])
    return allocate(
        score,
        pattern,
        channel_score=CHANNEL_SCORE[params.get("importance_score")],
        sparsity=params.get("sparsity", 0.5),
        assign=params.get("lsa", False),
        blocks=4 if params.get("fast") else 1,
    )


def prune(case: dict[str, Any], count: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mask in the weight's own columns, the permutation, and the score."""
    score, _ = score_of(case)
    permutation = shared_permutation_of(case, score)
    if case["params"].get("use_variant"):
        return cumulative(score, pattern_of(case), original=count == "original").value, permutation, score
    mask = top(take_columns(score, permutation), pattern_of(case), group=group_of(case), count=count)
    return take_columns(mask, invert(permutation)), permutation, score


@pytest.mark.parametrize("case", parameters(EXACT))
def test_mask_and_permutation_equal_those_of_the_public_code(case):
    expected = arrays(case)
    mask, permutation, _ = prune(case, "original")
    assert torch.equal(mask, ~expected["mask"])
    if case.get("perm_match") == "exact":
        assert torch.equal(permutation.int(), expected["perm"])


@pytest.mark.parametrize("case", parameters([c for c in EXACT if "score" in c["arrays"]]))
def test_the_score_equals_that_of_the_public_code(case):
    expected = arrays(case)
    score, constant = score_of(case)
    assert_close(score * constant, expected["score"], rtol=1e-4, atol=0.0)
    if "scaler_row" in expected:
        assert_close(
            norm_of(case["layer"]).square() * tokens_per_sample(case), expected["scaler_row"], rtol=1e-4, atol=0.0
        )


@pytest.mark.parametrize("case", parameters([c for c in EXACT if "retained_final" in c["arrays"]]))
def test_the_retained_scores_equal_those_of_the_public_code(case):
    expected = arrays(case)
    pattern = pattern_of(case)
    score, constant = score_of(case)
    allocated = shared_permutation_of({**case, "params": {**case["params"], "lsa": False}}, score)
    for name, permutation in (
        ("retained_plain", identity(score.shape[1])),
        ("retained_heuristic", allocated),
        ("retained_final", shared_permutation_of(case, score)),
    ):
        permuted_score = take_columns(score, permutation)
        retained = (permuted_score * keep_top(permuted_score, pattern)).sum(dtype=torch.float64) * constant
        assert_close(retained, expected[name].double(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("case", parameters(OTHERS))
def test_where_the_public_code_is_wrong_the_lowest_scores_are_pruned_and_counts_are_exact(case):
    mask, permutation, score = prune(case, "exact")
    pattern = pattern_of(case)
    width = score.shape[1]
    check_permutation(permutation, width, case["case"])
    assert torch.isfinite(score).all()
    if isinstance(pattern, Pattern):
        compared = pattern.group
        pruned = pattern.group - pattern.keep
        assert satisfies(take_columns(mask, permutation), pattern)
    else:
        compared = mask.numel() if group_of(case) == "layer" else width
        pruned = round(compared * pattern.sparsity)
    keep = take_columns(mask, permutation).reshape(-1, compared)
    permuted_score = take_columns(score, permutation).reshape(-1, compared)
    assert ((~keep).sum(1) == pruned).all()
    # Scores of 0/0, which the public code ranks highest, are ranked lowest here.
    lowest_kept = permuted_score.masked_fill(~keep, torch.inf).amin(1)
    highest_pruned = permuted_score.masked_fill(keep, -torch.inf).amax(1)
    assert (lowest_kept >= highest_pruned).all()


@needs_golden
def test_all_exact_cases_match():
    matched = dict.fromkeys(COUNTS, 0)
    for case in EXACT:
        expected = arrays(case)
        mask, permutation, _ = prune(case, "original")
        same_permutation = case.get("perm_match") != "exact" or torch.equal(permutation.int(), expected["perm"])
        matched[name_of(case)] += torch.equal(mask, ~expected["mask"]) and same_permutation
    total = Counter(map(name_of, EXACT))
    counts = ", ".join(f"{name} {count} of {total[name]}" for name, count in matched.items())
    sys.stdout.write(f"exact golden cases matched: {counts}, total {sum(matched.values())} of {len(EXACT)}\n")
    assert matched == total == COUNTS
