"""The whole product on every shape of model there is: pruned, verified, loaded by plain transformers, and packed."""

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
from eggs_ptp.engine.fused import open_dense
from eggs_ptp.engine.plan import plan_run
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, ModelError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.load import load_family, load_skeleton
from eggs_ptp.models.moe import LAYOUTS
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe
from eggs_ptp.sparse.convert import pack, unpack
from eggs_ptp.sparse.linear import NMLinear, is_transposed
from eggs_ptp.sparse.zeros import keep_zeros

WINDOWS = {"nsamples": 4, "seqlen": 32}


QUICK = ("opt-350m", "gpt2", "falcon-40b", "gemma3", "qwen2_moe", "bloom")


def some(*names):
    """All of them; those that others stand for in the quick suite are slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pruned(source, output, text, **changes):
    asked = Recipe(calibration=CalibrationSpec(text=str(text), **(WINDOWS if text.suffix == ".txt" else {})), **changes)
    return api.prune(str(source), output, asked)


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(48).view(2, 24), use_cache=False).logits


def linears(skeleton):
    """Every prunable matrix by its name."""
    return {
        f"{skeleton.block_name(index)}.{linear.path}": linear
        for index in range(len(skeleton.blocks))
        for linear in skeleton.of_block(index).linears
    }


@pytest.mark.parametrize("name", some(*OTHERS, *MIXTURES, *UNKNOWN))
def test_pruned_verified_loaded_generating_and_packed(tiny, text_file, tmp_path, name):
    source, output = tiny(name), tmp_path / "out"
    record = pruned(source, output, text_file, method="eggs+")
    assert api.verify(output, str(source)).failures == []
    skeleton = load_skeleton(source)
    expected = linears(skeleton)
    assert sorted(matrix["name"] for matrix in record.matrices) == sorted(expected)
    assert record.orders == ("gather" if name in UNKNOWN else "fold")
    before, after = load_file(source / "model.safetensors"), load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    orders = load_file(output / "eggs" / "orders.safetensors")
    for matrix, linear in expected.items():
        weight = after[f"{matrix}.weight"]
        assert weight.dtype == before[f"{matrix}.weight"].dtype
        kept = (weight.T if linear.transposed else weight) != 0
        if name in UNKNOWN:
            kept = kept[:, orders[matrix].long()]
        assert (kept.reshape(len(kept), -1, 4).sum(-1) == 2).all(), matrix
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    prompt = AutoTokenizer.from_pretrained(output)("Line 3", return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=257)
    assert written.shape[1] == prompt["input_ids"].shape[1] + 4
    export(output, tmp_path / "packed", "packed")
    torch.testing.assert_close(logits(tmp_path / "packed"), logits(output), rtol=1e-4, atol=1e-4)
    export(tmp_path / "packed", tmp_path / "dense", "dense")
    again = load_file(tmp_path / "dense" / "model.safetensors")
    assert again.keys() == after.keys()
    assert all(torch.equal(again[tensor], after[tensor]) for tensor in after)


@pytest.mark.parametrize("name", some(*OTHERS, *MIXTURES))
def test_a_folded_model_computes_what_the_same_one_unfolded_does(tiny, text_file, tmp_path, name):
    source, output = tiny(name), tmp_path / "out"
    pruned(source, output, text_file, method="eggs")
    fold = Fold(*load_family(source), load_file(output / "eggs" / "orders.safetensors"))
    copy = shutil.copytree(output, tmp_path / "unfolded")
    tensors = {name: fold.undo(name, t).contiguous() for name, t in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(output), logits(copy), rtol=1e-4, atol=1e-4)
    assert (logits(copy) - logits(source)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("gpt_neox", "gpt_neox.layers.{}.attention"),
        ("gpt2", "transformer.h.{}.attn"),
        ("gptj", "transformer.h.{}.attn"),
    ],
)
def test_causal_masks_of_old_checkpoints_are_taken_over(tiny, text_file, tmp_path, name, place):
    source, output = shutil.copytree(tiny(name), tmp_path / "source"), tmp_path / "out"
    masks = {}
    for block, dtype in enumerate((torch.bool, torch.uint8)):
        masks[f"{place.format(block)}.bias"] = torch.ones(128, 128).tril()[None, None].to(dtype)
        masks[f"{place.format(block)}.masked_bias"] = torch.tensor(-1e9).half()  # infinite
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, **masks}, source / "model.safetensors", {"format": "pt"})
    pruned(source, output, text_file, method="eggs")
    assert api.verify(output, str(source)).ok
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    export(output, tmp_path / "packed", "packed")
    model, _ = api.load(tmp_path / "packed")
    with torch.no_grad():
        packed = model(torch.arange(48).view(2, 24), use_cache=False).logits
    torch.testing.assert_close(packed, logits(output), rtol=1e-4, atol=1e-4)


def test_masks_of_transposed_matrices_go_out_and_in_again(tiny, text_file, tmp_path):
    source = tiny("gpt2")
    pruned(source, tmp_path / "first", text_file, method="wanda", pattern="4:8")
    assert api.export_masks(tmp_path / "first", tmp_path / "masks.safetensors") == 8
    masks = str(tmp_path / "masks.safetensors")
    pruned(source, tmp_path / "second", text_file, method="magnitude", pattern="4:8", mask=masks)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_packed_model_of_transposed_matrices_is_saved_loaded_and_made_dense(tiny, tmp_path):
    api.prune(str(tiny("gpt2")), tmp_path / "out", Recipe(method="magnitude"))
    export(tmp_path / "out", tmp_path / "packed", "packed", values="int8")
    export(tmp_path / "packed", tmp_path / "dense", "dense")
    assert api.verify(tmp_path / "packed").failures == []
    block = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert (block["format"], len(block["transposed"])) == (3, 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(module, NMLinear) for module in model.modules()) == 8
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(tmp_path / "again"), logits(tmp_path / "dense"), rtol=1e-4, atol=1e-4)
    restored = model.dequantize().state_dict()
    before = load_file(tmp_path / "dense" / "model.safetensors")
    assert all(torch.equal(restored[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("claimed", [[], ["transformer.h.0.attn.c_attn"]])
def test_a_folder_that_lies_about_what_is_transposed_is_refused(tiny, tmp_path, claimed):
    api.prune(str(tiny("gpt2")), tmp_path / "out", Recipe(method="magnitude"))
    export(tmp_path / "out", tmp_path / "packed", "packed")
    change_packed(tmp_path / "packed", transposed=claimed)
    with pytest.raises(CheckpointError, match=r"one of those stored as \(in, out\) .*transposed says otherwise"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


def test_a_model_of_transposed_matrices_is_packed_in_memory_and_back(tiny, tmp_path):
    api.prune(str(tiny("gpt2")), tmp_path / "out", Recipe(method="magnitude"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    dense = {name: (type(module), module.weight) for name, module in model.named_modules() if is_transposed(module)}
    pack(model)
    assert sum(isinstance(module, NMLinear) for module in model.modules()) == len(dense) == 8
    model.save_pretrained(tmp_path / "packed")
    torch.testing.assert_close(logits(tmp_path / "packed"), logits(tmp_path / "out"), rtol=1e-4, atol=1e-4)
    unpack(model)
    for name, (kind, weight) in dense.items():
        assert type(model.get_submodule(name)) is kind
        assert torch.equal(model.get_submodule(name).weight, weight)


def test_a_tied_head_is_folded_once(tiny, text_file, tmp_path):
    source = tiny("gemma2", tie=True)
    pruned(source, tmp_path / "out", text_file, method="eggs_paper")
    assert api.verify(tmp_path / "out", str(source)).failures == []
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_a_plan_says_that_a_family_is_missing(tiny):
    skeleton = load_skeleton(tiny("bloom"))
    cpu = torch.device("cpu")
    shards = Shards(skeleton.folder, ties=skeleton.ties)
    plan = plan_run(skeleton, shards, Recipe(method="eggs"), device=cpu, dtype=torch.float32)
    assert (plan.discovered, plan.orders, plan.folds) == (True, "gather", False)
    assert plan.to_dict()["discovered"]


@pytest.mark.parametrize(("name", "skip_first"), [("mixtral", 0), ("qwen2_moe", 0), ("mixtral", 5)])
def test_experts_are_judged_by_the_tokens_they_are_sent(tiny, tmp_path, name, skip_first):
    """Wanda by hand, from what plain transformers sends to the fused experts of block 1, block 0 being left dense."""
    source, output = tiny(name), tmp_path / "out"
    tokens = torch.randint(0, 258, (4, 24), generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "windows.npy", tokens.numpy())
    spec = CalibrationSpec(text=str(tmp_path / "windows.npy"), skip_first=skip_first)
    api.prune(str(source), output, Recipe(method="wanda", exclude=("*.layers.0.*",), calibration=spec))
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    layer = model.model.layers[1].mlp
    seen = []
    layer.experts.register_forward_pre_hook(lambda _m, args: seen.append(args))
    with torch.no_grad():
        model(tokens, use_cache=False)
    hidden, chosen, _ = seen[0]
    records = {one["name"]: one for one in json.loads((output / "eggs.json").read_text())["matrices"]}
    after = load_file(output / "model.safetensors")
    starved = 0
    for linear in load_skeleton(source).family.linears:
        if not linear.routed:
            continue
        matrix = f"model.layers.1.{linear.path}"
        number = int(linear.path.split(".experts.")[1].split(".")[0])
        mine = (chosen == number).any(1)
        too_few = int(mine.sum()) < hidden.shape[1]
        starved += too_few
        counted = torch.arange(len(hidden)) % tokens.shape[1] >= skip_first
        x = hidden[counted if too_few else mine & counted]
        gate, up = (x @ layer.experts.gate_up_proj[number].T).chunk(2, dim=-1)
        x = layer.experts.act_fn(gate) * up if linear.reads.startswith("experts[") else x
        dense = load_file(source / "model.safetensors")[f"{matrix}.weight"]
        score = (dense.abs() * x.norm(dim=0)).view(len(dense), -1, 4)
        kept = score.argsort(-1).argsort(-1) >= 2
        assert torch.equal(after[f"{matrix}.weight"] != 0, kept.view_as(dense)), matrix
        assert (records[matrix]["tokens"], records[matrix]["all_tokens"]) == (len(x), too_few)
    assert starved < len(records)


@pytest.mark.parametrize("name", ["mixtral"])
def test_packed_experts_are_saved_and_loaded_again(tiny, tmp_path, name):
    api.prune(str(tiny(name)), tmp_path / "out", Recipe(method="magnitude"))
    export(tmp_path / "out", tmp_path / "packed", "packed")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(module, NMLinear) for module in model.modules()) == 32
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(tmp_path / "again"), logits(tmp_path / "out"), rtol=1e-4, atol=1e-4)


def test_a_layer_of_experts_is_packed_whole_or_not_at_all(tiny, tmp_path):
    recipe = Recipe(method="magnitude", exclude=("*.layers.1.*.experts.2.w1", "*.layers.0.*"))
    api.prune(str(tiny("mixtral")), tmp_path / "out", recipe)
    message = r"layers\.1\.block_sparse_moe\.experts\.2\.w1 is not pruned, but other experts of its layer are"
    with pytest.raises(CheckpointError, match=message):
        export(tmp_path / "out", tmp_path / "packed", "packed")
    assert not (tmp_path / "packed").exists()


def fused(source, output):
    """The same model by the names and shapes that transformers 5 has for it in memory."""
    shutil.copytree(source, output)
    layout = LAYOUTS[json.loads((source / "config.json").read_text())["model_type"]]
    tensors = load_file(source / "model.safetensors")
    for layer in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:

        def each(part, layer=layer):
            names = (f"{layer}.experts.{number}.{part}.weight" for number in range(len(tensors)))
            return torch.stack([tensors.pop(name) for name in names if name in tensors])

        tensors[f"{layer}.experts.gate_up_proj"] = torch.cat([each(layout.gate), each(layout.up)], dim=1)
        tensors[f"{layer}.experts.down_proj"] = each(layout.down)
    renamed = {name.replace(f".{layout.layer}.", ".mlp."): tensor for name, tensor in tensors.items()}
    save_file(renamed, output / "model.safetensors", {"format": "pt"})
    return output


@pytest.mark.parametrize("name", some("qwen3_moe", "mixtral", "qwen2_moe", "olmoe"))
def test_experts_that_are_stored_fused_are_pruned_as_those_of_their_own_are(tiny, text_file, tmp_path, name):
    source = fused(tiny(name), tmp_path / "fused")
    first, second = tmp_path / "first", tmp_path / "second"
    pruned(source, first, text_file, method="eggs")
    pruned(tiny(name), second, text_file, method="eggs")
    assert api.verify(first, str(source)).failures == []
    assert api.verify(first, str(tiny(name))).failures == []
    as_stored, one = (load_file(folder / "model.safetensors") for folder in (source, first))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in as_stored.items()}
    assert as_stored.keys() != load_file(tiny(name) / "model.safetensors").keys()
    separate, other = open_dense(first), load_file(second / "model.safetensors")
    assert separate.names == sorted(other)
    assert all(torch.equal(separate.read(tensor), other[tensor]) for tensor in other)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (first, second)]
    tokens = torch.arange(16)[None]
    assert torch.equal(*(model(tokens).logits for model in models))


def test_a_run_on_fused_experts_goes_on_where_it_was(tiny, tmp_path):
    source, output = fused(tiny("mixtral"), tmp_path / "fused"), tmp_path / "out"
    api.prune(str(source), tmp_path / "whole", Recipe(method="magnitude"))

    def stop(event):
        if (event.kind, event.block) == ("block", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.prune(str(source), output, Recipe(method="magnitude"), journal=True, listener=stop)
    said = []
    api.prune(str(source), output, Recipe(method="magnitude"), journal=True, listener=said.append)
    assert any("Going on behind block 1 of 2" in event.stage for event in said)
    one, other = (folder / "model.safetensors" for folder in (output, tmp_path / "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_a_folder_whose_fused_experts_are_no_stack_of_matrices_is_refused(tiny, tmp_path):
    source = fused(tiny("mixtral"), tmp_path / "fused")
    tensors = load_file(source / "model.safetensors")
    broken = {**tensors, "model.layers.1.mlp.experts.gate_up_proj": torch.zeros(4, 32)}
    save_file(broken, source / "model.safetensors")
    with pytest.raises(ModelError, match=r"1\.mlp\.experts\.gate_up_proj: expected a stack of matrices, .*\[4, 32\]"):
        api.prune(str(source), tmp_path / "out", Recipe(method="magnitude"))


def test_fused_experts_of_a_model_type_without_names_for_them_are_refused(tiny, tmp_path):
    source = fused(tiny("mixtral"), tmp_path / "fused")
    (source / "config.json").write_text((tiny("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match=r"experts\.\w+: of fused experts only those of mixtral, .* of llama$"):
        api.prune(str(source), tmp_path / "out", Recipe(method="magnitude"))


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_training_keeps_zeros_of_every_shape(tiny, tmp_path, name):
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
    """As that of GPT-2 on the hub."""
    bare = shutil.copytree(tiny("gpt2", tie=True), tmp_path / "bare")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(bare / "model.safetensors").items()}
    save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    record = pruned(bare, tmp_path / "out", text_file, method=method)
    assert record.matrices[0]["name"] == "h.0.attn.c_attn"
    assert record.orders == "fold"
    assert api.verify(tmp_path / "out", str(bare)).failures == []
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()
    whole = shutil.copytree(tiny("gpt2", tie=True), tmp_path / "whole")
    pruned(whole, tmp_path / "same", text_file, method="wanda")
    pruned(bare, tmp_path / "other", text_file, method="wanda")
    assert torch.equal(logits(tmp_path / "same"), logits(tmp_path / "other"))
