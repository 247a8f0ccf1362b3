"""Where statistics come from: the block as it stands, refreshed or not, fed by the pruned or the dense model."""

import pytest
import torch
from safetensors.torch import load_file

from eggs_ptp.api import prune
from eggs_ptp.errors import RecipeError


def _weights(tiny, text_file, tmp_path, name, **calibration):
    settings = {"text": str(text_file), "nsamples": 8, "seqlen": 32, **calibration}
    steps = {"score": {"alpha": 1.0}}
    from eggs_ptp import Recipe

    recipe = Recipe(method="ria", pattern="1:4", steps=steps, calibration=settings)
    prune(str(tiny("llama")), tmp_path / name, recipe)
    return load_file(tmp_path / name / "model.safetensors")


@pytest.fixture
def runs(tiny, text_file, tmp_path):
    def run(name, **calibration):
        return _weights(tiny, text_file, tmp_path, name, **calibration)

    return run


def _differ(one, two, pattern):
    return [name for name in one if pattern in name and not torch.equal(one[name], two[name])]


def test_refreshed_statistics_change_what_comes_after_the_first_group_only(runs):
    block, group = runs("block"), runs("group", statistics="group")
    assert not _differ(block, group, "layers.0.self_attn.q_proj")
    assert not _differ(block, group, "layers.0.self_attn.k_proj")
    assert _differ(block, group, "layers.0.mlp.down_proj")


def test_the_dense_stream_leaves_block_0_and_changes_block_1(runs):
    pruned, dense = runs("pruned"), runs("dense", propagate="dense")
    assert not _differ(pruned, dense, "layers.0.")
    assert _differ(pruned, dense, "layers.1.")


def test_the_dense_stream_feeds_each_block_what_the_dense_model_gives(runs, tiny, text_file, tmp_path):
    """Block 1 pruned alone sees the dense model too, so its masks are those of the dense stream."""
    from eggs_ptp import Recipe

    dense = runs("dense", propagate="dense")
    calibration = {"text": str(text_file), "nsamples": 8, "seqlen": 32}
    recipe = Recipe(
        method="ria",
        pattern="1:4",
        steps={"score": {"alpha": 1.0}},
        calibration=calibration,
        exclude=("*.layers.0.*",),
    )
    prune(str(tiny("llama")), tmp_path / "alone", recipe)
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    assert not _differ(dense, alone, "layers.1.")


def test_tokens_that_do_not_count_change_masks_and_more_than_a_window_is_refused(runs):
    everything, less = runs("all"), runs("less", skip_first=24)
    assert _differ(everything, less, "layers.0.self_attn.q_proj")
    with pytest.raises(RecipeError, match=r"skip_first = 32 leaves nothing of windows of 32 tokens"):
        runs("none", skip_first=32)
