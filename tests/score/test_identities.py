"""Scores that must agree with one another: equal numbers, and equal masks for the same comparison group."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.score.diagonal import diagonal
from eggs_ptp.score.lp import lp
from eggs_ptp.score.magnitude import magnitude
from eggs_ptp.score.owanda import owanda
from eggs_ptp.score.per_input import per_input
from eggs_ptp.score.per_output import per_output
from eggs_ptp.score.ri import ri
from eggs_ptp.score.ria import ria
from eggs_ptp.score.stochria import stochria
from eggs_ptp.score.symmetric import symmetric
from eggs_ptp.score.symwanda import symwanda
from eggs_ptp.score.wanda import wanda

SEEDED = torch.Generator().manual_seed(0)
OUTS, INS = 24, 40
WEIGHT = torch.randn(OUTS, INS, generator=SEEDED) * torch.rand(OUTS, 1, generator=SEEDED).add(0.1)
N, Y = torch.rand(INS, generator=SEEDED) + 0.1, torch.rand(OUTS, generator=SEEDED) + 0.1
ALPHAS = [0.0, 0.5, 1.0, 2.0]


def assert_same_masks(first: Tensor, second: Tensor, groups: tuple[str, ...] = ("row", "layer", "block")) -> None:
    """Both scores give the same masks, for every comparison group."""
    for pattern in (Pattern(2, 4), Pattern(4, 8), Unstructured(0.5), Unstructured(0.7)):
        for group in groups:
            masks = [keep_top(score, pattern, group=group, block_size=16) for score in (first, second)]
            assert torch.equal(*masks), (pattern, group)


def test_ria_without_activations_is_ri():
    assert torch.equal(ria(WEIGHT, N, alpha=0.0), ri(WEIGHT))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_lp_with_p_one_is_ria_and_s1_is_the_default(alpha):
    assert torch.equal(lp(WEIGHT, N, p=1.0, alpha=alpha), ria(WEIGHT, N, alpha=alpha))
    assert torch.equal(lp(WEIGHT, N, alpha=alpha, reweight="s1"), lp(WEIGHT, N, alpha=alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_lp_with_p_zero_is_wanda_with_that_alpha_where_no_weight_is_zero(alpha):
    score = lp(WEIGHT, N, p=0.0, alpha=alpha)
    assert_close(score, wanda(WEIGHT, N.pow(alpha)) * (1 / OUTS + 1 / INS))
    assert_same_masks(score, wanda(WEIGHT, N.pow(alpha)))
    holed = WEIGHT.clone()
    holed[3, :20] = 0.0
    assert not torch.equal(lp(holed, N, p=0.0, alpha=alpha)[3, 20:], score[3, 20:])


def test_symwanda_without_outputs_is_wanda_and_without_inputs_owanda():
    for form in ("sum", "squared"):
        assert_close(symwanda(WEIGHT, N, torch.zeros(OUTS), form=form), wanda(WEIGHT, N))
        assert_close(symwanda(WEIGHT, torch.zeros(INS), Y, form=form), owanda(WEIGHT, Y))
        assert_same_masks(symwanda(WEIGHT, N, torch.zeros(OUTS), form=form), wanda(WEIGHT, N))
        assert_same_masks(symwanda(WEIGHT, torch.zeros(INS), Y, form=form), owanda(WEIGHT, Y))


def test_owanda_within_rows_is_magnitude_and_over_the_layer_it_is_not():
    assert_same_masks(owanda(WEIGHT, Y), magnitude(WEIGHT), groups=("row",))
    for group in ("layer", "block"):
        masks = [keep_top(s, Unstructured(0.5), group=group, block_size=16) for s in (owanda(WEIGHT, Y), WEIGHT.abs())]
        assert not torch.equal(*masks)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_terms_of_ria_add_up_to_it(alpha):
    both = per_output(WEIGHT, N, alpha=alpha) + per_input(WEIGHT, N, alpha=alpha)
    assert_close(both, ria(WEIGHT, N, alpha=alpha))
    assert_same_masks(both, ria(WEIGHT, N, alpha=alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_per_output_within_rows_is_wanda_with_that_alpha(alpha):
    assert_same_masks(per_output(WEIGHT, N, alpha=alpha), wanda(WEIGHT, N.pow(alpha)), groups=("row",))


@pytest.mark.parametrize("draw", ["each", "shared"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_stochria_with_beta_one_is_ria_on_a_square(draw, alpha):
    square, norm = WEIGHT[:, :OUTS], N[:OUTS]
    for sampling in ("uniform", "magnitude", "activation"):
        score = stochria(
            square, norm, torch.Generator().manual_seed(1), alpha=alpha, beta=1, draw=draw, sampling=sampling
        )
        assert_close(score, ria(square, norm, alpha=alpha))
        assert_same_masks(score, ria(square, norm, alpha=alpha))


@pytest.mark.parametrize("draw", ["each", "shared"])
def test_stochria_with_beta_one_is_ria_on_a_rectangle_only_when_each_side_has_its_own_tau(draw):
    own, common = (
        stochria(WEIGHT, N, torch.Generator().manual_seed(1), beta=1, draw=draw, tau=tau) for tau in ("own", "common")
    )
    assert_close(own, ria(WEIGHT, N))
    assert_same_masks(own, ria(WEIGHT, N))
    assert not torch.allclose(common, ria(WEIGHT, N))


def test_symmetric_is_the_third_reweighting_by_the_two_norm():
    assert_close(symmetric(WEIGHT), lp(WEIGHT, N, p=2.0, alpha=0.0, reweight="s3"))


def test_diagonal_without_activations_is_ri_and_with_equal_ones_a_multiple():
    assert_close(diagonal(WEIGHT, N, Y, alpha=0.0, output_alpha=0.0), ri(WEIGHT))
    assert_close(diagonal(WEIGHT, torch.full((INS,), 3.0), torch.full((OUTS,), 3.0)), 3 * ri(WEIGHT))
