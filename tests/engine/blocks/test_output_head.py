"""The output head gives the logits of the whole model."""

import pytest
import torch
from tiny import FAMILIES, MIXTURES, OTHERS, UNKNOWN
from transformers import AutoModelForCausalLM

from eggs_ptp.engine.blocks.output_head import output_head
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS, *MIXTURES, *UNKNOWN])
def test_logits_of_the_last_blocks_outputs_are_the_models(tiny, name):
    folder = tiny(name)
    skeleton = load_skeleton(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    outputs = []
    last = model.get_submodule(skeleton.family.blocks)[-1]
    last.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    tokens = torch.randint(0, 258, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
    reader = CheckpointReader(folder, ties=skeleton.ties)
    blocks = list(skeleton.blocks)
    hidden = outputs[0].flatten(0, 1).requires_grad_()
    with output_head(skeleton, reader, torch.float32, torch.device("cpu")) as head:
        logits = head(hidden)
        logits.square().sum().backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.any())
    torch.testing.assert_close(logits.detach(), expected.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert list(skeleton.blocks) == blocks
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
