import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import permutation as oracle
from oracles import selection

from eggs_ptp.core import permutation as permutations
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.step import Step
from eggs_ptp.permute import _assign
from eggs_ptp.permute.allocate import allocate

PATTERNS = [Pattern(1, 2), Pattern(1, 4), Pattern(2, 4), Pattern(3, 4), Pattern(3, 8), Pattern(4, 8), Pattern(7, 8)]


def scores(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Heavy-tailed scores with channel scales, like real ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator) ** 3 * torch.rand(columns, generator=generator).mul(3).exp()


def retained(score: torch.Tensor, permutation: torch.Tensor, pattern: Pattern) -> float:
    return oracle.retained_total(score.double().tolist(), permutation.tolist(), pattern.keep, pattern.group)


def test_by_hand():
    score = torch.tensor([[5.0, 1.0, 7.0, 3.0, 8.0, 2.0, 6.0, 4.0]])
    # Ascending: 1 5 3 7 0 6 2 4; segments (1 5) (3 7) (0 6) (2 4).
    assert allocate(score, Pattern(2, 4)).tolist() == [1, 7, 0, 4, 5, 3, 6, 2]
    assert allocate(score, Pattern(2, 4), allocation="round_robin").tolist() == [1, 3, 0, 2, 5, 7, 6, 4]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("allocation", ["serpentine", "round_robin"])
def test_is_the_allocation_of_the_sorted_channels(pattern, allocation):
    score = scores(0, 6, 5 * pattern.group)
    ascending = oracle.ascending(oracle.channel_sums(score.double().tolist()))
    expected = oracle.allocate(ascending, pattern.group, allocation == "serpentine")
    assert allocate(score, pattern, allocation=allocation).tolist() == expected


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
        expected = oracle.allocate(oracle.ascending(oracle.channel_sums(kept)), 4, serpentine=True)
        assert allocate(score, Pattern(2, 4), channel_score=channel_score, sparsity=sparsity).tolist() == expected


def test_equal_channels_are_allocated_by_index():
    assert allocate(torch.ones(3, 8), Pattern(2, 4), allocation="round_robin").tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def assert_each_position_is_assigned_best(score: torch.Tensor, pattern: Pattern, tolerance: float) -> None:
    current, refined = allocate(score, pattern), allocate(score, pattern, assign=True)
    for position in range(pattern.group):  # positions before it are final, those after it still as allocated
        best = oracle.best_assignment_of_segment(
            score.double().tolist(), current.tolist(), pattern.keep, pattern.group, position
        )
        current[position :: pattern.group] = refined[position :: pattern.group]
        assert retained(score, current, pattern) == pytest.approx(best, abs=tolerance)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_the_refinement_finds_the_best_assignment_of_each_position(pattern, seed):
    assert_each_position_is_assigned_best(scores(seed, 5, 4 * pattern.group), pattern, tolerance=1e-4)


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
    allocated, refined = allocate(score, pattern), allocate(score, pattern, assign=True, **options)
    permutations.check_permutation(refined, score.shape[1], "refined")
    assert retained(score, refined, pattern) >= retained(score, allocated, pattern) * (1 - 1e-12)


def test_the_refinement_gains_where_there_is_something_to_gain():
    score = scores(3, 32, 64)
    plain, refined = (
        retained(score, allocate(score, Pattern(2, 4), assign=assign), Pattern(2, 4)) for assign in (0, 1)
    )
    assert refined > plain * 1.001


def test_blocks_of_groups_are_refined_separately():
    score = scores(4, 16, 64)
    allocated, refined = allocate(score, Pattern(2, 4)), allocate(score, Pattern(2, 4), assign=True, blocks=4)
    for before, after in zip(allocated.view(4, -1), refined.view(4, -1), strict=True):
        assert sorted(before.tolist()) == sorted(after.tolist())
        alone = score[:, before].contiguous()
        assert retained(alone, permutations.identity(16), Pattern(2, 4)) < retained(score, after, Pattern(2, 4))
    assert torch.equal(allocate(score, Pattern(2, 4), assign=True, blocks=16), allocated)  # one group a block


@pytest.mark.parametrize("widest", [5, 8, 15])
def test_many_groups_are_refined_in_parts_spread_over_all_groups(widest):
    score = scores(4, 16, 64)  # 16 groups
    allocated, refined = allocate(score, Pattern(2, 4)), allocate(score, Pattern(2, 4), assign=True, widest=widest)
    parts = {5: 4, 8: 2, 15: 2}[widest]
    for first in range(parts):
        before, after = (permutation.view(-1, 4)[first::parts] for permutation in (allocated, refined))
        assert before.flatten().sort().values.equal(after.flatten().sort().values)
        alone = score[:, before.flatten()].contiguous()
        # A part by itself is refined as a matrix of its own would be: its channels, in their allocated positions.
        refined_part = _assign.refine_by_assignment(alone, permutations.identity(before.numel()), Pattern(2, 4), 1)
        assert torch.equal(before.flatten()[refined_part], after.flatten())
    assert torch.equal(allocate(score, Pattern(2, 4), assign=True, widest=1), allocated)  # one group a part
    unlimited = allocate(score, Pattern(2, 4), assign=True)
    assert torch.equal(allocate(score, Pattern(2, 4), assign=True, widest=16), unlimited)
    assert retained(score, allocated, Pattern(2, 4)) < retained(score, refined, Pattern(2, 4))
    assert not torch.equal(refined, unlimited)


def test_an_assignment_may_use_evenly_spaced_rows_only(monkeypatch):
    score = scores(5, 40, 64)
    assignment_inputs = []
    best = _assign._best_assignment
    monkeypatch.setattr(
        _assign, "_best_assignment", lambda *arguments: assignment_inputs.append(arguments) or best(*arguments)
    )
    sampled, complete = (allocate(score, Pattern(2, 4), assign=True, rows=rows) for rows in (8, None))
    assert [arguments[0].shape[1] for arguments in assignment_inputs] == [8] * 4 + [40] * 4
    for few, many in zip(assignment_inputs[0][:2], assignment_inputs[4][:2], strict=True):
        assert torch.equal(few, many[:, ::5])
    allocated = allocate(score, Pattern(2, 4))
    gains = [retained(score, permutation, Pattern(2, 4)) for permutation in (allocated, sampled, complete)]
    assert gains[0] < gains[1] < gains[2]


def test_an_assignment_of_equal_rows_needs_only_one():
    score = scores(6, 1, 32).expand(12, 32)
    refined_permutations = [allocate(score, Pattern(2, 4), assign=True, rows=rows) for rows in (1, 12)]
    assert retained(score, refined_permutations[0], Pattern(2, 4)) == pytest.approx(
        retained(score, refined_permutations[1], Pattern(2, 4))
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_everything_ties_the_refinement_moves_nothing(value):
    score = torch.full((5, 32), value)
    assert torch.equal(allocate(score, Pattern(2, 4), assign=True), allocate(score, Pattern(2, 4)))


@pytest.mark.parametrize("seed", range(8))
def test_an_outlier_does_not_drown_the_rest_of_its_channel(seed):
    """In float32 a sum that holds 1e8 cannot show the differences that the other rows make."""
    score = scores(seed, 8, 16)
    score[0, 7] = 1e8
    assert_each_position_is_assigned_best(score, Pattern(2, 4), tolerance=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_differences_too_small_for_the_sums_do_not_lower_the_retained_score(seed):
    score = torch.randint(0, 4, (64, 32), generator=torch.Generator().manual_seed(seed)) + 2.0**23
    allocated, refined = (allocate(score, Pattern(2, 4), assign=assign) for assign in (False, True))
    assert retained(score, refined, Pattern(2, 4)) >= retained(score, allocated, Pattern(2, 4))


def test_a_width_that_cannot_be_cut_and_an_unstructured_pattern_are_refused():
    with pytest.raises(PatternError, match="10 input features"):
        allocate(torch.rand(2, 10), Pattern(2, 4))
    assert Step("allocate").bind("permute").patterns is Pattern


@pytest.mark.parametrize(
    "options",
    [{"blocks": 0}, {"rows": 0}, {"widest": 0}, {"sparsity": 1.0}, {"allocation": "snake"}, {"channel_score": "max"}],
)
def test_other_options_are_refused(options):
    with pytest.raises(MethodError, match=r"steps\.permute"):
        Step("allocate", options).bind("permute")


def test_more_passes_never_lower_the_retained_score():
    score = torch.rand(40, 32, generator=torch.Generator().manual_seed(5))
    pattern = Pattern(2, 4)

    def retained(permutation):
        moved = score[:, permutation]
        return float((moved * keep_top(moved, pattern)).sum(dtype=torch.float64))

    once, thrice = (retained(allocate(score, pattern, assign=True, passes=passes)) for passes in (1, 3))
    assert retained(allocate(score, pattern)) < once < thrice
