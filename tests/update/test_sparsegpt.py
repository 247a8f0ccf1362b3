import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer
from oracles import sparsegpt as oracle
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import MethodError, NumericsError, PatternError
from eggs_ptp.method.step import Step
from eggs_ptp.update.sparsegpt import sparsegpt

PATTERNS = [(2, 4), (1, 4), (3, 4), (4, 8), (2, 5), (1, 2), (9, 20)]  # the last is too wide to compare all pairs


def doubles(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


def loss(weight: Tensor, updated: Tensor, gram: Tensor) -> float:
    change = (weight - updated).double()
    return float((change @ gram.double() * change).sum())


@pytest.mark.parametrize(("kept", "group"), PATTERNS)
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_groups_are_chosen_and_compensated_as_in_the_paper(kept, group, damping):
    weight, gram = layer(6, 2 * group + group * (group < 9))
    updated, mask = sparsegpt(weight, None, Pattern(kept, group), gram, damping=damping)
    expected, expected_mask = oracle.by_group(*doubles(weight), kept, group, *doubles(gram), damping)
    assert torch.equal(mask, torch.from_numpy(expected_mask))
    assert_close(updated, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 5, 8, 12, 50])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_blocks_are_chosen_and_compensated_as_in_the_paper(block, sparsity):
    weight, gram = layer(5, 21)
    updated, mask = sparsegpt(weight, None, Unstructured(sparsity), gram, block_size=block)
    ends = [min(stop, 21) for stop in range(block, 21 + block, block)]
    counts = np.diff([round(round(5 * stop * sparsity, 9)) for stop in [0, *ends]]).tolist()
    expected, expected_mask = oracle.by_block(*doubles(weight), counts, block, *doubles(gram), 0.01)
    assert torch.equal(mask, torch.from_numpy(expected_mask))
    assert_close(updated, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8)], ids=str)
def test_in_float64_it_is_the_paper_to_the_last_digits(pattern):
    weight, gram = layer(40, 48)
    updated, mask = sparsegpt(weight, None, pattern, gram.double())
    expected, expected_mask = oracle.by_group(*doubles(weight), pattern.keep, pattern.group, *doubles(gram), 0.01)
    assert torch.equal(mask, torch.from_numpy(expected_mask))
    assert_close(updated, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [1, 3, 8, 9, 37])
def test_a_given_mask_is_kept_and_compensated(width):
    weight, gram = layer(4, width)
    given_mask = torch.rand(4, width, generator=torch.Generator().manual_seed(1)) > 0.5
    for block in (1, 128):
        updated, mask = sparsegpt(weight, given_mask, Unstructured(0.5), gram, block_size=block)
        assert torch.equal(mask, given_mask)
        expected = oracle.with_mask(*doubles(weight), given_mask.numpy(), *doubles(gram), 0.01)
        assert_close(updated, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


def test_the_block_size_changes_nothing_for_groups():
    weight, gram = layer(5, 24)
    wide, mask = sparsegpt(weight, None, Pattern(3, 6), gram)
    for block in (1, 4, 16):
        updated, second_mask = sparsegpt(weight, None, Pattern(3, 6), gram, block_size=block)
        assert torch.equal(mask, second_mask)
        assert torch.equal(wide, updated)


@given(
    out=st.integers(1, 9),
    width=st.integers(1, 40),
    block=st.integers(1, 40),
    sparsity=st.floats(0.01, 0.99),
    dead=st.sets(st.integers(0, 39)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_share_of_the_matrix_is_pruned(out, width, block, sparsity, dead, seed):
    weight, gram = layer(out, width, seed=seed)
    zero_channels = [j for j in dead if j < width]
    gram[zero_channels], gram[:, zero_channels] = 0.0, 0.0
    if len(zero_channels) == width:
        with pytest.raises(NumericsError, match="zeros"):
            sparsegpt(weight, None, Unstructured(sparsity), gram)
        return
    updated, mask = sparsegpt(weight, None, Unstructured(sparsity), gram, block_size=block)
    assert int((~mask).sum()) == round(round(out * width * sparsity, 9))
    assert (updated[~mask] == 0).all()
    assert torch.isfinite(updated).all()


@given(
    pattern=st.sampled_from(PATTERNS),
    groups=st.integers(1, 4),
    dead=st.sets(st.integers(0, 39)),
    levels=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_group_keeps_n_of_m(pattern, groups, dead, levels, seed):
    kept, group = pattern
    weight, gram = layer(4, group * groups, seed=seed)
    weight = weight.mul(levels).round() if levels else weight  # ties, and zeros
    zero_channels = [j for j in dead if j < len(gram) - 1]
    gram[zero_channels], gram[:, zero_channels] = 0.0, 0.0
    updated, mask = sparsegpt(weight, None, Pattern(kept, group), gram)
    assert satisfies(mask, Pattern(kept, group))
    assert (updated[~mask] == 0).all()


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Unstructured(0.5)], ids=str)
def test_with_uncorrelated_inputs_it_is_wanda_without_an_update(pattern):
    weight, _ = layer(8, 32)
    power = torch.rand(32, generator=torch.Generator().manual_seed(2)) + 0.1
    updated, mask = sparsegpt(weight, None, pattern, power.diag(), damping=0.2)
    score = weight.abs() * (power + 0.2 * power.mean()).sqrt()
    assert torch.equal(mask, keep_top(score, pattern, group="layer"))
    assert torch.equal(updated, torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Unstructured(0.5)], ids=str)
def test_compensation_lowers_the_output_error(pattern):
    weight, gram = layer(16, 64, tokens=196)
    with_own_mask, mask = sparsegpt(weight, None, pattern, gram)
    assert loss(weight, with_own_mask, gram) < 0.8 * loss(weight, weight * mask, gram)
    start = keep_top(weight.abs() * gram.diagonal().sqrt(), pattern)
    updated, _ = sparsegpt(weight, start, pattern, gram)
    assert loss(weight, updated, gram) < 0.8 * loss(weight, weight * start, gram)
    assert loss(weight, with_own_mask, gram) < loss(weight, updated, gram)


@pytest.mark.parametrize("pattern", [Pattern(4, 8), Unstructured(0.5)], ids=str)
@pytest.mark.parametrize("scale", [4.0**-8, 4.0**6])
def test_a_common_scale_of_the_inputs_changes_nothing(pattern, scale):
    weight, gram = layer(8, 32)
    plain, mask = sparsegpt(weight, None, pattern, gram)
    updated, second_mask = sparsegpt(weight, None, pattern, gram * scale)
    assert torch.equal(mask, second_mask)
    assert_close(plain, updated)


def test_rows_of_an_nm_pattern_are_independent():
    weight, gram = layer(6, 16)
    updated, mask = sparsegpt(weight, None, Pattern(2, 4), gram)
    alone, mask_alone = sparsegpt(weight[2:3], None, Pattern(2, 4), gram)
    assert torch.equal(mask[2:3], mask_alone)
    assert_close(updated[2:3], alone)


def test_channels_that_are_always_zero_do_not_change_the_sparsity_of_the_others():
    weight, gram = layer(20, 32)
    zero_channels = torch.zeros(32, dtype=torch.bool)
    zero_channels[[3, 4, 5, 6, 7, 20]] = True
    gram[zero_channels], gram[:, zero_channels] = 0.0, 0.0
    updated, mask = sparsegpt(weight, None, Unstructured(0.5), gram)
    assert int(mask[:, ~zero_channels].sum()) == 20 * 26 // 2
    assert torch.equal(
        mask[:, zero_channels], keep_top(weight[:, zero_channels].abs(), Unstructured(0.5), group="layer")
    )
    assert torch.equal(updated[:, zero_channels], weight[:, zero_channels] * mask[:, zero_channels])
    # The public code spends 120 of its 320 on them (and one more on the next), so more of the others are kept.
    original_weight, original_mask = sparsegpt(weight, None, Unstructured(0.5), gram, original=True)
    assert not original_mask[:, zero_channels].any()
    assert int(original_mask.sum()) == 320 - 1
    assert (original_weight[:, zero_channels] == 0).all()


@pytest.mark.parametrize("original", [False, True])
def test_in_a_group_channels_that_are_always_zero_are_pruned_first_smallest_weights_first(original):
    weight, gram = layer(7, 8)
    gram[[0, 2, 3, 5]], gram[:, [0, 2, 3, 5]] = 0.0, 0.0
    updated, mask = sparsegpt(weight, None, Pattern(2, 4), gram, original=original)
    assert mask[:, 1].all()
    largest = weight[:, [0, 2, 3]].abs().argmax(1)
    expected = torch.full_like(largest, 2) if original else largest  # the public code zeroes them, so that they tie
    assert torch.equal(mask[:, [0, 2, 3]], torch.nn.functional.one_hot(expected, 3).bool())
    assert not mask[:, 5].any()
    assert torch.equal(updated[:, 3], torch.zeros(7) if original else weight[:, 3] * mask[:, 3])


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(4, 20), Unstructured(0.5)])
def test_a_matrix_whose_inputs_never_fired_keeps_its_largest_weights(pattern):
    weight, gram = layer(7, 20)
    updated, mask = sparsegpt(weight, None, pattern, torch.zeros_like(gram))
    assert torch.equal(mask, keep_top(weight.abs(), pattern, group="layer"))
    assert torch.equal(updated * mask, weight * mask)


def test_original_prunes_one_too_many_in_each_block():
    weight, gram = layer(8, 32)
    _, mask = sparsegpt(weight, None, Unstructured(0.5), gram, block_size=8, original=True)
    assert (~mask).view(8, 4, 8).sum((0, 2)).tolist() == [33] * 4


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments_are_not_modified(transposed, dtype):
    weight, gram = layer(8, 8)
    weight = weight.to(dtype).T if transposed else weight.to(dtype)
    mask = torch.eye(8, dtype=torch.bool)
    before = [tensor.clone() for tensor in (weight, gram, mask)]
    updated, _ = sparsegpt(weight, mask, Pattern(1, 8), gram, original=True)
    assert updated.dtype == torch.float32
    assert updated.is_contiguous()
    for tensor, copy in zip((weight, gram, mask), before, strict=True):
        assert torch.equal(tensor, copy)


def test_a_width_that_groups_do_not_fit_is_refused():
    weight, gram = layer(2, 10)
    with pytest.raises(PatternError, match="10 input features"):
        sparsegpt(weight, None, Pattern(2, 4), gram)


def test_too_little_damping_is_refused_naming_the_option():
    gram = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    pattern: AnyPattern = Pattern(1, 2)
    with pytest.raises(NumericsError, match=r"steps\.update\.damping"):
        sparsegpt(torch.ones(1, 2), None, pattern, gram)
    sparsegpt(torch.ones(1, 2), None, pattern, gram, damping=2.0)


@pytest.mark.parametrize("options", [{"damping": -0.01}, {"damping": float("nan")}, {"block_size": 0}, {"original": 2}])
def test_options_out_of_range_are_refused_before_anything_runs(options):
    with pytest.raises(MethodError, match=r"steps\.update\."):
        Step("sparsegpt", options).bind("update")


def test_it_requests_the_gram_and_nothing_else():
    bound = Step("sparsegpt").bind("update")
    assert bound.statistics == {"gram"}
    assert bound.patterns is None


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Unstructured(0.5)], ids=str)
def test_relative_damping_is_a_share_of_each_entry_of_the_diagonal(pattern):
    weight, gram = layer(8, 16)
    damped = gram + 0.3 * gram.diagonal().diag()
    pruned, mask = sparsegpt(weight, None, pattern, gram, damping=0.0, relative_damping=0.3)
    expected, expected_mask = sparsegpt(weight, None, pattern, damped, damping=0.0)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(pruned, expected)
