import numpy as np
import pytest
import torch

from eggs_ptp.core.degrees import degrees, gini, percentiles


def test_counts_are_column_and_row_sums():
    mask = torch.rand(37, 53, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[:, 5] = False
    counts = degrees(mask)
    assert counts.inputs.tolist() == mask.long().sum(0).tolist()
    assert counts.outputs.tolist() == mask.long().sum(1).tolist()
    assert counts.inputs[5] == 0


def test_counts_beyond_a_byte():
    mask = torch.ones(700, 511, dtype=torch.bool)
    mask[3, 9] = False
    counts = degrees(mask)
    assert set(counts.inputs.tolist()) == {700, 699}
    assert set(counts.outputs.tolist()) == {511, 510}
    assert (counts.inputs[9], counts.outputs[3]) == (699, 510)


def test_a_transposed_mask_is_counted_the_same():
    mask = torch.rand(8, 300, generator=torch.Generator().manual_seed(1)) < 0.5
    assert degrees(mask.T).inputs.tolist() == degrees(mask).outputs.tolist()


def test_gini_is_half_the_relative_mean_difference():
    counts = np.random.default_rng(0).integers(0, 50, 31)
    expected = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(expected, rel=1e-12)


def test_gini_of_extreme_degrees():
    assert gini(np.full(9, 4)) == 0.0
    assert gini(np.array([0, 0, 0, 7])) == 0.75
    assert gini(np.zeros(5, dtype=np.int64)) == 0.0


def test_percentiles_are_interpolated():
    assert percentiles(np.arange(11), (0, 1, 50, 100)) == [0.0, 0.1, 5.0, 10.0]
