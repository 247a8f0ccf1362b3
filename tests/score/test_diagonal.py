import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.score.diagonal import diagonal
from eggs_ptp.score.ri import ri

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(5, 8, generator=GENERATOR)
WEIGHT[2], WEIGHT[:, 4] = 0.0, 0.0
N, Y = torch.rand(8, generator=GENERATOR), torch.rand(5, generator=GENERATOR)
N[1], Y[3] = 0.0, 0.0


@pytest.mark.parametrize(("alpha", "output_alpha"), [(1.0, 1.0), (0.5, 0.5), (0.5, 0.0), (0.0, 2.0)])
def test_is_the_paper_formula(alpha, output_alpha):
    arguments = (WEIGHT.double().tolist(), N.double().tolist(), Y.double().tolist(), alpha, output_alpha)
    score = diagonal(WEIGHT, N, Y, alpha=alpha, output_alpha=output_alpha)
    assert_close(score, torch.tensor(oracle.diagonal(*arguments)))


def test_without_exponents_it_is_relative_importance():
    assert_close(diagonal(WEIGHT, N, Y, alpha=0.0, output_alpha=0.0), ri(WEIGHT))


@pytest.mark.parametrize("key", ["alpha", "output_alpha"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_impossible_exponents_are_refused(key, value):
    with pytest.raises(MethodError, match=rf"steps\.score\.{key}"):
        Step("diagonal", {key: value}).bind("score")
