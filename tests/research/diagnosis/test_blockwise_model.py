"""A model run block by block computes what transformers computes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.load import load_model, load_skeleton
from eggs_ptp.research.diagnosis.blockwise_model import BlockwiseModel
from eggs_ptp.research.diagnosis.gradient_flow import gradient_flow_of

TOKENS = torch.randint(0, 250, (3, 12), generator=torch.Generator().manual_seed(0))


def blockwise_model(folder):
    skeleton = load_skeleton(folder)
    reader = CheckpointReader(folder, ties=skeleton.ties)
    return BlockwiseModel(skeleton, reader, TOKENS, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_hidden_states_equal_those_of_transformers(tiny, family):
    model = blockwise_model(tiny(family))
    states = load_model(tiny(family), dtype=torch.float32)(TOKENS, output_hidden_states=True).hidden_states
    for index in range(2):
        torch.testing.assert_close(model.hidden, states[index].detach(), rtol=1e-5, atol=1e-5)
        with model.loaded_block(index) as block:
            model.advance(index, block)


@pytest.mark.parametrize("tie", [False, True])
def test_gradients_equal_those_of_a_backward_pass(tiny, tie):
    """Gradients of the mean loss of all windows, at the input of each block and at the output of the last."""
    folder = tiny(tie=tie)
    model = load_model(folder, dtype=torch.float32)
    hidden_states = {}

    def record_as(name):
        def hook(_module, args, output=None):
            hidden = args[0] if output is None else output[0] if isinstance(output, tuple) else output
            hidden.retain_grad()
            hidden_states[name] = hidden

        return hook

    for index, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(record_as(index))
    model.model.layers[-1].register_forward_hook(record_as("last"))
    logits = model(TOKENS).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    norms = [float(hidden_states[name].grad.norm()) for name in (0, 1, "last")]
    progress = []
    flows = gradient_flow_of(blockwise_model(folder), TOKENS, lambda: progress.append(1))
    for index, flow in enumerate(flows):
        assert flow.gradient_in == pytest.approx(norms[index], rel=1e-4)
        assert flow.gradient_out == pytest.approx(norms[index + 1], rel=1e-4)
        assert flow.gradient_ratio == pytest.approx(norms[index] / norms[index + 1], rel=1e-4)
        assert flow.jacobian.singular_values[0] > flow.jacobian.rms > 0
    assert len(progress) == 4


def test_a_block_that_overflows_is_named(tiny):
    model = blockwise_model(tiny())
    model.hidden[1] = torch.inf
    with model.loaded_block(0) as block, pytest.raises(NumericsError, match=r"model.layers.0: its outputs hold NaN"):
        model.advance(0, block)
