import torch

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.unscored import rank_unscored

WEIGHT = torch.tensor([[5.0, -4.0, 0.1, 0.2, 3.0, 2.0, 9.0, -8.0], [0.1, 0.0, -7.0, 6.0, 1.0, 1.0, 0.0, 0.0]])


def test_scores_without_ties_at_zero_are_returned_as_they_are():
    score = WEIGHT.abs()
    assert rank_unscored(score, WEIGHT) is score
    negative = -score * torch.tensor([0.0] + [1.0] * 7)
    assert rank_unscored(negative, WEIGHT) is negative


def test_weights_of_dead_inputs_go_by_magnitude_below_every_score():
    score = WEIGHT.abs() * torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    ranked = rank_unscored(score, WEIGHT)
    assert torch.equal(ranked[score > 0], score[score > 0])
    assert float(ranked[score == 0].max()) < float(score[score > 0].min())
    assert (ranked[WEIGHT == 0] == 0).all()
    expected = torch.tensor([[1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 0, 0]]).bool()
    expected[0, 4:] = torch.tensor([True, True, False, False])  # inputs that fire come first
    assert torch.equal(keep_top(ranked, Pattern(2, 4)), expected)


def test_dead_outputs_and_matrices_without_any_score_go_by_magnitude():
    score = WEIGHT.abs() * torch.tensor([[0.0], [1.0]])
    expected = keep_top(WEIGHT.abs(), Pattern(2, 4))
    assert torch.equal(keep_top(rank_unscored(score, WEIGHT), Pattern(2, 4)), expected)
    assert torch.equal(keep_top(rank_unscored(torch.zeros_like(score), WEIGHT), Pattern(2, 4)), expected)


def test_an_almost_zero_score_leaves_room_for_the_ranks():
    score = torch.tensor([[1e-44, 1.0, 0.0, 0.0]])
    ranked = rank_unscored(score, torch.tensor([[1e-44, 1.0, 1.0, 2.0]]))
    assert 0 < float(ranked[0, 2]) < float(ranked[0, 3]) <= 1e-12
