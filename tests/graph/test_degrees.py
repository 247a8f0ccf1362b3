import numpy as np
import pytest
import torch

from eggs_ptp.graph.degrees import degrees, gini, percentiles


def test_counts_are_column_and_row_sums():
    mask = torch.rand(37, 53, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[:, 5] = False
    found = degrees(mask)
    assert found.inputs.tolist() == mask.long().sum(0).tolist()
    assert found.outputs.tolist() == mask.long().sum(1).tolist()
    assert found.inputs[5] == 0


def test_counts_beyond_a_byte():
    mask = torch.ones(700, 511, dtype=torch.bool)
    mask[3, 9] = False
    found = degrees(mask)
    assert set(found.inputs.tolist()) == {700, 699}
    assert set(found.outputs.tolist()) == {511, 510}
    assert (found.inputs[9], found.outputs[3]) == (699, 510)


def test_columns_of_another_layout_are_counted_the_same():
    mask = torch.rand(8, 300, generator=torch.Generator().manual_seed(1)) < 0.5
    assert degrees(mask.T).inputs.tolist() == degrees(mask).outputs.tolist()


def test_gini_is_half_the_relative_mean_difference():
    counts = np.random.default_rng(0).integers(0, 50, 31)
    expected = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(expected, rel=1e-12)


def test_gini_at_its_ends():
    assert gini(np.full(9, 4)) == 0.0
    assert gini(np.array([0, 0, 0, 7])) == 0.75
    assert gini(np.zeros(5, dtype=np.int64)) == 0.0


def test_percentiles_lie_between_neighbours():
    assert percentiles(np.arange(11), (0, 1, 50, 100)) == [0.0, 0.1, 5.0, 10.0]
