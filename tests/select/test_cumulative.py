import pytest
import torch
from golden import arrays, cases, layer, parameters
from oracles.scores import Matrix

from eggs_ptp.core.pattern import Unstructured
from eggs_ptp.core.stats import Moments
from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.score.wanda import wanda
from eggs_ptp.select.cumulative import cumulative

SCORE = torch.rand(12, 40, generator=torch.Generator().manual_seed(0)).pow(3) + 1e-3
CASES = [case for case in cases("wanda", exact=True) if case["case"].startswith("variant")]


def pruned_at(score: Matrix, fraction: float, with_ties: bool = False) -> list[list[bool]]:
    """True = pruned: each row's lowest scores, lower column first, up to this fraction of the row's sum."""
    result = []
    for row in score:
        columns = sorted(range(len(row)), key=lambda j: (row[j], j))
        running, pruned = 0.0, []
        for j in columns:
            running += row[j]
            if running <= fraction * sum(row[k] for k in columns):
                pruned.append(j)
        largest = max((row[j] for j in pruned), default=None)
        result.append([j in pruned or (with_ties and row[j] == largest) for j in range(len(row))])
    return result


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("case", parameters(CASES))
def test_the_mask_and_the_fraction_are_those_of_the_public_code(case, original):
    weight, calib = layer(case["layer"])
    moments = Moments(weight.shape[1], frozenset({"input_norm"}))
    moments.add(calib)
    result = cumulative(
        wanda(weight, moments.read("input_norm", case["layer"])), Unstructured(case["params"]["sparsity"])
    )
    expected = arrays(case)
    assert torch.equal(result.value, ~expected["mask"])
    assert result.diagnostics["fraction"] == float(expected["alpha"])
    assert result.diagnostics["sparsity"] == pytest.approx(case["checks"]["pruned_fraction"], abs=1e-12)


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7])
def test_each_row_loses_the_same_share_of_its_score(sparsity):
    mask, diagnostics = cumulative(SCORE, Unstructured(sparsity), tolerance=0.01)
    assert (~mask).tolist() == pruned_at(SCORE.double().tolist(), diagnostics["fraction"])
    assert diagnostics["sparsity"] == int((~mask).sum()) / mask.numel()
    assert diagnostics["sparsity"] == pytest.approx(sparsity, abs=0.01)
    lost_share = (SCORE * ~mask).sum(1) / SCORE.sum(1)
    assert (lost_share <= diagnostics["fraction"] + 1e-6).all()
    assert len(set((~mask).sum(1).tolist())) > 1


def test_the_sparsity_is_met_where_the_public_code_gives_up():
    """The lowest tenth of these scores is less than a thousandth of their sum."""
    reached, original = (
        cumulative(SCORE, Unstructured(0.1), tolerance=0.01, original=flag).diagnostics for flag in (False, True)
    )
    assert reached["sparsity"] == pytest.approx(0.1, abs=0.01)
    assert reached["fraction"] < 0.001
    assert abs(original["sparsity"] - 0.1) > 0.01


def test_a_row_in_which_nothing_is_small_enough_keeps_all():
    score = torch.cat([torch.ones(1, 40), SCORE.sort(1).values.pow(4)])
    mask, diagnostics = cumulative(score, Unstructured(0.4), tolerance=0.02)
    assert diagnostics["fraction"] < 1 / 40
    assert mask[0].all()


@pytest.mark.parametrize("original", [False, True])
def test_ties_are_pruned_lower_column_first_or_all_together_as_in_the_public_code(original):
    score = SCORE.clone()
    score[3] = 0.0
    score[5, ::2] = 0.25
    score[7] = 1.0
    mask, diagnostics = cumulative(score, Unstructured(0.5), tolerance=0.03, original=original)
    assert (~mask).tolist() == pruned_at(score.double().tolist(), diagnostics["fraction"], original)
    assert diagnostics["sparsity"] == int((~mask).sum()) / mask.numel()
    assert not mask[3].any()
    if original:
        assert not mask[7].any()
    else:
        assert mask[7].tolist() == sorted(mask[7].tolist())
        assert mask[7, -1]


def test_a_sparsity_beyond_the_limit_is_refused_naming_the_option():
    score = torch.ones(4, 100)  # a fraction is a share of the weights
    with pytest.raises(MethodError, match=r"steps\.select\.limit.*0\.9"):
        cumulative(score, Unstructured(0.9))
    result = cumulative(score, Unstructured(0.9), limit=1.0, tolerance=0.005)
    assert result.diagnostics["sparsity"] == pytest.approx(0.9, abs=0.005)
    assert result.diagnostics["fraction"] > 0.8
    assert cumulative(SCORE, Unstructured(0.995), original=True).diagnostics["sparsity"] < 0.994


def test_negative_scores_are_refused():
    with pytest.raises(MethodError, match="negative"):
        cumulative(SCORE - 0.5, Unstructured(0.5))


@pytest.mark.parametrize(("key", "value"), [("tolerance", 0), ("limit", 0), ("limit", 1.5), ("alpha", 0.4)])
def test_impossible_options_are_refused(key, value):
    with pytest.raises(MethodError, match=rf"steps\.select\.{key}"):
        Step("cumulative", {key: value}).bind("select")
