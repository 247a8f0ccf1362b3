"""The whole product on tiny models: every method, family and pattern, up to a folder that transformers loads."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer

from eggs_ptp import api
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

SOURCES = {
    "untied-float32": {"tie": False, "dtype": torch.float32},
    "tied-float32": {"tie": True, "dtype": torch.float32},
    "untied-bfloat16": {"tie": False, "dtype": torch.bfloat16},
    "tied-bfloat16": {"tie": True, "dtype": torch.bfloat16},
    "sharded": {"shard_size": "40KB"},
}
PATTERNS = ["4:8", "1:4", "0.5"]


def supports(method, pattern):
    """Whether every step of a method is defined for this kind of pattern."""
    pattern_types = [step.patterns for step in METHODS[method].bind().steps.values()]
    return all(types is None or isinstance(parse_pattern(pattern), types) for types in pattern_types)


def recipe(text, **changes):
    return Recipe(calibration=CalibrationSpec(text=str(text), nsamples=4, seqlen=32), **changes)


def read(folder):
    """Return all tensors of a folder, read by the safetensors library."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return tensors


def kept_counts(mask, pattern, method):
    """Return the number of weights kept in every comparison group, and the expected number."""
    if isinstance(pattern, Pattern):
        return mask.view(len(mask), -1, pattern.group).sum(-1), pattern.keep
    select = METHODS[method].bind().steps.get("select")
    if select and select.name == "cumulative":  # its count is approximate, in any comparison group
        return (mask.float().mean() - 0.5).abs() < 0.01, True
    if select and select.options.get("group") == "row":
        return mask.sum(1), mask.shape[1] // 2
    return mask.sum(), mask.numel() // 2


def check(source, output, method, pattern):
    """Check everything that must hold for a pruned folder, independently of the code that wrote it."""
    before = read(source)
    after = read(output)
    permutations = read(output / "eggs") if (output / "eggs").exists() else {}
    assert before.keys() == after.keys()
    pruned = {name for name in before if name.endswith("proj.weight")}
    assert len(pruned) == 14
    blocks = [f"model.layers.{index}.{space}" for index in (0, 1) for space in ("heads", "mlp")]
    assert permutations.keys() == ({"residual", *blocks} if "permute" in METHODS[method].steps else set())
    for name, dense in before.items():
        weight = after[name]
        assert weight.dtype == dense.dtype
        if name in pruned:  # in the columns as stored
            counts, expected = kept_counts(weight != 0, pattern, method)
            assert (counts == expected).all(), name
            assert not torch.signbit(weight[weight == 0]).any()
        weight = unfolded(name, weight, permutations)
        if name not in pruned:
            assert torch.equal(weight, dense), name
        elif "update" not in METHODS[method].steps:
            assert torch.equal(weight[weight != 0], dense[weight != 0])


OUTPUT_SPACES = {"o": "residual", "down": "residual", "v": "heads", "gate": "mlp", "up": "mlp"}
INPUT_SPACES = {"o": "heads", "down": "mlp"}


def unfolded(name, weight, permutations):
    """Return a tensor of a folded Llama in the channel order of the source, computed step by step."""
    if not permutations:
        return weight
    block, _, path = name.removeprefix("model.layers.").partition(".")
    kind = path.split(".")[1].removesuffix("_proj") if "proj" in path else None
    if "q_norm" in name or "k_norm" in name or (path.endswith("bias") and kind in "qk"):
        return weight
    inner = f"model.layers.{block}."
    rows = OUTPUT_SPACES.get(kind, "" if kind else None)
    rows = {"residual": "residual", "": "", None: ""}.get(rows, f"{inner}{rows}")
    columns = f"{inner}{INPUT_SPACES[kind]}" if kind in INPUT_SPACES else "residual"
    result = weight.clone()
    if weight.dim() == 1:
        result[permutations[rows or "residual"].long()] = weight
        return result
    permutation = permutations[columns].long()
    if kind == "o":  # 4 query heads of 8 on 2 key/value heads
        permutation = torch.cat([permutation[head // 2 * 8 : head // 2 * 8 + 8] % 8 + head * 8 for head in range(4)])
    result[:, permutation] = weight
    if rows:
        weight = result.clone()
        result[permutations[rows].long()] = weight
    return result


def check_runs(output, tensors):
    """Check that transformers loads the folder with these tensors, and generates."""
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    tied = model.config.tie_word_embeddings
    assert torch.equal(loaded["lm_head.weight"], loaded["model.embed_tokens.weight"]) == tied
    prompt = AutoTokenizer.from_pretrained(output)("Line 3", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=257)
    assert generated.shape[1] > prompt["input_ids"].shape[1]


def prune_and_check(source, text, output, method, pattern):
    api.prune(str(source), output, recipe(text, method=method, pattern=pattern))
    assert api.verify(output, str(source)).failures == []
    check(source, output, method, parse_pattern(pattern))
    check_runs(output, read(output))


@pytest.mark.parametrize("family", list(zip(FAMILIES, SOURCES, strict=False)), ids="-".join)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_every_family(tiny, text_file, tmp_path, method, family):
    model_type, source = family
    pattern = "2:4" if supports(method, "2:4") else "0.5"
    prune_and_check(tiny(model_type, **SOURCES[source]), text_file, tmp_path / "out", method, pattern)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_kind_of_checkpoint_is_pruned(tiny, text_file, tmp_path, model_type, source):
    prune_and_check(tiny(model_type, **SOURCES[source]), text_file, tmp_path / "out", "eggs_paper", "2:4")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_supports_every_pattern_or_refuses_it(tiny, text_file, tmp_path, method, pattern):
    if supports(method, pattern):
        prune_and_check(tiny(), text_file, tmp_path / "out", method, pattern)
        return
    expected = "an N:M pattern such as 2:4" if pattern == "0.5" else "a sparsity such as 0.5"
    message = re.escape(f"of method '{method}' needs {expected}, not {pattern}")
    with pytest.raises(PatternError, match=f"q_proj: .* {message}"):
        api.prune(str(tiny()), tmp_path / "out", recipe(text_file, method=method, pattern=pattern))
    assert list(tmp_path.iterdir()) == []


def test_there_are_methods_of_both_kinds():
    kinds = {(supports(method, "2:4"), supports(method, "0.5")) for method in METHODS}
    assert {(True, True), (True, False)} <= kinds
    assert (False, False) not in kinds


@pytest.mark.parametrize("share", ["consumers", "matrix"])
def test_eggs_without_blocks_is_ria_with_the_same_permutation(tiny, text_file, tmp_path, share):
    settings = {"share": share, "permutation": "fold" if share == "consumers" else "gather"}
    without_blocks = recipe(
        text_file, method="eggs_paper", steps={"select": {"B": 0}, "permute": {"assign": True}}, **settings
    )
    api.prune(str(tiny()), tmp_path / "eggs", without_blocks)
    api.prune(str(tiny()), tmp_path / "ria_cp", recipe(text_file, method="ria_cp", **settings))
    for file in ("model.safetensors", "eggs/orders.safetensors"):
        assert (tmp_path / "eggs" / file).read_bytes() == (tmp_path / "ria_cp" / file).read_bytes()


@pytest.mark.parametrize("method", ["wanda", "eggs_paper"])
def test_the_same_seed_gives_the_same_bytes(tiny, text_file, tmp_path, method):
    def digests(output, seed):
        api.prune(str(tiny()), output, recipe(text_file, method=method, seed=seed))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in output.rglob("*.safetensors")}

    first = digests(tmp_path / "first", 0)
    assert digests(tmp_path / "second", 0) == first
    assert digests(tmp_path / "other", 1) != first  # other calibration windows


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(48).view(2, 24), use_cache=False).logits


@pytest.mark.parametrize("source", ["untied-float32", "tied-bfloat16"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_folded_model_computes_the_same_as_unfolded(tiny, text_file, tmp_path, model_type, source):
    folder = tiny(model_type, **SOURCES[source])
    api.prune(str(folder), tmp_path / "out", recipe(text_file, method="eggs"))
    permutations = read(tmp_path / "out" / "eggs")
    copy = shutil.copytree(tmp_path / "out", tmp_path / "unfolded")
    tensors = {name: unfolded(name, tensor, permutations) for name, tensor in read(copy).items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(tmp_path / "out"), logits(copy), rtol=1e-4, atol=1e-4)
    assert (logits(copy) - logits(folder)).abs().max() > 0.1


@pytest.mark.parametrize("permutation", ["gather", "mask"])
def test_permutations_that_are_not_folded_leave_weights_in_the_source_order(tiny, text_file, tmp_path, permutation):
    api.prune(str(tiny()), tmp_path / "out", recipe(text_file, method="ria_cp", permutation=permutation))
    assert api.verify(tmp_path / "out", str(tiny())).ok
    before, after, stored = read(tiny()), read(tmp_path / "out"), read(tmp_path / "out" / "eggs")
    assert json.loads((tmp_path / "out" / "eggs.json").read_text())["orders"] == permutation
    assert len(stored) == 14
    for name, dense in before.items():
        weight = after[name]
        assert torch.equal(weight[weight != 0], dense[weight != 0])
        if name.removesuffix(".weight") in stored:
            columns = stored[name.removesuffix(".weight")].long()
            assert ((weight[:, columns] != 0).view(len(weight), -1, 4).sum(-1) == 2).all()


def test_permutations_of_different_patterns_and_methods_are_folded_together(tiny, text_file, tmp_path):
    targets = (
        {"match": "*.q_proj", "pattern": "1:4"},
        {"match": "*.0.mlp.*", "pattern": "4:8"},
        {"match": "*.k_proj", "method": "wanda"},
        {"match": "*.v_proj", "pattern": "0.5", "method": "magnitude"},
    )
    api.prune(str(tiny()), tmp_path / "out", recipe(text_file, method="ria_cp", targets=targets))
    assert api.verify(tmp_path / "out", str(tiny())).failures == []
    after = read(tmp_path / "out")
    for matrix in json.loads((tmp_path / "out" / "eggs.json").read_text())["matrices"]:
        assert matrix["in_order"] == matrix["permuted"] == (matrix["pattern"] != "0.5")
        if matrix["in_order"]:
            pattern = parse_pattern(matrix["pattern"])
            mask = after[f"{matrix['name']}.weight"] != 0
            assert (mask.view(len(mask), -1, pattern.group).sum(-1) == pattern.keep).all()


def test_magnitude_needs_no_text(tiny, tmp_path):
    record = api.prune(str(tiny()), tmp_path / "out", Recipe(method="magnitude"))
    assert record.calibration is None
    assert api.verify(tmp_path / "out", str(tiny())).ok


def test_excluded_matrices_stay_dense_and_target_rules_apply(tiny, text_file, tmp_path):
    settings = recipe(
        text_file,
        method="eggs_paper",
        exclude=("*.layers.0.*",),
        targets=(
            {"match": "*.down_proj", "pattern": "4:8", "method": "wanda"},
            {"match": "*.o_proj", "skip": True},
            {"match": "*.q_proj", "pattern": "1:4"},
        ),
        permutation="gather",
    )
    api.prune(str(tiny()), tmp_path / "out", settings)
    assert api.verify(tmp_path / "out", str(tiny())).ok
    before, after = read(tiny()), read(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    kinds = ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up", "mlp.down")
    assert changed == {f"model.layers.1.{kind}_proj.weight" for kind in kinds}
    assert (after["model.layers.1.self_attn.q_proj.weight"] != 0).float().mean() == 0.25
    assert ((after["model.layers.1.mlp.down_proj.weight"] != 0).view(32, 8, 8).sum(-1) == 4).all()


def test_a_pruned_folder_can_be_pruned_again(tiny, text_file, tmp_path):
    api.prune(str(tiny()), tmp_path / "first", recipe(text_file, method="wanda"))
    api.prune(str(tmp_path / "first"), tmp_path / "second", recipe(text_file, method="wanda", pattern="1:4"))
    assert api.verify(tmp_path / "second", str(tmp_path / "first")).ok
    assert json.loads((tmp_path / "second" / "eggs.json").read_text())["recipe"]["pattern"] == "1:4"
    mask = read(tmp_path / "second")["model.layers.0.mlp.up_proj.weight"] != 0
    assert mask.float().mean() == 0.25


def test_a_moved_folder_still_verifies(tiny, text_file, tmp_path):
    api.prune(str(tiny()), tmp_path / "out", recipe(text_file, method="eggs_paper"))
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert api.verify(moved, str(tiny())).ok
    assert str(tmp_path) not in (moved / "README.md").read_text()
