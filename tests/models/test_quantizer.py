"""Packed folders in plain transformers: loaded, saved, used for generation, and refused if they are damaged."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import change_packed
from transformers import AutoModel, AutoModelForCausalLM

import eggs_ptp
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.errors import CheckpointError, EggsError, PatternError
from eggs_ptp.models.load import load_model
from eggs_ptp.models.quantizer import EggsConfig
from eggs_ptp.sparse.convert import unpack
from eggs_ptp.sparse.linear import NMLinear

FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]
UP = "model.layers.0.mlp.up_proj"
IDS = torch.tensor([[256, 72, 101, 108, 108, 111]])


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Return a function that makes a pruned dense folder and the packed one exported from it."""
    pairs = {}

    def pair(family="llama", **changes):
        key = repr((family, changes))
        if key not in pairs:
            top = tmp_path_factory.mktemp(family)
            eggs_ptp.prune(str(tiny(family, **changes)), top / "dense", method="magnitude")
            export(top / "dense", top / "packed", "packed")
            pairs[key] = top / "dense", top / "packed"
        return pairs[key]

    return pair


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders()[1], tmp_path / "packed")


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def greedy(model):
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=24, do_sample=False, pad_token_id=0)


def packed_modules(model):
    return {name for name, module in model.named_modules() if isinstance(module, NMLinear)}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_are_those_of_the_dense_model(folders, family):
    dense, packed = (load(folder) for folder in folders(family))
    assert len(packed_modules(packed)) == 14
    with torch.no_grad():
        torch.testing.assert_close(packed(IDS).logits, dense(IDS).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(greedy(packed), greedy(dense))


def test_layers_with_tensors_may_initialise_packed_linears(folders):
    """The classes of Mamba initialise `out_proj.weight` with the mixer, which has tensors in the checkpoint."""
    sizes = {"state_size": 8, "expand": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    dense, packed = (load(folder) for folder in folders("mamba2", **sizes))
    assert "backbone.layers.0.mixer.out_proj" in packed_modules(packed)
    with torch.no_grad():
        torch.testing.assert_close(packed(IDS).logits, dense(IDS).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(packed.backbone.layers[0].mixer.D, dense.backbone.layers[0].mixer.D)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_to_the_requested_dtype(folders, dtype):
    dense, packed = (load(folder, dtype=dtype) for folder in folders())
    module = packed.get_submodule(UP)
    assert (module.values.dtype, module.bits.dtype, packed.dtype) == (dtype, torch.uint8, dtype)
    assert torch.equal(module.dense().weight, dense.get_submodule(UP).weight)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(folders, device_map):
    dense, packed = folders()
    assert torch.equal(greedy(load(packed, device_map=device_map)), greedy(load(dense)))


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_blocks_offloaded_to_disk(folders, tmp_path, offload_buffers):
    dense, packed = folders()
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    device_map |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = load(packed, device_map=device_map, offload_folder=tmp_path, offload_buffers=offload_buffers)
    assert model.model.layers[1].mlp.up_proj.values.is_meta == offload_buffers
    assert torch.equal(greedy(model), greedy(load(dense)))


def test_saving_writes_the_same_tensors(folders, tmp_path):
    _, packed = folders()
    load(packed).save_pretrained(tmp_path / "saved")
    before, after = load_file(packed / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    blocks = [json.loads((f / "config.json").read_text())["quantization_config"] for f in (packed, tmp_path / "saved")]
    assert blocks[0] == blocks[1]
    assert torch.equal(greedy(load(tmp_path / "saved")), greedy(load(packed)))


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_quantised_folders_are_loaded_saved_and_made_dense(folders, tmp_path, values):
    dense, _ = folders()
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    export(dense, packed, "packed", values=values)
    export(packed, plain, "dense")
    model, expected = load(packed), load(plain)
    assert len(packed_modules(model)) == 14
    assert model.get_submodule(UP).packed.kind == values
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-4)
        half = load(packed, dtype=torch.bfloat16)
        assert half.get_submodule(UP).scales.dtype == half(IDS).logits.dtype == torch.bfloat16
    assert torch.equal(greedy(model), greedy(expected))
    model.save_pretrained(tmp_path / "saved")
    before, after = (load_file(folder / "model.safetensors") for folder in (packed, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    in_memory = eggs_ptp.pack(load(dense), values=values).state_dict()
    assert all(torch.equal(tensor, in_memory[name]) for name, tensor in before.items())
    model.dequantize()
    assert torch.equal(model.get_submodule(UP).weight, expected.get_submodule(UP).weight)


WITHOUT_EGGS = """
import sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM, pipeline
for load in (AutoModelForCausalLM.from_pretrained, LlamaForCausalLM.from_pretrained,
             lambda folder: pipeline("text-generation", folder, device="cpu")):
    try:
        load(sys.argv[1])
    except ValueError as error:
        assert "quant_method" in str(error), error
    else:
        sys.exit("it was loaded")
assert "eggs_ptp" not in sys.modules
"""


@pytest.mark.parametrize("saved", [False, True], ids=["exported", "saved again"])
def test_transformers_alone_refuses_the_folder(folders, tmp_path, saved):
    folder = folders()[1]
    if saved:
        load(folder).save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EGGS, str(folder)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_a_model_packed_in_memory_can_be_saved(folders, tmp_path):
    dense, packed = folders()
    model = eggs_ptp.pack(load(dense))
    text = greedy(model)
    model.save_pretrained(tmp_path / "saved")
    before, after = load_file(packed / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(greedy(load(tmp_path / "saved")), text)


def test_dequantize_makes_a_plain_model(folders, tmp_path):
    dense, packed = folders()
    model = load(packed)
    model.dequantize()
    assert not packed_modules(model)
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    source, plain = load_file(dense / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    assert source.keys() == plain.keys()
    assert all(torch.equal(source[name], plain[name]) for name in source)


def test_the_model_without_its_head(folders, tmp_path):
    dense, packed = folders()
    headless = AutoModel.from_pretrained(packed)
    assert "layers.0.mlp.up_proj" in packed_modules(headless)
    with torch.no_grad():
        expected = load(dense).model(IDS).last_hidden_state
        torch.testing.assert_close(headless(IDS).last_hidden_state, expected)
        headless.save_pretrained(tmp_path / "headless")
        torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "headless")(IDS).last_hidden_state, expected)


def test_the_whole_model_compiles_without_a_graph_break(folders):
    dense, packed = (load(folder) for folder in folders())
    torch._dynamo.reset()
    compiled_dense, compiled = (torch.compile(model, fullgraph=True, backend="aot_eager") for model in (dense, packed))
    with torch.no_grad():
        try:
            compiled_dense(IDS, use_cache=False)
        except torch._dynamo.exc.Unsupported:
            pytest.skip("this torch does not compile this transformers' dense models either")
        logits = compiled(IDS, use_cache=False).logits
        torch.testing.assert_close(logits, dense(IDS, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_unpacked_parameters_have_the_gradients_of_the_dense_model(folders):
    dense, packed = (load(folder) for folder in folders())
    for model in (dense, packed):
        model(IDS, labels=IDS).loss.backward()
    expected = dict(dense.named_parameters())
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name, rtol=1e-3, atol=1e-5)


def test_packed_weights_are_counted_as_those_of_the_dense_model(folders):
    dense, packed = (load(folder) for folder in folders())
    for settings in ({}, {"exclude_embeddings": True}):
        assert packed.num_parameters(**settings) == dense.num_parameters(**settings) > 0
    trainable = sum(parameter.numel() for parameter in packed.parameters())
    assert packed.num_parameters(only_trainable=True) == trainable < dense.num_parameters()


def test_saving_a_packed_model_again_keeps_its_record(folders, tmp_path):
    folder = folders()[1]
    record = b'{"format": 1}\n'
    (folder / "eggs.json").write_bytes(record)
    (folder / "eggs").mkdir(exist_ok=True)
    (folder / "eggs" / "orders.safetensors").write_bytes(b"permutations")
    model = load(folder)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "eggs.json").read_bytes() == record
    assert (tmp_path / "again" / "eggs" / "orders.safetensors").read_bytes() == b"permutations"
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "eggs.json").exists()
    unpack(model).save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / "eggs.json").exists()


@pytest.mark.parametrize("settings", [{"tp_plan": "auto"}, {"tp_size": 2}])
def test_tensor_parallel_plans_are_refused_in_one_line(folders, settings):
    model = load(folders()[1])
    model.config.distributed_config = SimpleNamespace(**{"tp_plan": None, "tp_size": 1, **settings})
    with pytest.raises(CheckpointError, match=r"got a tensor-parallel plan \(tp_plan\); load it without") as caught:
        model.hf_quantizer.preprocess_model(model)
    assert "\n" not in str(caught.value)


def test_a_dense_folder_is_not_packed_while_loading(folders):
    with pytest.raises(
        CheckpointError, match=r"the folder is dense; load it without one, then call eggs_ptp\.pack\(model\)"
    ):
        load(folders()[0], quantization_config=EggsConfig(matrices={UP: "2:4"}))


def change(folder, name, tensor):
    path = folder / "model.safetensors"
    stored = {**load_file(path), name: tensor}
    save_file({key: value for key, value in stored.items() if value is not None}, path, {"format": "pt"})


def flipped(folder):
    change(folder, f"{UP}.bits", load_file(folder / "model.safetensors")[f"{UP}.bits"] ^ 1)


def missing(folder):
    change(folder, f"{UP}.values", None)


def too_short(folder):
    change(folder, f"{UP}.values", torch.zeros(64, 8))


def another_pattern(folder):
    change_packed(folder, matrices={UP: "1:4"})


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def future(folder):
    change_packed(folder, format=7)


def unknown_matrix(folder):
    change_packed(folder, matrices={"model.layers.9.mlp.up_proj": "2:4"})


def no_linear(folder):
    change_packed(folder, matrices={"model.norm": "2:4"})


def indivisible(folder):
    change_packed(folder, matrices={UP: "2:5"})


DAMAGES = [
    (flipped, rf"^{UP}: the bits of \d+ groups do not mark 2 of 4 columns$"),
    (missing, rf"model\.safetensors: {UP}\.values is named in config\.json, but not in the checkpoint$"),
    (too_short, rf"model\.safetensors: expected shape \[64, 16\] of {UP}\.values as in config\.json, got \[64, 8\]$"),
    (another_pattern, rf"expected shape \[64, 8\] of {UP}\.values as in config\.json, got \[64, 16\]$"),
    (truncated, r"model\.safetensors: not a readable safetensors file"),
    (future, r"^config\.json: packed format 7, this version reads formats 1, 2, 3; update eggs-ptp$"),
    (unknown_matrix, r"model\.layers\.9\.mlp\.up_proj"),
    (no_linear, r"model\.norm"),
    (indivisible, rf"^config\.json: {UP}: linear: 32 input features cannot be cut into groups of 5"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_folders_are_refused_by_name(copied, damage, message):
    damage(copied)
    with pytest.raises((CheckpointError, PatternError), match=message) as caught:
        load(copied)
    assert isinstance(caught.value, EggsError)
    assert "\n" not in str(caught.value)
    with pytest.raises((CheckpointError, PatternError), match=message.replace("^", "")) as caught_by_load_model:
        load_model(copied)
    assert str(caught_by_load_model.value).count(str(copied)) == 1
    assert "transformers cannot" not in str(caught_by_load_model.value)
