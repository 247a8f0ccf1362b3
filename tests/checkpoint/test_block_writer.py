"""Writing pruned blocks: weights that their type cannot hold."""

import pytest
import torch

from eggs_ptp import api
from eggs_ptp.engine import prune_block
from eggs_ptp.errors import NumericsError


def test_a_weight_that_exceeds_its_type_is_named(tiny, tmp_path, monkeypatch):
    name = "model.layers.1.mlp.down_proj"
    prune_consumers = prune_block.prune_consumers

    def prune_and_enlarge(*args, **kwargs):
        pruned = prune_consumers(*args, **kwargs)
        if name in pruned:
            weight = pruned[name].weight
            weight[0, :] *= 1e6 / weight[0, :].abs().max()
        return pruned

    monkeypatch.setattr(prune_block, "prune_consumers", prune_and_enlarge)
    with pytest.raises(NumericsError, match=r"^model\.layers\.1\.mlp\.down_proj\.weight: .* exceeds 65504, .* float16"):
        api.prune(str(tiny(dtype=torch.float16)), tmp_path / "out", method="magnitude")
    assert not (tmp_path / "out").exists()
