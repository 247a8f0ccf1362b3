"""What the engine feeds to the blocks is what transformers feeds to them."""

import pytest
import torch
from tiny import FAMILIES, MIXTURES, OTHERS, UNKNOWN
from transformers import AutoModelForCausalLM

from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", [*FAMILIES, *OTHERS, *MIXTURES, *UNKNOWN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_blocks_run_one_by_one_give_the_models_hidden_states(tiny, model_type, dtype):
    folder = tiny(model_type, dtype=dtype)
    tokens = torch.randint(0, 258, (5, 24), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = []
    skeleton = load_skeleton(folder)
    for block in model.get_submodule(skeleton.family.blocks):
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(tokens, use_cache=False)

    reader = CheckpointReader(folder, ties=skeleton.ties)
    hidden, kwargs = capture_block_inputs(skeleton, reader, tokens, torch.float32, CPU, batch=2)
    for index, block in enumerate(skeleton.blocks):
        with loaded_weights(block, skeleton.block_name(index), reader, torch.float32, CPU), torch.no_grad():
            output = block(hidden, **kwargs[index])
        hidden = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(hidden, seen[index], rtol=1e-5, atol=1e-5)


def test_a_skeleton_holds_no_weights_before_and_after(tiny):
    folder = tiny("llama")
    skeleton = load_skeleton(folder)
    reader = CheckpointReader(folder, ties=skeleton.ties)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    capture_block_inputs(skeleton, reader, torch.zeros(1, 8, dtype=torch.long), torch.float32, CPU, batch=1)
    with loaded_weights(skeleton.blocks[0], "model.layers.0", reader, torch.float32, CPU):
        assert not any(parameter.is_meta for parameter in skeleton.blocks[0].parameters())
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_the_cache_never_reaches_a_block(tiny):
    skeleton = load_skeleton(tiny("llama"))
    tokens = torch.zeros(1, 8, dtype=torch.long)
    _, kwargs = capture_block_inputs(
        skeleton, CheckpointReader(skeleton.folder, ties=skeleton.ties), tokens, torch.float32, CPU, batch=1
    )
    assert all("past_key_values" not in given for given in kwargs)
