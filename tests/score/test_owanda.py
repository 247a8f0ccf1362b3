import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.core.stats import Moments
from eggs_ptp.score.owanda import owanda

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(5, 8, generator=GENERATOR)


def test_is_the_paper_formula_with_the_norms_of_the_outputs():
    x = torch.randn(20, 8, generator=GENERATOR)
    outputs = x @ WEIGHT.T
    moments = Moments(5, frozenset({"output_norm"}))
    moments.add(outputs)
    y = [oracle.norm(oracle.column_of(outputs.double().tolist(), i), 2) / 20**0.5 for i in range(5)]
    expected = torch.tensor(oracle.owanda(WEIGHT.double().tolist(), y))
    assert_close(owanda(WEIGHT, moments.read("output_norm", "w")), expected)


def test_a_silent_output_scores_zero_and_half_precision_scores_in_float32():
    score = owanda(WEIGHT.half() * 1000, torch.tensor([1.0, 0.0, 1e4, 1e4, 1e4]))
    assert (score[1] == 0).all()
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()
