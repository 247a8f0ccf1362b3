import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

DAMAGED = "model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    from eggs_ptp import api

    folder = tmp_path_factory.mktemp("pruned") / "out"
    api.prune(str(tiny()), folder, method="magnitude")
    return folder


@pytest.fixture
def damaged(pruned, tmp_path):
    """A copy in which the removed weights of one row are not zero."""
    for file in pruned.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(pruned)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    row = weights[f"{DAMAGED}.weight"][0]
    row[row == 0] = 1.0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_pruned_folder_passes(eggs, pruned, tiny):
    ran = eggs("verify", pruned, "--against", tiny())
    assert (ran.code, ran.err) == (0, "")
    words = " ".join(ran.out.split())
    assert ran.out.splitlines()[0] == f"{pruned}: ok"
    assert "pruned matrices 14 ok 2:4, 0.5000 non-zero" in words
    full = " ".join(eggs("verify", pruned, "--full").out.split())
    assert "model.layers.0-1.mlp.up_proj 2 ok 2:4, 0.5000 non-zero" in full


def test_many_failures_are_counted_and_shown_with_full(eggs, damaged):
    weights = load_file(damaged / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, damaged / "model.safetensors", {"format": "pt"})
    first = eggs("verify", damaged).out.splitlines()[0]
    failed = [check for check in eggs("verify", damaged, "--json").json["checks"] if not check["ok"]]
    assert len(failed) >= 14
    assert first.endswith(f" and {len(failed) - 5} more")
    assert eggs("verify", damaged, "--full").out.count("FAILED") == len(failed)


def test_failed_checks_are_named_and_exit_with_1(eggs, damaged, tiny):
    ran = eggs("verify", damaged, "--against", tiny())
    assert (ran.code, ran.err) == (1, "")
    words = " ".join(ran.out.split())
    assert f"{DAMAGED} 1 FAILED 8 of 128 groups keep more than 2:4" in words
    assert f"2 of 20 checks failed: {DAMAGED}, kept weights" in words


def test_as_json(eggs, damaged):
    ran = eggs("verify", damaged, "--json")
    assert ran.code == 1
    assert not ran.json["ok"]
    assert [check["name"] for check in ran.json["checks"] if not check["ok"]] == [DAMAGED]


def test_a_folder_without_a_record_needs_a_pattern(eggs, tiny):
    assert "pass --pattern" in eggs("verify", tiny()).error
    assert eggs("verify", tiny(), "--pattern", "2:4").code == 1


@pytest.mark.parametrize("returned", [0, 3])
def test_a_folder_that_was_quantised_afterwards_is_described_in_words(eggs, pruned, tmp_path, returned):
    folder = tmp_path / "quantised"
    shutil.copytree(pruned, folder)
    config = json.loads((folder / "config.json").read_text())
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": groups,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for matrix in json.loads((folder / "eggs.json").read_text())["matrices"]:
        weight = tensors[f"{matrix['name']}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / 127
        numbers = (weight / scale).round().to(torch.int8)
        if matrix["name"] == DAMAGED:
            zeros = (numbers == 0).nonzero()[:returned]
            numbers[zeros[:, 0], zeros[:, 1]] = 1
        tensors |= {f"{matrix['name']}.weight": numbers, f"{matrix['name']}.weight_scale": scale}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    ran = eggs("verify", folder)
    assert (ran.code, ran.err) == (int(returned > 0), "")
    second = ran.out.splitlines()[1]
    if returned:
        assert "quantised by compressed-tensors (int-quantized); 2 of 4608 groups (0.043%) no longer hold" in second
        assert "at least 0.033% of the pruned weights came back; quantise the pruned folder again" in second
        assert f"{DAMAGED} 1 FAILED 2 of 128 groups keep more than 2:4" in " ".join(ran.out.split())
    else:
        assert second.endswith("(int-quantized); all 14 pruned matrices still hold their pattern")
