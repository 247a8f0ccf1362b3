import torch
from oracles import scores as oracle
from torch.testing import assert_close

from eggs_ptp.score.ri import ri


def test_is_the_paper_formula():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert_close(ri(weight), torch.tensor(oracle.ri(weight.double().tolist())))


def test_columns_are_inputs_and_rows_are_outputs():
    """A column scaled by 100 keeps its column term; a transposed reading would keep the other one."""
    weight = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) + 0.1
    scaled = weight.clone()
    scaled[:, 2] *= 100
    column_term = ri(scaled) - scaled / scaled.sum(1, keepdim=True)
    assert_close(column_term, weight / weight.sum(0))


def test_zero_rows_and_columns_score_zero():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    weight[1], weight[:, 3] = 0.0, 0.0
    score = ri(weight)
    assert_close(score, torch.tensor(oracle.ri(weight.double().tolist())))
    assert (score[1] == 0).all()
    assert (score[:, 3] == 0).all()
    assert (score[weight != 0] > 0).all()


def test_the_smallest_weights_neither_overflow_nor_vanish():
    weight = torch.full((2, 2), 1e-42)  # its reciprocal is infinite in float32
    assert_close(ri(weight), torch.ones(2, 2))
    assert ri(weight.bfloat16()).dtype == torch.float32
