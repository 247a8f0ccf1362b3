import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import selection

from eggs_ptp.core.mask import apply_mask, count_nonzeros, count_violations, density, keep_top, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import PatternError

PATTERNS = [Pattern(1, 2), Pattern(1, 4), Pattern(2, 4), Pattern(3, 4), Pattern(4, 8), Pattern(5, 16), Pattern(9, 20)]


def tied_scores(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Few distinct values, so that most groups have ties."""
    return torch.randint(0, 4, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_groups_keep_what_the_oracle_keeps(pattern, seed):
    score = tied_scores(seed, 5, 3 * pattern.group)
    mask = keep_top(score, pattern)
    assert mask.tolist() == selection.by_group(score.tolist(), pattern.keep, pattern.group)
    assert satisfies(mask, pattern)


@pytest.mark.parametrize("sparsity", [0.01, 0.25, 0.5, 0.6, 0.99])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_rows_and_layers_prune_the_exact_count_as_the_oracle_does(sparsity, seed):
    score = tied_scores(seed, 4, 10)
    pattern = Unstructured(sparsity)
    by_row = keep_top(score, pattern, group="row")
    by_layer = keep_top(score, pattern, group="layer")
    assert by_row.tolist() == selection.by_row(score.tolist(), round(10 * sparsity))
    assert by_layer.tolist() == selection.by_layer(score.tolist(), round(40 * sparsity))


@pytest.mark.parametrize("sparsity", [0.01, 0.29, 0.5, 0.6, 0.99])
def test_original_counts_truncate_rows_and_prune_one_too_many_of_a_layer(sparsity):
    score = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))
    pattern = Unstructured(sparsity)
    by_row = keep_top(score, pattern, group="row", count="original")
    by_layer = keep_top(score, pattern, group="layer", count="original")
    assert by_row.tolist() == selection.by_row(score.tolist(), int(10 * sparsity))
    assert by_layer.tolist() == selection.by_layer_threshold(score.tolist(), sparsity)
    assert int((~by_layer).sum()) == int(40 * sparsity) + 1


@pytest.mark.parametrize("count", ["exact", "original"])
@pytest.mark.parametrize("sparsity", [0.01, 0.29, 0.5, 0.6, 0.99])
@pytest.mark.parametrize("block_size", [1, 4, 5, 10, 128])
def test_blocks_of_columns_are_pruned_as_separate_layers(block_size, sparsity, count):
    score = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 11.0)
    mask = keep_top(score, Unstructured(sparsity), group="block", block_size=block_size, count=count)
    for start in range(0, 10, block_size):
        block = score[:, start : start + block_size].tolist()
        weights = 6 * len(block[0])
        if count == "exact":
            expected = selection.by_layer(block, round(weights * sparsity))
        else:
            expected = selection.by_layer_threshold(block, sparsity)
            assert sum(not keep for row in expected for keep in row) == int(weights * sparsity) + 1
        assert mask[:, start : start + block_size].tolist() == expected


def test_the_count_does_not_suffer_from_binary_fractions():
    score = torch.rand(3, 100)
    assert int(100 * 0.29) == 28
    assert ((~keep_top(score, Unstructured(0.29))).sum(1) == 29).all()
    assert ((~keep_top(score, Unstructured(0.29), count="original")).sum(1) == 28).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_of_equal_scores_the_lower_columns_are_pruned(pattern):
    mask = keep_top(torch.ones(2, pattern.group), pattern)
    assert mask.tolist() == [[False] * (pattern.group - pattern.keep) + [True] * pattern.keep] * 2


def test_of_equal_scores_in_a_layer_the_earlier_rows_are_pruned():
    mask = keep_top(torch.zeros(2, 3), Unstructured(0.5), group="layer")
    assert mask.tolist() == [[False] * 3, [True] * 3]


def test_memory_layout_does_not_matter():
    score = tied_scores(0, 40, 8)
    for pattern in (Pattern(2, 4), Pattern(9, 20), Unstructured(0.3)):
        assert torch.equal(keep_top(score.T, pattern), keep_top(score.T.contiguous(), pattern))


def test_a_width_that_cannot_be_cut_is_refused():
    with pytest.raises(PatternError, match="10 input features"):
        keep_top(torch.rand(2, 10), Pattern(2, 4))
    with pytest.raises(PatternError, match="10 input features"):
        satisfies(torch.ones(2, 10, dtype=torch.bool), Pattern(2, 4))


def test_satisfies_requires_exactly_n_and_violations_are_groups_with_more():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0]]).bool()
    pattern = Pattern(2, 4)
    assert not satisfies(mask, pattern)
    assert count_violations(mask, pattern) == 1
    assert count_violations(mask[:1], pattern) == 0
    assert satisfies(mask[:1, :4], pattern)
    assert density(mask) == 8 / 16


def test_pruned_weights_are_positive_zero_and_kept_ones_keep_their_bits():
    weight = torch.tensor([[-1.5, -0.0, 3e-45, torch.inf], [torch.nan, -2.0, 0.0, -torch.inf]])
    mask = torch.tensor([[True, True, True, False], [False, False, True, True]])
    masked = apply_mask(weight, mask)
    assert torch.equal(masked.view(torch.int32), torch.where(mask, weight, 0.0).view(torch.int32))
    assert torch.equal(apply_mask(weight.T, mask.T), masked.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_of_either_sign_are_not_counted(dtype):
    weight = torch.tensor([[0.0, -0.0, 1.0], [torch.nan, 6e-8, -torch.inf]]).to(dtype)
    assert count_nonzeros(weight) == int(weight.count_nonzero()) == 4
