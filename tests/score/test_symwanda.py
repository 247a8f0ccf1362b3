import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.score.symwanda import symwanda

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(5, 8, generator=GENERATOR)
N, Y = torch.rand(8, generator=GENERATOR), torch.rand(5, generator=GENERATOR)


@pytest.mark.parametrize("form", ["sum", "squared"])
def test_is_the_paper_formula(form):
    expected = oracle.symwanda(WEIGHT.double().tolist(), N.double().tolist(), Y.double().tolist(), form)
    assert_close(symwanda(WEIGHT, N, Y, form=form), torch.tensor(expected))


def test_large_norms_are_squared_without_overflow():
    score = symwanda(torch.ones(1, 1), torch.tensor([3e20]), torch.tensor([4e20]), form="squared")
    assert_close(score, torch.tensor([[5e20]]))


def test_it_requests_both_norms_and_refuses_another_form():
    assert Step("symwanda").bind("score").statistics == {"input_norm", "output_norm"}
    with pytest.raises(MethodError, match=r"steps\.score\.form"):
        Step("symwanda", {"form": "product"}).bind("score")
