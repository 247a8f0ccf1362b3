import math

import pytest
import torch
from oracles.graph import conductance, least_neighbours, singular_values

from eggs_ptp.core.degrees import Degrees, degrees
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.research.graph import spectrum as module
from eggs_ptp.research.graph.spectrum import (
    cheeger_bound,
    ramanujan_bound,
    second_singular_value,
    spectrum,
    tanner_bound,
)


def scores(seed, rows, columns):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (7, 5), (24, 24), (40, 96), (96, 40)])
@pytest.mark.parametrize("density", [0.15, 0.5, 0.9])
def test_the_second_singular_value_is_that_of_a_dense_svd(rows, columns, density):
    for seed in range(3):
        mask = scores(seed, rows, columns) < density
        mask[0] |= ~mask.any()
        exact = singular_values(mask)
        assert exact[0] == pytest.approx(1.0, abs=1e-12)
        assert second_singular_value(mask) == pytest.approx(exact[1], abs=1e-6)


def test_dead_inputs_and_outputs_are_left_out():
    mask = scores(0, 30, 20) < 0.5
    sigma2 = second_singular_value(mask)
    wider = torch.zeros(33, 25, dtype=torch.bool)
    wider[:30, 5:] = mask
    assert second_singular_value(wider) == pytest.approx(sigma2, abs=1e-9)


def test_a_disconnected_graph_has_one_and_a_complete_graph_has_zero():
    mask = torch.zeros(20, 12, dtype=torch.bool)
    mask[:9, :7] = scores(1, 9, 7) < 0.6
    mask[9:, 7:] = scores(2, 11, 5) < 0.6
    assert second_singular_value(mask) == pytest.approx(1.0, abs=1e-6)
    assert spectrum(torch.block_diag(torch.ones(3, 2), torch.ones(2, 2)).bool()).cheeger == pytest.approx(0.0)
    assert second_singular_value(torch.ones(6, 4, dtype=torch.bool)) == 0.0
    assert second_singular_value(torch.tensor([[True, False, True]])) == 0.0


def test_a_mask_without_connections_has_no_spectrum():
    assert spectrum(torch.zeros(4, 4, dtype=torch.bool)) is None


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (768, 256)])
def test_random_masks_have_the_sigma2_of_their_edge(keep, group, rows, columns):
    structured = spectrum(keep_top(scores(5, rows, columns), Pattern(keep, group)), group)
    assert structured.sigma2 == pytest.approx(structured.pattern_edge, rel=0.03)
    free = spectrum(scores(6, rows, columns) < keep / group)
    assert free.pattern_edge is None
    assert free.sigma2 == pytest.approx(free.random_edge, rel=0.03)
    assert structured.pattern_edge > 1.02 * structured.random_edge


def test_the_ramanujan_bound():
    """2 sqrt(d - 1) / d if d = d', which is 1 for cycles."""
    assert ramanujan_bound(3, 3) == pytest.approx(2 * math.sqrt(2) / 3)
    assert ramanujan_bound(2, 2) == 1.0
    assert ramanujan_bound(4, 2) == pytest.approx((math.sqrt(3) + 1) / math.sqrt(8))


@pytest.mark.parametrize("seed", range(4))
def test_cheegers_bound_holds_for_every_set(seed):
    mask = scores(seed, 5, 6) < 0.6
    live = mask[mask.any(1)][:, mask.any(0)]
    assert 0.0 < cheeger_bound(second_singular_value(live)) <= conductance(live)


@pytest.mark.parametrize("seed", range(6))
def test_tanners_bound_holds_for_every_set(seed):
    mask = scores(seed, 12, 10) < 0.3 + 0.1 * seed
    mask = mask[mask.any(1)][:, mask.any(0)]
    sigma = second_singular_value(mask)
    inputs, outputs = degrees(mask)
    for size in range(1, len(inputs) + 1):
        assert 1 <= tanner_bound(sigma, Degrees(inputs, outputs), size) <= least_neighbours(mask, size)
    for size in range(1, len(outputs) + 1):
        assert 1 <= tanner_bound(sigma, Degrees(outputs, inputs), size) <= least_neighbours(mask.T, size)


def test_the_bound_is_tanners_for_a_biregular_graph():
    """The circulant of 3 bands on 12: d = d' = 3; the formula with n = 12."""
    mask = sum(torch.eye(12).roll(shift, 1) for shift in (0, 1, 4)).bool()
    sigma = float(singular_values(mask)[1])
    for size in range(1, 13):
        formula = size * 9 / (9 * sigma**2 + (9 - 9 * sigma**2) * size / 12)
        assert tanner_bound(sigma, degrees(mask), size) == math.ceil(formula - 1e-6)


def test_shares_are_of_one_per_cent_rounded_up():
    mask = keep_top(scores(7, 150, 240), Pattern(2, 4))
    bounds = spectrum(mask)
    inputs, outputs = degrees(mask)
    assert bounds.tanner_outputs == tanner_bound(bounds.sigma2, Degrees(inputs, outputs), 3) / 150
    assert bounds.tanner_inputs == tanner_bound(bounds.sigma2, Degrees(outputs, inputs), 2) / 240
    assert bounds.tanner_outputs > 0.03


def test_a_solver_that_does_not_converge_is_reported(monkeypatch):
    from scipy.sparse.linalg import ArpackNoConvergence

    from eggs_ptp.errors import NumericsError

    def never(*_args, **_kwargs):
        raise ArpackNoConvergence("no", [], [])

    monkeypatch.setattr(module, "svds", never)
    with pytest.raises(NumericsError, match="second singular value of 8 x 8"):
        spectrum(scores(0, 8, 8) < 0.5)
