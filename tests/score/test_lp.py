import math

import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.score.lp import lp

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, N = torch.randn(5, 8, generator=GENERATOR), torch.rand(8, generator=GENERATOR)
WEIGHT[0, 3], WEIGHT[1, 3], WEIGHT[4, 6] = 0.0, 0.0, 0.0
REWEIGHTS = ["s1", "s2", "s3", "s4"]


@pytest.mark.parametrize("reweight", REWEIGHTS)
@pytest.mark.parametrize("p", [0, 0.1, 0.5, 1, 1.5, 2, 3, 4, 50, math.inf])
def test_is_the_paper_formula(p, reweight):
    for alpha in (0.0, 0.5, 1.0):
        expected = oracle.lp(WEIGHT.double().tolist(), N.double().tolist(), p, alpha, reweight)
        assert_close(lp(WEIGHT, N, p=p, alpha=alpha, reweight=reweight), torch.tensor(expected), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("reweight", REWEIGHTS)
@pytest.mark.parametrize("p", [0, 0.5, 1, 2, math.inf])
def test_zero_rows_columns_and_silent_channels_score_zero(p, reweight):
    weight, norm = WEIGHT.clone(), N.clone()
    weight[2], weight[:, 4], norm[6] = 0.0, 0.0, 0.0
    score = lp(weight, norm, p=p, reweight=reweight)
    expected = oracle.lp(weight.double().tolist(), norm.double().tolist(), p, 0.5, reweight)
    assert_close(score, torch.tensor(expected))
    assert torch.isfinite(score).all()
    assert (score[weight == 0] == 0).all()
    assert (score[:, 6] == 0).all()


@pytest.mark.parametrize("reweight", REWEIGHTS)
@pytest.mark.parametrize("p", [0.02, 400.0])
def test_norms_beyond_float32_do_not_change_the_ranking(p, reweight):
    """64^50 is 2e90, which float64 holds; 1e-3^400 underflows unless sums are scaled by their largest entry."""
    magnitude = torch.rand(48, 64, generator=GENERATOR, dtype=torch.float64) * torch.logspace(-3, 0, 48)[:, None]
    weight = magnitude.float()
    magnitude = weight.double()
    column, row = (
        magnitude.amax(dim, keepdim=True)
        * (magnitude / magnitude.amax(dim, keepdim=True)).pow(p).sum(dim, keepdim=True).pow(1 / p)
        for dim in (0, 1)
    )
    factor = {
        "s1": 1 / column + 1 / row,
        "s2": 1 / (column + row),
        "s3": column + row,
        "s4": 1 / (1 / column + 1 / row),
    }
    expected = magnitude * factor[reweight]
    score = lp(weight, torch.ones(64), p=p, alpha=0.0, reweight=reweight).double()
    assert torch.isfinite(score).all()
    factor_left_out = float(expected.max() / score.max())
    assert (factor_left_out == pytest.approx(1.0)) is (p > 1)
    assert_close(score * factor_left_out, expected, rtol=1e-5, atol=0.0)


def test_the_smallest_weights_neither_overflow_nor_vanish():
    for p in (0.5, 1, 2, 3, math.inf):
        assert (lp(torch.full((2, 2), 1e-42), torch.ones(2), p=p) > 0.1).all()


@pytest.mark.parametrize("p", [0, 0.5, 1, 2, 3, 4, math.inf])
def test_any_norm_is_accepted(p):
    assert Step("lp", {"p": p}).bind("score").options["p"] == p


@pytest.mark.parametrize(
    ("key", "value"),
    [("p", -1), ("p", math.nan), ("p", "infinite"), ("alpha", -0.5), ("alpha", math.inf), ("reweight", "s5")],
)
def test_other_values_are_refused(key, value):
    with pytest.raises(MethodError, match=rf"steps\.score\.{key}"):
        Step("lp", {key: value}).bind("score")
