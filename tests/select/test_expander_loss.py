import itertools
from itertools import pairwise

import pytest
import torch
from oracles import least_squares as oracle
from torch import Tensor

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.method.catalogue import find_method
from eggs_ptp.score.ria import ria
from eggs_ptp.select.expander import expander
from eggs_ptp.select.expander_loss import expander_loss

TWO_OF_FOUR = Pattern(2, 4)


def layer(out: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score, weight, input norm, gram."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    weight, gram = torch.randn(out, width, generator=generator), x.T @ x / len(x)
    norm = gram.diagonal().sqrt()
    return ria(weight, norm), weight, norm, gram


def layer_loss(weight: Tensor, mask: Tensor, gram: Tensor) -> float:
    return float(oracle.losses(weight, weight * mask, oracle.damped(gram, 0.01)).sum())


@pytest.mark.parametrize("seed", range(4))
def test_auto_takes_the_number_of_blocks_of_least_loss(seed):
    score, weight, norm, gram = layer(40, 32, seed=seed)
    mask, diagnostics = expander_loss(score, weight, TWO_OF_FOUR, norm, gram)
    masks = {B: expander_loss(score, weight, TWO_OF_FOUR, norm, gram, B=B).value for B in (0, 1, 2, 5, 10)}
    losses = {B: layer_loss(weight, candidate, gram) for B, candidate in masks.items()}
    best = next(B for B, more in pairwise(losses) if losses[more] >= losses[B])
    assert diagnostics["B"] == best
    assert torch.equal(mask, masks[best])
    total = layer_loss(weight, torch.zeros_like(mask), gram)
    assert diagnostics["layer_loss"] == pytest.approx(losses[best] / total, rel=1e-4)
    assert diagnostics["layer_loss_B0"] == pytest.approx(losses[0] / total, rel=1e-4)


@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, Pattern(1, 4), Pattern(3, 4), Pattern(4, 8)], ids=str)
@pytest.mark.parametrize("B", [0, 1, 3, 100])
def test_invariants(pattern, B):
    score, weight, norm, gram = layer(26, 16)
    mask, diagnostics = expander_loss(score, weight, pattern, norm, gram, B=B)
    assert diagnostics["B"] == min(B, 26 // pattern.group)
    assert satisfies(mask, pattern)
    assert int(mask.sum(0).min()) >= diagnostics["B"] * pattern.keep
    if not B:
        assert torch.equal(mask, keep_top(score, pattern))


def test_diagonals_that_depend_on_no_score_are_those_of_expander():
    score, weight, norm, gram = layer(24, 16)
    for options in ({"diagonal": "circulant"}, {"diagonal": "staircase", "block": "short"}, {"diagonal": "block"}):
        mask = expander_loss(score, weight, TWO_OF_FOUR, norm, gram, B=2, **options).value
        assert torch.equal(mask, expander(score, weight, TWO_OF_FOUR, norm, B=2, **options).value)


def test_a_block_keeps_the_mask_of_least_output_error():
    """One block, one group: with independent inputs none of the 90 doubly regular blocks loses less."""
    score, weight, norm, _ = layer(4, 4, seed=5)
    gram = norm.square().diag()
    mask, _ = expander_loss(score, weight, TWO_OF_FOUR, norm, gram, B=1, damping=0.0)
    value = weight.square() * norm.square()
    blocks = [torch.stack(rows) for rows in itertools.product(oracle.group_masks(2, 4, 1), repeat=4)]
    regular = [block for block in blocks if (block.sum(0) == 2).all()]
    assert len(regular) == 90
    assert float((value * mask).sum()) == pytest.approx(max(float((value * block).sum()) for block in regular))


def test_only_methods_that_choose_it_collect_a_gram():
    assert "gram" not in find_method("eggs").bind().statistics
    assert "gram" in find_method("eggs+expander_loss").bind().statistics


def test_undefined_readings_are_refused():
    score, weight, norm, gram = layer(8, 8)
    with pytest.raises(PatternError, match="'block' lines up squares"):
        expander_loss(score, weight, Pattern(3, 4), norm, gram, diagonal="block")
