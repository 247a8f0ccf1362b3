import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.method.step import Step
from eggs_ptp.score.symmetric import symmetric

WEIGHT = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 8)


@pytest.mark.parametrize("form", ["sum", "squared"])
def test_is_the_paper_formula(form):
    assert_close(symmetric(WEIGHT, form=form), torch.tensor(oracle.symmetric(WEIGHT.double().tolist(), form)))


def test_it_needs_no_data_and_is_itself_symmetric():
    assert not Step("symmetric").bind("score").statistics
    for form in ("sum", "squared"):
        assert_close(symmetric(WEIGHT.T, form=form), symmetric(WEIGHT, form=form).T)
