import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import scores as oracle
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.stats import Moments
from eggs_ptp.score.wanda import wanda


def test_is_the_paper_formula():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 7, generator=generator), torch.randn(20, 7, generator=generator)
    moments = Moments(7, frozenset({"input_norm"}))
    moments.add(x)
    expected = oracle.wanda(weight.double().tolist(), oracle.input_norm(x.double().tolist()))
    assert_close(wanda(weight, moments.read("input_norm", "w")), torch.tensor(expected))


def test_half_precision_weights_score_in_float32():
    weight = torch.full((2, 2), 300.0, dtype=torch.float16)
    assert_close(wanda(weight, torch.full((2,), 300.0)), torch.full((2, 2), 90000.0))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Unstructured(0.6)], ids=str)
@given(seed=st.integers(0, 1000), power=st.integers(-10, 10))
@settings(max_examples=20, deadline=None)
def test_a_common_scale_of_the_inputs_changes_no_mask(pattern, seed, power):
    generator = torch.Generator().manual_seed(seed)
    weight, norm = torch.randn(6, 8, generator=generator), torch.rand(8, generator=generator)
    assert torch.equal(keep_top(wanda(weight, norm), pattern), keep_top(wanda(weight, norm * 2.0**power), pattern))


def test_a_silent_channel_is_pruned_first():
    mask = keep_top(wanda(torch.ones(3, 4), torch.tensor([1.0, 2.0, 0.0, 3.0])), Pattern(3, 4))
    assert mask.tolist() == [[True, True, False, True]] * 3
