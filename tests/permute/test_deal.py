import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import permutation as oracle
from oracles import selection

from eggs_ptp.core import order as orders
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.step import Step
from eggs_ptp.permute import _assign
from eggs_ptp.permute.deal import deal

PATTERNS = [Pattern(1, 2), Pattern(1, 4), Pattern(2, 4), Pattern(3, 4), Pattern(3, 8), Pattern(4, 8), Pattern(7, 8)]


def scores(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Heavy-tailed, with channel scales, as real scores are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator) ** 3 * torch.rand(columns, generator=generator).mul(3).exp()


def retained(score: torch.Tensor, order: torch.Tensor, pattern: Pattern) -> float:
    return oracle.retained_total(score.double().tolist(), order.tolist(), pattern.keep, pattern.group)


def test_by_hand():
    score = torch.tensor([[5.0, 1.0, 7.0, 3.0, 8.0, 2.0, 6.0, 4.0]])
    # Ascending: 1 5 3 7 0 6 2 4; segments (1 5) (3 7) (0 6) (2 4).
    assert deal(score, Pattern(2, 4)).tolist() == [1, 7, 0, 4, 5, 3, 6, 2]
    assert deal(score, Pattern(2, 4), dealing="round_robin").tolist() == [1, 3, 0, 2, 5, 7, 6, 4]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dealing", ["serpentine", "round_robin"])
def test_is_the_deal_of_the_sorted_channels(pattern, dealing):
    score = scores(0, 6, 5 * pattern.group)
    ascending = oracle.ascending(oracle.channel_sums(score.double().tolist()))
    want = oracle.deal(ascending, pattern.group, dealing == "serpentine")
    assert deal(score, pattern, dealing=dealing).tolist() == want


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_channels_may_be_sorted_by_what_an_unstructured_mask_retains(sparsity, seed):
    score = scores(seed, 6, 16)
    rows = score.double().tolist()
    masks = {
        "retained_layer": selection.by_layer_threshold(rows, sparsity),
        "retained_row": selection.by_row(rows, int(16 * sparsity)),
    }
    for channel_score, mask in masks.items():
        kept = [[s if k else 0.0 for s, k in zip(*lines, strict=True)] for lines in zip(rows, mask, strict=True)]
        want = oracle.deal(oracle.ascending(oracle.channel_sums(kept)), 4, serpentine=True)
        assert deal(score, Pattern(2, 4), channel_score=channel_score, sparsity=sparsity).tolist() == want


def test_equal_channels_are_dealt_in_their_own_order():
    assert deal(torch.ones(3, 8), Pattern(2, 4), dealing="round_robin").tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def assert_each_place_is_assigned_best(score: torch.Tensor, pattern: Pattern, tolerance: float) -> None:
    state, refined = deal(score, pattern), deal(score, pattern, assign=True)
    for place in range(pattern.group):  # places before this one are final, those after it still as dealt
        best = oracle.best_of_place(score.double().tolist(), state.tolist(), pattern.keep, pattern.group, place)
        state[place :: pattern.group] = refined[place :: pattern.group]
        assert retained(score, state, pattern) == pytest.approx(best, abs=tolerance)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_the_refinement_finds_the_best_assignment_of_each_place(pattern, seed):
    assert_each_place_is_assigned_best(scores(seed, 5, 4 * pattern.group), pattern, tolerance=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(1, 9),
    rows=st.none() | st.integers(1, 9),
    widest=st.none() | st.integers(1, 9),
)
@settings(max_examples=8, deadline=None)
def test_the_refinement_never_lowers_the_retained_score(pattern, seed, blocks, rows, widest):
    score = scores(seed, 8, 8 * pattern.group)
    options = {"blocks": blocks, "rows": rows, "widest": widest}
    dealt, refined = deal(score, pattern), deal(score, pattern, assign=True, **options)
    orders.check(refined, score.shape[1], "refined")
    assert retained(score, refined, pattern) >= retained(score, dealt, pattern) * (1 - 1e-12)


def test_the_refinement_gains_where_there_is_something_to_gain():
    score = scores(3, 32, 64)
    plain, refined = (retained(score, deal(score, Pattern(2, 4), assign=assign), Pattern(2, 4)) for assign in (0, 1))
    assert refined > plain * 1.001


def test_blocks_of_groups_are_refined_each_for_itself():
    score = scores(4, 16, 64)
    dealt, refined = deal(score, Pattern(2, 4)), deal(score, Pattern(2, 4), assign=True, blocks=4)
    for before, after in zip(dealt.view(4, -1), refined.view(4, -1), strict=True):
        assert sorted(before.tolist()) == sorted(after.tolist())
        alone = score[:, before].contiguous()
        assert retained(alone, orders.identity(16), Pattern(2, 4)) < retained(score, after, Pattern(2, 4))
    assert torch.equal(deal(score, Pattern(2, 4), assign=True, blocks=16), dealt)  # one group a block


@pytest.mark.parametrize("widest", [5, 8, 15])
def test_many_groups_are_refined_in_parts_that_are_spread_over_all(widest):
    score = scores(4, 16, 64)  # 16 groups
    dealt, refined = deal(score, Pattern(2, 4)), deal(score, Pattern(2, 4), assign=True, widest=widest)
    parts = {5: 4, 8: 2, 15: 2}[widest]
    for first in range(parts):
        before, after = (order.view(-1, 4)[first::parts] for order in (dealt, refined))
        assert before.flatten().sort().values.equal(after.flatten().sort().values)
        alone = score[:, before.flatten()].contiguous()
        # A part by itself is refined as the whole would be: its channels, in the places they were dealt to.
        found = _assign.refine(alone, orders.identity(before.numel()), Pattern(2, 4), 1)
        assert torch.equal(before.flatten()[found], after.flatten())
    assert torch.equal(deal(score, Pattern(2, 4), assign=True, widest=1), dealt)  # one group a part
    whole = deal(score, Pattern(2, 4), assign=True)
    assert torch.equal(deal(score, Pattern(2, 4), assign=True, widest=16), whole)
    assert retained(score, dealt, Pattern(2, 4)) < retained(score, refined, Pattern(2, 4))
    assert not torch.equal(refined, whole)


def test_an_assignment_may_look_at_evenly_spaced_rows_only(monkeypatch):
    score = scores(5, 40, 64)
    looked_at = []
    best = _assign._best_assignment
    monkeypatch.setattr(_assign, "_best_assignment", lambda *given: looked_at.append(given) or best(*given))
    some, whole = (deal(score, Pattern(2, 4), assign=True, rows=rows) for rows in (8, None))
    assert [given[0].shape[1] for given in looked_at] == [8] * 4 + [40] * 4
    for few, all_rows in zip(looked_at[0][:2], looked_at[4][:2], strict=True):
        assert torch.equal(few, all_rows[:, ::5])
    dealt = deal(score, Pattern(2, 4))
    gains = [retained(score, order, Pattern(2, 4)) for order in (dealt, some, whole)]
    assert gains[0] < gains[1] < gains[2]


def test_an_assignment_of_rows_that_all_say_the_same_needs_only_one():
    score = scores(6, 1, 32).expand(12, 32)
    found = [deal(score, Pattern(2, 4), assign=True, rows=rows) for rows in (1, 12)]
    assert retained(score, found[0], Pattern(2, 4)) == pytest.approx(retained(score, found[1], Pattern(2, 4)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_everything_ties_the_refinement_moves_nothing(value):
    score = torch.full((5, 32), value)
    assert torch.equal(deal(score, Pattern(2, 4), assign=True), deal(score, Pattern(2, 4)))


@pytest.mark.parametrize("seed", range(8))
def test_an_outlier_does_not_drown_the_rest_of_its_channel(seed):
    """In float32 a sum that holds 1e8 cannot show the differences that the other rows make."""
    score = scores(seed, 8, 16)
    score[0, 7] = 1e8
    assert_each_place_is_assigned_best(score, Pattern(2, 4), tolerance=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_differences_too_small_for_the_sums_do_not_lower_the_retained_score(seed):
    score = torch.randint(0, 4, (64, 32), generator=torch.Generator().manual_seed(seed)) + 2.0**23
    dealt, refined = (deal(score, Pattern(2, 4), assign=assign) for assign in (False, True))
    assert retained(score, refined, Pattern(2, 4)) >= retained(score, dealt, Pattern(2, 4))


def test_a_width_that_cannot_be_cut_and_an_unstructured_pattern_are_refused():
    with pytest.raises(PatternError, match="10 input features"):
        deal(torch.rand(2, 10), Pattern(2, 4))
    assert Step("deal").bind("permute").patterns is Pattern


@pytest.mark.parametrize(
    "options",
    [{"blocks": 0}, {"rows": 0}, {"widest": 0}, {"sparsity": 1.0}, {"dealing": "snake"}, {"channel_score": "max"}],
)
def test_other_options_are_refused(options):
    with pytest.raises(MethodError, match=r"steps\.permute"):
        Step("deal", options).bind("permute")


def test_more_passes_never_lower_the_retained_score():
    score = torch.rand(40, 32, generator=torch.Generator().manual_seed(5))
    pattern = Pattern(2, 4)

    def retained(order):
        moved = score[:, order]
        return float((moved * keep_top(moved, pattern)).sum(dtype=torch.float64))

    once, thrice = (retained(deal(score, pattern, assign=True, passes=passes)) for passes in (1, 3))
    assert retained(deal(score, pattern)) < once < thrice
