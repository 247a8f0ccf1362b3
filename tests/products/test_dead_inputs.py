"""Units that never fire during calibration: of their weights the largest are kept."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import eggs_ptp

SIZES = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def opt_folder(path, dead_units):
    """Write an OPT model whose first ReLU units never fire; in every four inputs of fc2 two have large weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("opt", **SIZES, word_embed_proj_dim=32, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config)
    block = model.model.decoder.layers[0]
    with torch.no_grad():
        block.fc1.bias[:dead_units] = -50.0
        block.fc2.weight[:] = torch.tensor([5.0, 5.0, 0.01, 0.01]).repeat(32, 16)
    model.save_pretrained(path)
    np.save(path / "windows.npy", np.random.default_rng(0).integers(3, 64, (4, 16)))
    return path


@pytest.mark.parametrize("method", ["wanda", "ria", "ria_cp", "eggs", "sparsegpt", "wanda+dsnot", "alps", "eggs+"])
@pytest.mark.parametrize("dead_units", [48, 64])
def test_no_small_weight_of_a_dead_unit_is_kept_before_a_large_one(method, dead_units, tmp_path):
    source = opt_folder(tmp_path / "source", dead_units)
    windows = str(source / "windows.npy")
    eggs_ptp.prune(str(source), tmp_path / "out", method=method, pattern="2:4", calibration=windows)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    weight = next(tensor for name, tensor in tensors.items() if name.endswith("fc2.weight"))
    bias = next(tensor for name, tensor in tensors.items() if name.endswith("fc1.bias"))
    of_dead_units = weight[:, bias < -10]  # folded permutations move the units
    assert of_dead_units.shape[1] == dead_units
    assert (of_dead_units.abs() > 1).any()
    assert not ((of_dead_units != 0) & (of_dead_units.abs() < 1)).any()
