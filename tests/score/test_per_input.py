import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.score.per_input import per_input

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, N = torch.randn(5, 8, generator=GENERATOR), torch.rand(8, generator=GENERATOR)
WEIGHT[:, 4] = 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_is_the_column_term_of_ria(alpha):
    expected = oracle.per_input(WEIGHT.double().tolist(), N.double().tolist(), alpha)
    assert_close(per_input(WEIGHT, N, alpha=alpha), torch.tensor(expected))


def test_an_input_channel_of_any_scale_counts_alike():
    scaled = WEIGHT.clone()
    scaled[:, 2] *= 100
    assert_close(per_input(scaled, N), per_input(WEIGHT, N))
    assert (per_input(WEIGHT, N)[:, 4] == 0).all()
