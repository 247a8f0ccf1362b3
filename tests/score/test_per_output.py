import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.score.per_output import per_output

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, N = torch.randn(5, 8, generator=GENERATOR), torch.rand(8, generator=GENERATOR)
WEIGHT[2] = 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_is_the_row_term_of_ria(alpha):
    expected = oracle.per_output(WEIGHT.double().tolist(), N.double().tolist(), alpha)
    assert_close(per_output(WEIGHT, N, alpha=alpha), torch.tensor(expected))


def test_an_output_neuron_of_any_scale_counts_alike():
    scaled = WEIGHT.clone()
    scaled[1] *= 100
    assert_close(per_output(scaled, N), per_output(WEIGHT, N))
    assert (per_output(WEIGHT, N)[2] == 0).all()
