import torch
from oracles import scores as oracle
from torch.testing import assert_close

from eggs_ptp.score.magnitude import magnitude


def test_is_the_magnitude_of_the_weight():
    weight = torch.tensor([[-2.0, 0.5, 0.0], [1.0, -0.25, 3.0]])
    assert_close(magnitude(weight), torch.tensor(oracle.magnitude(weight.tolist())))
    assert magnitude(weight.bfloat16()).dtype == torch.float32
