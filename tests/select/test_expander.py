import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import expander as oracle
from torch import Tensor

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.method.step import Step
from eggs_ptp.select.expander import expander

PATTERNS = [(2, 4), (4, 8), (1, 4), (3, 4), (2, 8), (1, 2), (3, 5), (1, 3), (5, 6)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"offset": "best"},
    {"diagonal": "staircase"},
    {"diagonal": "staircase", "offset": "best"},
    {"diagonal": "staircase", "block": "short"},
    {"diagonal": "staircase", "block": "short", "offset": "best"},
    {"diagonal": "forced"},
    {"diagonal": "block"},
    {"diagonal": "best"},
    {"rri": "weight"},
    {"rri": "score", "diagonal": "forced"},
    {"alpha": 0.0},
    {"alpha": 1.0, "diagonal": "best"},
]
CASES = [
    pytest.param(keep, group, options, id=f"{keep}:{group}-{'-'.join(map(str, options.values())) or 'paper'}")
    for keep, group in PATTERNS
    for options in OPTIONS
    if group % keep == 0 or not {"short", "block"} & set(map(str, options.values()))
]
KINDS = ("plain", "dead channels", "zero rows", "tied rows", "few levels", "all zero")
Layer = tuple[Tensor, Tensor, Tensor]  # score, weight, input norm


def layer(kind: str, out: int, width: int, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator)
    weight *= torch.exp(torch.randn(out, 1, generator=generator)) * torch.exp(torch.randn(width, generator=generator))
    norm = torch.rand(width, generator=generator) + 0.1
    if kind == "dead channels":
        norm[::3] = 0.0
    if kind == "zero rows":
        weight[1::3] = 0.0
    if kind == "tied rows":
        weight = weight[torch.arange(out) // 3]
    if kind == "few levels":
        weight = (weight * 2).round().clamp(-3, 3)
    if kind == "all zero":
        weight = torch.zeros_like(weight)
    score = weight.abs() * norm if kind != "few levels" else weight.abs()
    return score, weight, norm


def as_lists(data: Layer) -> tuple[list[list[float]], list[list[float]], list[float]]:
    score, weight, norm = data
    return score.double().tolist(), weight.double().tolist(), norm.double().tolist()


def assert_invariants(mask: Tensor, score: Tensor, pattern: Pattern, B: int, height: int) -> None:
    out = len(score)
    assert mask.dtype == torch.bool
    assert mask.shape == score.shape
    assert satisfies(mask, pattern)
    assert int(mask.sum(0).min()) >= min(B, out // pattern.group)
    changed = (mask != keep_top(score, pattern)).unflatten(1, (-1, pattern.group)).any(2).sum(0)  # (groups,)
    assert int(changed.max()) <= min(B, out // height) * height


def test_five_rows_by_hand() -> None:
    """Row 2 matters most (all of it lies in group 0), then row 0; rows 1, 3, 4 tie and are sorted by index."""
    score = torch.tensor([[9.0, 8, 7, 6]] * 5)
    weight = torch.tensor(
        [[2.0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 1, 1]]
    )
    result = expander(
        torch.cat([score, torch.zeros(5, 4)], 1),
        torch.cat([weight, torch.zeros(5, 2)], 1),
        Pattern(2, 4),
        torch.ones(8),
        B=7,
    )
    # ascending RRI in group 0: rows 1, 3, 4 (1/3 each), 0 (1/2), 2 (1, left over)
    assert result.value[:, :4].tolist() == [
        [True, False, False, True],
        [True, True, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]
    # group 1: rows 2 (0), 0 (1/2), 1, 3, then 4 (2/3 each, left over); equal scores keep the higher columns
    assert result.value[:, 4:].tolist() == [
        [False, True, True, False],
        [False, False, True, True],
        [True, True, False, False],
        [True, False, False, True],
        [False, False, True, True],
    ]
    assert result.diagnostics == {"B": 1, "diagonal_rows": 4, "score_lost": pytest.approx((0 + 2 + 4 + 2) / 85)}


@pytest.mark.parametrize(("keep", "group", "options"), CASES)
def test_it_is_the_literal_algorithm(keep: int, group: int, options: dict[str, Any]) -> None:
    height = group // keep if options.get("block") == "short" else group
    for kind in KINDS[:-1]:
        data = layer(kind, 3 * group + 2, 2 * group, seed=group)
        for B in (0, 1, 2, 99):
            if options.get("diagonal") == "best" and (group > 4 or B > 2):
                continue  # the oracle lists every block
            result = expander(*data[:2], Pattern(keep, group), data[2], B=B, **options)
            expected = oracle.with_blocks(*as_lists(data), keep, group, B, **options)
            used = min(B, len(data[0]) // height)
            assert result.diagnostics["B"] == used
            assert result.diagnostics["diagonal_rows"] == used * height
            if options.get("diagonal") != "best" or kind == "plain":
                assert result.value.tolist() == expected, kind
            score = as_lists(data)[0]
            none = oracle.retained(score, oracle.by_group(score, keep, group))
            cost = none - oracle.retained(score, expected)
            assert result.diagnostics["score_lost"] == pytest.approx(cost / none, rel=1e-9, abs=1e-14), kind


@pytest.mark.parametrize(("keep", "group", "options"), CASES)
def test_invariants(keep: int, group: int, options: dict[str, Any]) -> None:
    pattern = Pattern(keep, group)
    height = group // keep if options.get("block") == "short" else group
    for kind, out in itertools.product(KINDS, (max(1, height - 1), 3 * group + 1)):
        score, weight, norm = layer(kind, out, 3 * group)
        for B in (0, 1, 10**6, "auto"):
            result = expander(score, weight, pattern, norm, B=B, **options)
            used = result.diagnostics["B"]
            assert isinstance(used, int)
            assert used == min(B, out // height) if B != "auto" else used <= out // height
            assert_invariants(result.value, score, pattern, used, height)
            if B == 0 or out < height:
                assert torch.equal(result.value, keep_top(score, pattern))
                assert result.diagnostics == {"B": 0, "diagonal_rows": 0, "score_lost": 0.0}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 6).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m + 1))),
    st.integers(1, 30),
    st.integers(1, 3),
    st.integers(0, 9),
    st.sampled_from(OPTIONS),
    st.sampled_from(KINDS),
)
def test_any_pattern(seed, pattern, out, groups, B, options, kind) -> None:
    keep, group = pattern
    data = layer(kind, out, groups * group, seed)
    try:
        result = expander(*data[:2], Pattern(keep, group), data[2], B=B, **options)
    except PatternError:
        assert group % keep
        assert {"short", "block"} & set(map(str, options.values()))
        return
    height = group // keep if options.get("block") == "short" else group
    assert_invariants(result.value, data[0], Pattern(keep, group), B, height)
    if options.get("diagonal") != "best":
        assert result.value.tolist() == oracle.with_blocks(*as_lists(data), keep, group, B, **options)


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("options", [{}, {"diagonal": "best"}, {"diagonal": "forced"}, {"diagonal": "staircase"}])
@pytest.mark.parametrize("loss", [0.0, 1e-4, 1e-3, 0.02, 1.0])
def test_auto_takes_the_most_blocks_within_the_limit(keep, group, options, loss) -> None:
    score, weight, norm = layer("plain", 30 * group + 1, 2 * group, seed=3)
    pattern = Pattern(keep, group)
    auto = expander(score, weight, pattern, norm, B="auto", loss=loss, **options)
    used = auto.diagnostics["B"]
    assert isinstance(used, int)
    fixed = expander(score, weight, pattern, norm, B=used, **options)
    assert torch.equal(auto.value, fixed.value)
    assert auto.diagnostics == fixed.diagnostics | {
        "score_lost": pytest.approx(fixed.diagnostics["score_lost"], rel=1e-12)
    }
    assert float(auto.diagnostics["score_lost"]) <= loss
    if loss == 1.0:
        assert used == 30
    else:
        assert used < 30
        assert float(expander(score, weight, pattern, norm, B=used + 1, **options).diagnostics["score_lost"]) > loss


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (3, 4), (2, 5)])
@pytest.mark.parametrize("diagonal", ["circulant", "forced", "best"])
@pytest.mark.parametrize("kind", ["plain", "zero rows", "few levels"])
def test_auto_is_the_literal_search(keep: int, group: int, diagonal: str, kind: str) -> None:
    data = layer(kind, 7 * group, 2 * group, seed=1)
    for loss in (0.003, 0.05):
        result = expander(*data[:2], Pattern(keep, group), data[2], B="auto", diagonal=diagonal, loss=loss)
        if group <= 4 or diagonal != "best":
            assert result.diagnostics["B"] == oracle.auto_blocks(*as_lists(data), keep, group, loss, diagonal=diagonal)


def test_auto_depends_neither_on_its_stride_nor_on_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    score, weight, norm = layer("plain", 400, 16)
    runs = []
    for stride, elements in ((4, 1 << 21), (1, 1 << 21), (100, 1 << 21), (7, 1)):
        monkeypatch.setattr("eggs_ptp.select.expander._FIRST_SPAN", stride)
        monkeypatch.setattr("eggs_ptp.core.connection_floor._ELEMENTS", elements)
        runs += [expander(score, weight, Pattern(2, 4), norm, B=B, diagonal="best", loss=0.004) for B in ("auto", 50)]
    for run, first in zip(runs, runs[:2] * 4, strict=True):
        assert torch.equal(run.value, first.value)
        assert run.diagnostics["B"] == first.diagnostics["B"]
    assert 0 < runs[0].diagnostics["B"] < 100


@pytest.mark.parametrize("kind", ["plain", "tied rows", "zero rows"])
def test_importance_does_not_depend_on_how_rows_are_split(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    score, weight, norm = layer(kind, 67, 16)
    for rri in ("activation", "weight", "score"):
        monkeypatch.undo()
        unsplit = expander(score, weight, Pattern(2, 4), norm, B=3, rri=rri)
        monkeypatch.setattr("eggs_ptp.core.rows._ELEMENTS", 16 * 5)
        monkeypatch.setattr("eggs_ptp.select.expander._SCORES_PER_BATCH", 16 * 5)
        split = expander(score, weight, Pattern(2, 4), norm, B=3, rri=rri)
        assert torch.equal(unsplit.value, split.value)
        assert unsplit.diagnostics["score_lost"] == pytest.approx(split.diagnostics["score_lost"], rel=1e-12)


def test_the_readings_of_rri_order_rows_differently() -> None:
    weight = torch.tensor([[1.0, 0, 3, 0], [0, 1, 0, 2]])
    norm = torch.tensor([1.0, 100.0, 1.0, 1.0])
    score = torch.tensor([[2.0, 9, 0, 0], [9, 1, 0, 0]])
    first = {}
    for rri in ("weight", "activation", "score"):
        mask = expander(score, weight, Pattern(1, 2), norm, B=1, rri=rri).value[:, :2]
        assert mask.sum(0).tolist() == [1, 1]  # circulant: the first row keeps column 0, the second column 1
        first[rri] = mask[:, 0].nonzero().item()
    # weight: 1/4 < 1/3; activation: 1/4 < 10/3; score: 11 > 10
    assert first == {"weight": 0, "activation": 0, "score": 1}
    heavy = torch.tensor([400.0, 1.0, 1.0, 1.0])
    assert expander(score, weight, Pattern(1, 2), heavy, B=1).value[1, 0]  # activation: 20/4 > 1/3
    assert expander(score, weight, Pattern(1, 2), heavy, B=1, alpha=0.0).value[0, 0]


def test_inputs_may_be_strided_and_are_left_alone() -> None:
    score, weight, norm = layer("plain", 24, 16)
    expected = expander(score, weight, Pattern(4, 8), norm, B=2, diagonal="best")
    copies = score.clone(), weight.clone()
    strided = expander(score.T.contiguous().T, weight.T.contiguous().T, Pattern(4, 8), norm, B=2, diagonal="best")
    assert torch.equal(strided.value, expected.value)
    assert torch.equal(score, copies[0])
    assert torch.equal(weight, copies[1])


def test_score_lost_of_a_matrix_without_scores_is_nothing() -> None:
    score, weight, norm = layer("all zero", 12, 8)
    for B in (2, "auto"):
        result = expander(score, weight, Pattern(2, 4), norm, B=B)
        assert result.diagnostics["score_lost"] == 0.0
        assert result.diagnostics["B"] == (2 if B == 2 else 3)


def test_the_step_says_what_it_needs() -> None:
    bound = Step("expander").bind("select")
    assert bound.data == ("score", "weight", "pattern", "input_norm")
    assert bound.statistics == {"input_norm"}
    assert bound.patterns is Pattern
    assert bound.options["B"] == 5
    assert bound.options["diagonal"] == "circulant"
    with pytest.raises(PatternError, match="N:M"):
        METHODS["eggs"].bind().check_pattern(Unstructured(0.5), "model.layers.0.mlp.up_proj")


@pytest.mark.parametrize(
    "options", [{"B": 0}, {"B": 20}, {"B": "auto", "loss": 0.01}, {"offset": "best"}, {"offset": 0}]
)
def test_the_step_takes_its_options(options: dict[str, Any]) -> None:
    assert options.items() <= dict(Step("expander", options).bind("select").options).items()


@pytest.mark.parametrize(
    "options",
    [
        {"B": -1},
        {"B": "most"},
        {"diagonal": "band"},
        {"block": "tall"},
        {"offset": 1},
        {"rri": "ria"},
        {"alpha": -0.5},
        {"loss": 2.0},
    ],
)
def test_the_step_refuses_impossible_values(options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=f"steps.select.{next(iter(options))}"):
        Step("expander", options).bind("select")


@pytest.mark.parametrize(
    ("pattern", "options", "error"),
    [
        ((2, 4), {"block": "short"}, MethodError),
        ((2, 4), {"diagonal": "best", "offset": "best"}, MethodError),
        ((3, 4), {"diagonal": "block"}, PatternError),
        ((3, 4), {"diagonal": "staircase", "block": "short"}, PatternError),
    ],
)
def test_undefined_readings_are_refused_even_without_blocks(pattern, options, error) -> None:
    score, weight, norm = layer("plain", 8, 8)
    with pytest.raises(error, match=r"^(steps\.select\.|diagonal 'block')"):
        expander(score, weight, Pattern(*pattern), norm, B=0, **options)


def test_blocks_cost_less_the_freer_they_are() -> None:
    score, weight, norm = layer("plain", 256, 64)
    cost = {}
    for name, options in {"circulant": {}, "rotated": {"offset": "best"}, "best": {"diagonal": "best"}}.items():
        cost[name] = float(expander(score, weight, Pattern(2, 4), norm, B=20, **options).diagnostics["score_lost"])
    assert 0 < cost["best"] < cost["rotated"] < cost["circulant"]
    assert math.isfinite(cost["circulant"])
