import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import scores as oracle
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.score.ri import ri
from eggs_ptp.score.ria import ria

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, NORM = torch.randn(5, 8, generator=GENERATOR), torch.rand(8, generator=GENERATOR) + 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.7, 1.0, 2.0])
def test_is_the_paper_formula(alpha):
    expected = oracle.ria(WEIGHT.double().tolist(), NORM.double().tolist(), alpha)
    assert_close(ria(WEIGHT, NORM, alpha=alpha), torch.tensor(expected))


def test_alpha_zero_is_ri_even_where_a_channel_is_silent():
    assert torch.equal(ria(WEIGHT, NORM * torch.tensor([0.0] + [1.0] * 7), alpha=0.0), ri(WEIGHT))


def test_zero_rows_columns_and_silent_channels_score_zero():
    weight, norm = WEIGHT.clone(), NORM.clone()
    weight[2], weight[:, 4], norm[6] = 0.0, 0.0, 0.0
    score = ria(weight, norm)
    assert_close(score, torch.tensor(oracle.ria(weight.double().tolist(), norm.double().tolist(), 0.5)))
    assert (score[2] == 0).all()
    assert (score[:, [4, 6]] == 0).all()


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Unstructured(0.6)], ids=str)
@given(seed=st.integers(0, 1000), power=st.integers(-5, 5))
@settings(max_examples=20, deadline=None)
def test_a_common_scale_of_the_inputs_changes_no_mask(pattern, seed, power):
    generator = torch.Generator().manual_seed(seed)
    weight, norm = torch.randn(6, 8, generator=generator), torch.rand(8, generator=generator)
    plain, scaled = ria(weight, norm), ria(weight, norm * 4.0**power)
    assert torch.equal(keep_top(plain, pattern, group="layer"), keep_top(scaled, pattern, group="layer"))


@given(st.permutations(range(8)), st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_permuting_channels_and_rows_permutes_the_score(columns, rows):
    moved = ria(WEIGHT[rows][:, columns], NORM[columns])
    assert_close(moved, ria(WEIGHT, NORM)[rows][:, columns], rtol=1e-5, atol=0.0)


def test_a_negative_alpha_is_refused():
    with pytest.raises(MethodError, match="alpha"):
        Step("ria", {"alpha": -1}).bind("score")
