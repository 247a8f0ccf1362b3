"""The whole product on every supported architecture: pruned, verified, loaded by plain transformers, and packed."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MIXTURES, OTHERS, UNKNOWN, change_packed
from transformers import AutoModelForCausalLM, AutoTokenizer

from eggs_ptp import api
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError, ModelError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.load import load_family, load_skeleton
from eggs_ptp.models.moe import LAYOUTS
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe
from eggs_ptp.sparse.convert import pack, unpack
from eggs_ptp.sparse.keep_zeros import keep_zeros
from eggs_ptp.sparse.linear import NMLinear, is_transposed

WINDOWS = {"nsamples": 4, "seqlen": 32}
QUICK = ("opt-350m", "gpt2", "falcon-40b", "gemma3", "qwen2_moe", "bloom")


def mostly_slow(*names):
    """All of these models; those not needed in the quick suite are marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def prune(source, output, text, **changes):
    calibration = CalibrationSpec(text=str(text), **(WINDOWS if text.suffix == ".txt" else {}))
    return api.prune(str(source), output, Recipe(calibration=calibration, **changes))


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(48).view(2, 24), use_cache=False).logits


def linears(skeleton):
    """All prunable matrices by name."""
    return {
        f"{skeleton.block_name(index)}.{linear.path}": linear
        for index in range(len(skeleton.blocks))
        for linear in skeleton.of_block(index).linears
    }


@pytest.mark.parametrize("name", mostly_slow(*OTHERS, *MIXTURES, *UNKNOWN))
def test_pruned_verified_loaded_generating_and_packed(tiny, text_file, tmp_path, name):
    source = tiny(name)
    output = tmp_path / "out"
    record = prune(source, output, text_file, method="eggs+")
    assert api.verify(output, str(source)).failures == []
    skeleton = load_skeleton(source)
    expected = linears(skeleton)
    assert sorted(matrix["name"] for matrix in record.matrices) == sorted(expected)
    assert record.permutations == ("gather" if name in UNKNOWN else "fold")
    before = load_file(source / "model.safetensors")
    after = load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    permutations = load_file(output / "eggs" / "orders.safetensors")
    for matrix, linear in expected.items():
        weight = after[f"{matrix}.weight"]
        assert weight.dtype == before[f"{matrix}.weight"].dtype
        mask = (weight.T if linear.transposed else weight) != 0
        if name in UNKNOWN:
            mask = mask[:, permutations[matrix].long()]
        assert (mask.reshape(len(mask), -1, 4).sum(-1) == 2).all(), matrix
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    prompt = AutoTokenizer.from_pretrained(output)("Line 3", return_tensors="pt", return_token_type_ids=False)
    generated = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=257)
    assert generated.shape[1] == prompt["input_ids"].shape[1] + 4
    export(output, tmp_path / "packed", "packed")
    torch.testing.assert_close(logits(tmp_path / "packed"), logits(output), rtol=1e-4, atol=1e-4)
    export(tmp_path / "packed", tmp_path / "dense", "dense")
    exported = load_file(tmp_path / "dense" / "model.safetensors")
    assert exported.keys() == after.keys()
    assert all(torch.equal(exported[tensor], after[tensor]) for tensor in after)


@pytest.mark.parametrize("name", mostly_slow(*OTHERS, *MIXTURES))
def test_a_folded_model_computes_the_same_as_unfolded(tiny, text_file, tmp_path, name):
    source = tiny(name)
    output = tmp_path / "out"
    prune(source, output, text_file, method="eggs")
    fold = Fold(*load_family(source), load_file(output / "eggs" / "orders.safetensors"))
    copy = shutil.copytree(output, tmp_path / "unfolded")
    tensors = {name: fold.undo(name, t).contiguous() for name, t in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(output), logits(copy), rtol=1e-4, atol=1e-4)
    assert (logits(copy) - logits(source)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gpt_neox", "gpt_neox.layers.{}.attention"),
        ("gpt2", "transformer.h.{}.attn"),
        ("gptj", "transformer.h.{}.attn"),
    ],
)
def test_causal_masks_of_old_checkpoints_are_copied(tiny, text_file, tmp_path, name, module):
    source = shutil.copytree(tiny(name), tmp_path / "source")
    output = tmp_path / "out"
    masks = {}
    for block, dtype in enumerate((torch.bool, torch.uint8)):
        masks[f"{module.format(block)}.bias"] = torch.ones(128, 128).tril()[None, None].to(dtype)
        masks[f"{module.format(block)}.masked_bias"] = torch.tensor(-1e9).half()  # infinite
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, **masks}, source / "model.safetensors", {"format": "pt"})
    prune(source, output, text_file, method="eggs")
    assert api.verify(output, str(source)).ok
    written = load_file(output / "model.safetensors")
    assert all(torch.equal(written[name], mask) for name, mask in masks.items())
    export(output, tmp_path / "packed", "packed")
    model, _ = api.load(tmp_path / "packed")
    with torch.no_grad():
        packed = model(torch.arange(48).view(2, 24), use_cache=False).logits
    torch.testing.assert_close(packed, logits(output), rtol=1e-4, atol=1e-4)


def test_masks_of_transposed_matrices_are_exported_and_used_again(tiny, text_file, tmp_path):
    source = tiny("gpt2")
    prune(source, tmp_path / "first", text_file, method="wanda", pattern="4:8")
    assert api.export_masks(tmp_path / "first", tmp_path / "masks.safetensors") == 8
    masks = str(tmp_path / "masks.safetensors")
    prune(source, tmp_path / "second", text_file, method="magnitude", pattern="4:8", mask=masks)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_packed_model_of_transposed_matrices_is_saved_loaded_and_made_dense(tiny, tmp_path):
    api.prune(str(tiny("gpt2")), tmp_path / "out", Recipe(method="magnitude"))
    export(tmp_path / "out", tmp_path / "packed", "packed", values="int8")
    export(tmp_path / "packed", tmp_path / "dense", "dense")
    assert api.verify(tmp_path / "packed").failures == []
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert (config["format"], len(config["transposed"])) == (3, 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(module, NMLinear) for module in model.modules()) == 8
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(tmp_path / "again"), logits(tmp_path / "dense"), rtol=1e-4, atol=1e-4)
    restored = model.dequantize().state_dict()
    before = load_file(tmp_path / "dense" / "model.safetensors")
    assert all(torch.equal(restored[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("claimed", [[], ["transformer.h.0.attn.c_attn"]])
def test_a_packed_folder_with_wrong_transposed_matrices_is_refused(tiny, tmp_path, claimed):
    api.prune(str(tiny("gpt2")), tmp_path / "out", Recipe(method="magnitude"))
    export(tmp_path / "out", tmp_path / "packed", "packed")
    change_packed(tmp_path / "packed", transposed=claimed)
    with pytest.raises(CheckpointError, match=r"one of those stored as \(in, out\) .*transposed says otherwise"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


def test_a_model_of_transposed_matrices_is_packed_and_unpacked_in_memory(tiny, tmp_path):
    api.prune(str(tiny("gpt2")), tmp_path / "out", Recipe(method="magnitude"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    dense = {name: (type(module), module.weight) for name, module in model.named_modules() if is_transposed(module)}
    pack(model)
    assert sum(isinstance(module, NMLinear) for module in model.modules()) == len(dense) == 8
    model.save_pretrained(tmp_path / "packed")
    torch.testing.assert_close(logits(tmp_path / "packed"), logits(tmp_path / "out"), rtol=1e-4, atol=1e-4)
    unpack(model)
    for name, (module_type, weight) in dense.items():
        assert type(model.get_submodule(name)) is module_type
        assert torch.equal(model.get_submodule(name).weight, weight)


def test_a_tied_head_is_folded_once(tiny, text_file, tmp_path):
    source = tiny("gemma2", tie=True)
    prune(source, tmp_path / "out", text_file, method="eggs_paper")
    assert api.verify(tmp_path / "out", str(source)).failures == []
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_a_plan_states_that_a_family_is_missing(tiny):
    skeleton = load_skeleton(tiny("bloom"))
    cpu = torch.device("cpu")
    reader = CheckpointReader(skeleton.folder, ties=skeleton.ties)
    plan = make_plan(skeleton, reader, Recipe(method="eggs"), device=cpu, dtype=torch.float32)
    assert (plan.discovered, plan.permutation, plan.folds) == (True, "gather", False)
    assert plan.to_dict()["discovered"]


@pytest.mark.parametrize(("name", "skip_first"), [("mixtral", 0), ("qwen2_moe", 0), ("mixtral", 5)])
def test_experts_are_pruned_with_the_tokens_they_receive(tiny, tmp_path, name, skip_first):
    """Wanda computed directly from what transformers routes to the fused experts of block 1, with block 0 dense."""
    source = tiny(name)
    output = tmp_path / "out"
    tokens = torch.randint(0, 258, (4, 24), generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "windows.npy", tokens.numpy())
    spec = CalibrationSpec(text=str(tmp_path / "windows.npy"), skip_first=skip_first)
    api.prune(str(source), output, Recipe(method="wanda", exclude=("*.layers.0.*",), calibration=spec))
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    layer = model.model.layers[1].mlp
    calls = []
    layer.experts.register_forward_pre_hook(lambda _module, args: calls.append(args))
    with torch.no_grad():
        model(tokens, use_cache=False)
    hidden, routed_experts, _ = calls[0]
    records = {matrix["name"]: matrix for matrix in json.loads((output / "eggs.json").read_text())["matrices"]}
    after = load_file(output / "model.safetensors")
    starved = 0
    for linear in load_skeleton(source).family.linears:
        if not linear.routed:
            continue
        matrix = f"model.layers.1.{linear.path}"
        number = int(linear.path.split(".experts.")[1].split(".")[0])
        is_routed = (routed_experts == number).any(1)
        too_few = int(is_routed.sum()) < hidden.shape[1]
        starved += too_few
        counts = torch.arange(len(hidden)) % tokens.shape[1] >= skip_first
        x = hidden[counts if too_few else is_routed & counts]
        gate, up = (x @ layer.experts.gate_up_proj[number].T).chunk(2, dim=-1)
        x = layer.experts.act_fn(gate) * up if linear.input_activation.startswith("experts[") else x
        dense = load_file(source / "model.safetensors")[f"{matrix}.weight"]
        score = (dense.abs() * x.norm(dim=0)).view(len(dense), -1, 4)
        mask = score.argsort(-1).argsort(-1) >= 2
        assert torch.equal(after[f"{matrix}.weight"] != 0, mask.view_as(dense)), matrix
        assert (records[matrix]["tokens"], records[matrix]["all_tokens"]) == (len(x), too_few)
    assert starved < len(records)


@pytest.mark.parametrize("name", ["mixtral"])
def test_packed_experts_are_saved_and_loaded(tiny, tmp_path, name):
    api.prune(str(tiny(name)), tmp_path / "out", Recipe(method="magnitude"))
    export(tmp_path / "out", tmp_path / "packed", "packed")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(module, NMLinear) for module in model.modules()) == 32
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(tmp_path / "again"), logits(tmp_path / "out"), rtol=1e-4, atol=1e-4)


def test_experts_of_a_layer_are_packed_together_or_not_at_all(tiny, tmp_path):
    recipe = Recipe(method="magnitude", exclude=("*.layers.1.*.experts.2.w1", "*.layers.0.*"))
    api.prune(str(tiny("mixtral")), tmp_path / "out", recipe)
    message = r"layers\.1\.block_sparse_moe\.experts\.2\.w1 is not pruned, but other experts of its layer are"
    with pytest.raises(CheckpointError, match=message):
        export(tmp_path / "out", tmp_path / "packed", "packed")
    assert not (tmp_path / "packed").exists()


def fused(source, output):
    """The same model with the names and shapes that transformers 5 uses in memory."""
    shutil.copytree(source, output)
    layout = LAYOUTS[json.loads((source / "config.json").read_text())["model_type"]]
    tensors = load_file(source / "model.safetensors")
    for layer in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:

        def stacked(linear, layer=layer):
            names = (f"{layer}.experts.{number}.{linear}.weight" for number in range(len(tensors)))
            return torch.stack([tensors.pop(name) for name in names if name in tensors])

        tensors[f"{layer}.experts.gate_up_proj"] = torch.cat([stacked(layout.gate), stacked(layout.up)], dim=1)
        tensors[f"{layer}.experts.down_proj"] = stacked(layout.down)
    renamed = {name.replace(f".{layout.layer}.", ".mlp."): tensor for name, tensor in tensors.items()}
    save_file(renamed, output / "model.safetensors", {"format": "pt"})
    return output


@pytest.mark.parametrize("name", mostly_slow("qwen3_moe", "mixtral", "qwen2_moe", "olmoe"))
def test_fused_experts_are_pruned_like_separate_ones(tiny, text_file, tmp_path, name):
    source = fused(tiny(name), tmp_path / "fused")
    from_fused = tmp_path / "from-fused"
    from_separate = tmp_path / "from-separate"
    prune(source, from_fused, text_file, method="eggs")
    prune(tiny(name), from_separate, text_file, method="eggs")
    assert api.verify(from_fused, str(source)).failures == []
    assert api.verify(from_fused, str(tiny(name))).failures == []
    before = load_file(source / "model.safetensors")
    after = load_file(from_fused / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}
    assert before.keys() != load_file(tiny(name) / "model.safetensors").keys()
    read_separately = open_dense(from_fused)
    separate = load_file(from_separate / "model.safetensors")
    assert read_separately.names == sorted(separate)
    assert all(torch.equal(read_separately.read(tensor), separate[tensor]) for tensor in separate)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (from_fused, from_separate)]
    tokens = torch.arange(16)[None]
    assert torch.equal(*(model(tokens).logits for model in models))


def test_an_interrupted_run_on_fused_experts_resumes(tiny, tmp_path):
    source = fused(tiny("mixtral"), tmp_path / "fused")
    output = tmp_path / "out"
    uninterrupted = tmp_path / "uninterrupted"
    api.prune(str(source), uninterrupted, Recipe(method="magnitude"))

    def stop(event):
        if (event.kind, event.block) == ("block", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.prune(str(source), output, Recipe(method="magnitude"), journal=True, listener=stop)
    events = []
    api.prune(str(source), output, Recipe(method="magnitude"), journal=True, listener=events.append)
    assert any("resuming after block 1 of 2" in event.stage for event in events)
    assert (output / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_fused_experts_that_are_not_a_stack_of_matrices_are_refused(tiny, tmp_path):
    source = fused(tiny("mixtral"), tmp_path / "fused")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = torch.zeros(4, 32)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelError, match=r"1\.mlp\.experts\.gate_up_proj: expected a stack of matrices, .*\[4, 32\]"):
        api.prune(str(source), tmp_path / "out", Recipe(method="magnitude"))


def test_fused_experts_of_an_unknown_model_type_are_refused(tiny, tmp_path):
    source = fused(tiny("mixtral"), tmp_path / "fused")
    (source / "config.json").write_text((tiny("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match=r"experts\.\w+: fused experts are known for mixtral, .*, not for llama$"):
        api.prune(str(source), tmp_path / "out", Recipe(method="magnitude"))


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_training_keeps_zeros_of_transposed_and_fused_matrices(tiny, tmp_path, name):
    api.prune(str(tiny(name)), tmp_path / "out", Recipe(method="magnitude"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = {path: weight == 0 for path, weight in model.named_parameters() if weight.ndim > 1 and (weight == 0).any()}
    assert len(before) == {"gpt2": 8, "mixtral": 12}[name]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    model(torch.arange(24)[None], labels=torch.arange(24)[None]).loss.backward()
    optimizer.step()
    assert all(torch.equal(model.get_parameter(path) == 0, zeros) for path, zeros in before.items())


@pytest.mark.parametrize("method", ["eggs", "eggs-max"])
def test_a_checkpoint_without_its_head_keeps_its_names(tiny, text_file, tmp_path, method):
    """Like that of GPT-2 on the hub."""
    bare = shutil.copytree(tiny("gpt2", tie=True), tmp_path / "bare")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(bare / "model.safetensors").items()}
    save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    record = prune(bare, tmp_path / "out", text_file, method=method)
    assert record.matrices[0]["name"] == "h.0.attn.c_attn"
    assert record.permutations == "fold"
    assert api.verify(tmp_path / "out", str(bare)).failures == []
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()
    prune(tiny("gpt2", tie=True), tmp_path / "with-head", text_file, method="wanda")
    prune(bare, tmp_path / "without-head", text_file, method="wanda")
    assert torch.equal(logits(tmp_path / "with-head"), logits(tmp_path / "without-head"))
