import math

import pytest
import torch
from oracles import symwanda as oracle
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.seed import generator_for
from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import Step
from eggs_ptp.score._sample import draw
from eggs_ptp.score.ria import ria
from eggs_ptp.score.stochria import stochria

SEEDED = torch.Generator().manual_seed(0)
WEIGHT, N = torch.randn(20, 30, generator=SEEDED), torch.rand(30, generator=SEEDED) + 0.1
DRAWS = ["each", "shared"]
SAMPLINGS = ["uniform", "magnitude", "activation"]


def seeded(seed: int) -> torch.Generator:
    return generator_for(seed, "model.layers.0.mlp.up_proj")


def sampled_indices(times: torch.Tensor, rows: int) -> list[list[int]]:
    """The indices that each row sampled, repeats included; a single sample serves all rows."""
    lists = [[index for index, count in enumerate(row) for _ in range(int(count))] for row in times.int().tolist()]
    return lists * rows if len(lists) == 1 else lists


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("mode", DRAWS)
def test_is_the_paper_formula_over_the_samples(mode, replacement, rescale, alpha):
    score = stochria(WEIGHT, N, seeded(1), alpha=alpha, beta=0.25, draw=mode, replacement=replacement, rescale=rescale)
    generator = seeded(1)
    rows, columns = (1, 1) if mode == "shared" else (20, 30)
    in_row = sampled_indices(draw((rows, 30), 5, generator, replacement=replacement), 20)
    in_column = sampled_indices(draw((columns, 20), 5, generator, replacement=replacement), 30)
    expected = oracle.stochria(WEIGHT.double().tolist(), N.double().tolist(), alpha, in_row, in_column, rescale)
    assert_close(score, torch.tensor(expected), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("mode", DRAWS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("replacement", [False, True])
def test_the_generator_alone_decides(mode, sampling, replacement):
    first, same, other = (
        stochria(WEIGHT, N, seeded(seed), draw=mode, sampling=sampling, replacement=replacement) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(keep_top(first, Pattern(4, 10)), keep_top(other, Pattern(4, 10)))
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("mode", DRAWS)
def test_sums_estimate_the_full_ones_when_rescaled(mode):
    """1 / score is linear in the sum where the other sum is known: sample the rows alone, of one output."""
    row = WEIGHT[:1].abs()
    totals = [
        1 / (stochria(row, N, seeded(seed), alpha=0.0, beta=0.3, tau="own", draw=mode, rescale=True) / row - 1 / row)
        for seed in range(2000)
    ]
    assert_close(torch.stack(totals).mean(0), row.sum().expand(1, 30), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("mode", DRAWS)
def test_the_mean_over_seeds_is_near_ria_on_a_square(mode):
    square, n = WEIGHT[:, :20], N[:20]
    mean = torch.stack([stochria(square, n, seeded(s), beta=0.5, draw=mode, rescale=True) for s in range(400)]).mean(0)
    assert_close(mean, ria(square, n), rtol=0.12, atol=0.0)


def test_a_sample_of_zeros_gives_a_zero_term():
    weight = torch.zeros(8, 8)
    weight[0] = 1.0
    weight[3, 2] = 2.0
    score = stochria(weight, torch.ones(8), seeded(0), beta=0.2)  # one entry each
    assert torch.isfinite(score).all()
    assert (score[0, [0, 1, 3, 4, 5, 6, 7]] >= 1.0).all()  # whatever row 0 draws is 1
    assert set(score[0].tolist()) <= {1.0, 1.5, 2.0}
    assert set(score[3].tolist()) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(
    ("options", "in_row", "in_column"),
    [
        ({"beta": 0.3}, 6, 6),
        ({"beta": 0.3, "tau": "own"}, 9, 6),
        ({"beta": 0.5, "column_beta": 0.1}, 10, 2),
        ({"beta": 0.5, "column_beta": 0.1, "tau": "own"}, 15, 2),
        ({"beta": 0.29}, 5, 5),
        ({"beta": 0.29, "rounding": "nearest"}, 6, 6),
        ({"beta": 0.26, "rounding": "up"}, 6, 6),
        ({"beta": 0.001}, 1, 1),
        ({"beta": 1, "tau": "own"}, 30, 20),
    ],
)
@pytest.mark.parametrize("mode", DRAWS)
def test_tau_counts_the_entries_of_each_sum(options, in_row, in_column, mode):
    """With equal weights each sum equals its tau."""
    score = stochria(torch.ones(20, 30), N, seeded(0), alpha=0.0, draw=mode, **options)
    assert_close(score, torch.full((20, 30), 1 / in_row + 1 / in_column))


def test_tau_does_not_suffer_from_binary_fractions():
    assert int(100 * 0.29) == 28
    assert_close(stochria(torch.ones(100, 100), torch.ones(100), seeded(0), beta=0.29), torch.full((100, 100), 2 / 29))


def test_each_row_and_column_draws_for_itself_unless_shared():
    ones = torch.ones(20, 30)
    ones[:, 7] = 100.0  # every row sum tells whether it drew column 7
    rows = {mode: stochria(ones, N, seeded(3), alpha=0.0, beta=0.5, draw=mode)[:, 0] for mode in DRAWS}
    assert len(set(rows["each"].tolist())) > 1
    assert len(set(rows["shared"].tolist())) == 1


@pytest.mark.parametrize("count", [1, 3, 6, 11, 12])
def test_all_sets_are_equally_likely(count):
    times = draw((20000, 12), count, torch.Generator().manual_seed(5))
    assert times.dtype == torch.bool
    assert (times.sum(1) == count).all()
    single = times.double().mean(0)
    pairs = (times.double().T @ times.double() / 20000).masked_select(~torch.eye(12, dtype=torch.bool))
    assert_close(single, torch.full((12,), count / 12, dtype=torch.double), atol=0.02, rtol=0.0)
    expected = count * (count - 1) / (12 * 11)
    assert_close(pairs, torch.full((132,), expected, dtype=torch.double), atol=0.02, rtol=0.0)


@pytest.mark.parametrize("replacement", [False, True])
def test_importance_is_the_probability_of_being_sampled(replacement):
    importance = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    times = draw((20000, 5), 1, torch.Generator().manual_seed(5), importance.expand(20000, 5), replacement)
    assert_close(times.float().mean(0), importance / 10, atol=0.015, rtol=0.0)


@pytest.mark.parametrize("replacement", [False, True])
def test_zero_importance_samples_uniformly(replacement):
    times = draw((20000, 5), 2, torch.Generator().manual_seed(5), torch.zeros(20000, 5), replacement)
    assert (times.sum(1) == 2).all()
    assert_close(times.float().mean(0), torch.full((5,), 0.4), atol=0.02, rtol=0.0)


def test_replacement_draws_entries_again():
    times = draw((50, 6), 6, torch.Generator().manual_seed(5), replacement=True)
    assert (times.sum(1) == 6).all()
    assert times.max() > 1


@pytest.mark.parametrize("mode", DRAWS)
def test_importance_favours_the_large(mode):
    """A row whose largest entry is nearly its whole sum almost always samples it."""
    weight = torch.rand(20, 30, generator=SEEDED) * 1e-3
    weight[:, 5] = 1.0
    rows_with_peak = {}
    for sampling in SAMPLINGS:
        norm = torch.ones(30)
        score = stochria(weight, norm, seeded(4), alpha=0.0, beta=0.1, draw=mode, sampling=sampling)
        norm[5] = 1e-9
        silent = stochria(weight, norm, seeded(4), alpha=0.0, beta=0.1, draw=mode, sampling=sampling)
        # The largest entry scores at least 1, and hundreds if its row's sample misses it.
        rows_with_peak[sampling] = [int((each[:, 5] < 100).sum()) for each in (score, silent)]
    assert rows_with_peak["uniform"][0] == rows_with_peak["uniform"][1] < 12
    assert rows_with_peak["magnitude"] == [20, 20]
    assert rows_with_peak["activation"][0] == 20
    assert rows_with_peak["activation"][1] < 12


def test_samples_depend_on_the_name_and_it_requests_a_generator():
    bound = Step("stochria").bind("score")
    assert bound.data == ("weight", "input_norm", "generator")
    assert bound.statistics == {"input_norm"}
    assert not torch.equal(stochria(WEIGHT, N, generator_for(0, "a")), stochria(WEIGHT, N, generator_for(0, "b")))


@pytest.mark.parametrize("key", ["beta", "column_beta"])
@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan, math.inf, "all", True])
def test_impossible_shares_are_refused(key, value):
    with pytest.raises(MethodError, match=rf"steps\.score\.{key}"):
        Step("stochria", {key: value}).bind("score")


@pytest.mark.parametrize(
    ("key", "value"),
    [("alpha", -1), ("tau", "mine"), ("rounding", "off"), ("draw", "row"), ("sampling", "score"), ("rescale", "yes")],
)
def test_other_values_are_refused(key, value):
    with pytest.raises(MethodError, match=rf"steps\.score\.{key}"):
        Step("stochria", {key: value}).bind("score")
