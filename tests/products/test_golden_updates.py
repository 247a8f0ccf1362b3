"""SparseGPT and DSnoT compared with the results of their public code on the golden layers."""

import functools
import sys
from typing import Any

import pytest
import torch
from golden import arrays, cases, layer, needs_golden, parameters
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.stats import Moments
from eggs_ptp.refine.dsnot import dsnot
from eggs_ptp.score.magnitude import magnitude
from eggs_ptp.score.wanda import wanda
from eggs_ptp.update.sparsegpt import sparsegpt

SPARSEGPT, DSNOT = cases("sparsegpt", exact=True), cases("dsnot", exact=True)
TIED, BROKEN = cases("sparsegpt", exact=False), cases("dsnot", exact=False)
INPUT = ("input_mean", "input_var", "input_var_within", "input_norm")


@functools.cache
def statistic_of(layer_name: str, statistic: str) -> Tensor:
    calibration = layer(layer_name)[1]
    moments = Moments(calibration.shape[-1], frozenset({statistic}))
    for sample in calibration:
        moments.add(sample)
    return moments.read(statistic, layer_name)


def tokens_per_sample(case: dict[str, Any]) -> int:
    return layer(case["layer"])[1].shape[1]


def pattern_of(case: dict[str, Any]) -> Pattern | Unstructured:
    params = case["params"]
    return Pattern(params["m"] - params["n"], params["m"]) if "m" in params else Unstructured(params["sparsity"])


def updated(case: dict[str, Any], *, original: bool) -> tuple[Tensor, Tensor]:
    weight, gram = layer(case["layer"])[0], statistic_of(case["layer"], "gram")
    return sparsegpt(weight, None, pattern_of(case), gram, original=original)


def start_of(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    weight = layer(case["layer"])[0]
    norm = statistic_of(case["layer"], "input_norm")
    score = magnitude(weight) if case["params"]["init"] == "magnitude" else wanda(weight, norm)
    return keep_top(score, pattern_of(case), count="original"), score


def refined(case: dict[str, Any], **options: Any) -> Tensor:
    params = case["params"]
    mask, score = start_of(case)
    statistics = [statistic_of(case["layer"], name) for name in INPUT]
    return dsnot(
        mask,
        score,
        layer(case["layer"])[0],
        pattern_of(case),
        *statistics,
        "mlp",
        max_cycles=params["max_cycle_time"],
        sample_tokens=tokens_per_sample(case),
        power=params.get("pow_of_var", 1.0),
        same_sign="original" if params.get("without_same_sign", True) else "always",
        skip="none",
        **options,
    )


def error_of(case: dict[str, Any], mask: Tensor) -> Tensor:
    mean = statistic_of(case["layer"], "input_mean") * tokens_per_sample(case)
    return (layer(case["layer"])[0] * mean).double().masked_fill(mask, 0.0).sum(1)


@pytest.mark.parametrize("case", parameters(SPARSEGPT))
def test_sparsegpt_equals_the_public_code(case):
    expected = arrays(case)
    weight, mask = updated(case, original=True)
    assert torch.equal(mask, ~expected["mask"])
    assert_close(weight, expected["weight_after"], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("case", parameters(SPARSEGPT))
def test_the_gram_matrix_equals_the_hessian_of_the_public_code_up_to_a_constant(case):
    hessian = statistic_of(case["layer"], "gram").diagonal() * 2 * tokens_per_sample(case)
    assert_close(hessian, arrays(case)["hessian_diag"], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("case", parameters(SPARSEGPT))
def test_sparsegpt_by_default_differs_only_in_the_count_and_in_silent_channels(case):
    expected = arrays(case)
    weight, mask = updated(case, original=False)
    if isinstance(pattern_of(case), Pattern):
        assert torch.equal(mask, ~expected["mask"])
        assert_close(weight, expected["weight_after"], rtol=0.0, atol=1e-5)
        return
    assert int((~mask).sum()) == mask.numel() // 2 < int(expected["mask"].sum())
    silent = expected["hessian_diag"] == 0
    if silent.any():
        assert int(mask[:, ~silent].sum()) == mask[:, ~silent].numel() // 2
    else:
        # One weight too many is pruned in the first block, which affects the others.
        first = slice(0, 128)
        assert int((mask[:, first] != ~expected["mask"][:, first]).sum()) == 1
        assert float((mask != ~expected["mask"]).float().mean()) < 1e-3


@pytest.mark.parametrize("case", parameters(TIED))
def test_among_equal_scores_sparsegpt_prunes_the_lower_column(case):
    expected = arrays(case)
    dense = layer(case["layer"])[0]
    weight, mask = updated(case, original=True)
    assert satisfies(mask, pattern_of(case))
    # The masks differ only where weights that are zero tie; the other weights are the same.
    assert (dense[mask == expected["mask"]] == 0).all()
    assert_close(weight, expected["weight_after"], rtol=0.0, atol=1e-5)
    rows = (dense == 0).all(1)
    lowest = torch.arange(mask.shape[1]) % pattern_of(case).group >= pattern_of(case).group - pattern_of(case).keep
    assert torch.equal(mask[rows], lowest.expand(int(rows.sum()), -1))


@pytest.mark.parametrize("case", parameters(DSNOT + BROKEN))
def test_the_statistics_equal_those_of_the_public_code(case):
    expected = arrays(case)
    tokens = tokens_per_sample(case)
    assert torch.equal(start_of(case)[0], ~expected["initial_mask"])
    assert_close(statistic_of(case["layer"], "input_mean") * tokens, expected["sum_metric_row"], rtol=1e-4, atol=1e-3)
    assert_close(statistic_of(case["layer"], "input_var_within"), expected["var"], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("case", parameters(DSNOT))
def test_dsnot_equals_the_public_code(case):
    expected = arrays(case)
    mask = refined(case, zero_variance="first")
    assert torch.equal(mask, ~expected["mask"])
    assert_close(error_of(case, mask), expected["final_error"].double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", parameters([c for c in DSNOT if c["layer"] != "e_64x128_dead"]))
def test_dsnot_by_default_equals_the_public_code_without_silent_channels(case):
    assert torch.equal(refined(case), ~arrays(case)["mask"])


@pytest.mark.parametrize("case", parameters([c for c in DSNOT if c["layer"] == "e_64x128_dead"]))
def test_dsnot_by_default_spends_no_swap_on_silent_channels(case):
    mask = refined(case)
    start, _ = start_of(case)
    silent = statistic_of(case["layer"], "input_norm") == 0
    assert not (mask & ~start)[:, silent].any()
    if case["params"].get("pow_of_var") != 0.0:  # without the division there is no 0/0
        assert (~arrays(case)["mask"] & ~start)[:, silent].any()


@pytest.mark.parametrize("case", parameters(BROKEN))
@pytest.mark.parametrize("zero_variance", ["never", "first"])
def test_rows_without_candidates_stop_and_keep_their_sparsity_unlike_in_the_public_code(case, zero_variance):
    mask = refined(case, zero_variance=zero_variance)
    start, _ = start_of(case)
    expected = ~arrays(case)["mask"]
    pattern = pattern_of(case)
    if isinstance(pattern, Pattern):
        assert satisfies(mask, pattern)
        broken = (expected.view(len(expected), -1, pattern.group).sum(2) != pattern.keep).any(1)
    else:
        assert torch.equal(mask.sum(1), start.sum(1))
        broken = expected.sum(1) != start.sum(1)
    assert broken.any() != case["checks"]["row_sparsity_kept"]
    assert error_of(case, mask).abs().sum() < 0.9 * error_of(case, start).abs().sum()
    if zero_variance == "first":
        # Rows with the right sparsity are equal, except for a few in which its two errors cancel.
        assert int((mask != expected).any(1)[~broken].sum()) <= (0 if case["layer"] == "f_64x128_zeros" else 5)


@needs_golden
def test_all_exact_cases_match():
    matched = {"sparsegpt": 0, "dsnot": 0}
    for case in SPARSEGPT:
        matched["sparsegpt"] += torch.equal(updated(case, original=True)[1], ~arrays(case)["mask"])
    for case in DSNOT:
        matched["dsnot"] += torch.equal(refined(case, zero_variance="first"), ~arrays(case)["mask"])
    sys.stdout.write(f"exact golden cases matched: sparsegpt {matched['sparsegpt']} of {len(SPARSEGPT)}, ")
    sys.stdout.write(f"dsnot {matched['dsnot']} of {len(DSNOT)}\n")
    assert matched == {"sparsegpt": len(SPARSEGPT), "dsnot": len(DSNOT)} == {"sparsegpt": 16, "dsnot": 42}
