import pytest
import torch
from layers import layer
from oracles import sparsegpt as oracle
from torch.testing import assert_close

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.method.catalogue import find_method
from eggs_ptp.method.step import Step
from eggs_ptp.score.obs import obs
from eggs_ptp.update.sparsegpt import sparsegpt


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_it_is_the_saliency_of_the_paper_before_any_update(damping):
    weight, gram = layer(5, 12)
    hessian = oracle.damped(gram.double().numpy(), damping)
    expected = oracle.saliency(weight.double().numpy(), hessian, range(12))
    assert_close(obs(weight, gram, damping=damping), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


def test_in_the_first_group_it_ranks_as_sparsegpt_does():
    weight, gram = layer(50, 4)
    score = obs(weight, gram)
    _, mask = sparsegpt(weight, None, Pattern(2, 4), gram)
    assert torch.equal(score >= score.topk(2).values[:, 1:], mask)


def test_channels_that_are_always_zero_score_zero_and_do_not_change_the_others():
    weight, gram = layer(3, 8)
    gram[[2, 5]], gram[:, [2, 5]] = 0.0, 0.0
    score = obs(weight, gram, damping=0.0)
    active = torch.tensor([0, 1, 3, 4, 6, 7])
    assert (score[:, [2, 5]] == 0).all()
    assert_close(score[:, active], obs(weight[:, active], gram[active][:, active], damping=0.0))


def test_too_little_damping_is_refused_naming_the_option():
    with pytest.raises(NumericsError, match=r"steps\.score\.damping"):
        obs(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(MethodError, match=r"steps\.score\.damping"):
        Step("obs", {"damping": -1}).bind("score")


def test_it_can_be_added_to_a_method_and_requests_the_gram():
    assert Step("obs").bind("score").statistics == {"gram"}
    method = find_method("wanda+obs+dsnot")
    assert [step.name for step in method.steps.values()] == ["obs", "top", "dsnot"]
