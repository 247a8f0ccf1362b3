"""A model walked block by block is the model that transformers runs as a whole."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from eggs_ptp.engine.flow import flow_of
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.walk import Walk
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.load import load_model, load_skeleton

TOKENS = torch.randint(0, 250, (3, 12), generator=torch.Generator().manual_seed(0))


def walk_through(folder):
    skeleton = load_skeleton(folder)
    shards = Shards(folder, ties=skeleton.ties)
    return Walk(skeleton, shards, TOKENS, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_hidden_states_are_the_models(tiny, family):
    walk = walk_through(tiny(family))
    states = load_model(tiny(family), dtype=torch.float32)(TOKENS, output_hidden_states=True).hidden_states
    for index in range(2):
        torch.testing.assert_close(walk.hidden, states[index].detach(), rtol=1e-5, atol=1e-5)
        with walk.at(index) as block:
            walk.onward(index, block)


@pytest.mark.parametrize("tie", [False, True])
def test_gradients_are_the_models(tiny, tie):
    """Those of the mean loss of all windows, before each block and behind the last."""
    folder = tiny(tie=tie)
    model, kept = load_model(folder, dtype=torch.float32), {}

    def keep(name):
        def hook(_module, args, output=None):
            kept[name] = args[0] if output is None else output[0] if isinstance(output, tuple) else output
            kept[name].retain_grad()

        return hook

    for index, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(keep(index))
    model.model.layers[-1].register_forward_hook(keep("last"))
    logits = model(TOKENS).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    told = []
    found = flow_of(walk_through(folder), TOKENS, lambda: told.append(1))
    norms = [float(kept[name].grad.norm()) for name in (0, 1, "last")]
    for index, flow in enumerate(found):
        assert flow.gradient_in == pytest.approx(norms[index], rel=1e-4)
        assert flow.gradient_out == pytest.approx(norms[index + 1], rel=1e-4)
        assert flow.gradient_ratio == pytest.approx(norms[index] / norms[index + 1], rel=1e-4)
        assert flow.gain.singular_values[0] > flow.gain.rms > 0
    assert len(told) == 4


def test_a_block_that_overflows_is_named(tiny):
    walk = walk_through(tiny())
    walk.hidden[1] = torch.inf
    with walk.at(0) as block, pytest.raises(NumericsError, match=r"model.layers.0: its outputs hold NaN"):
        walk.onward(0, block)
