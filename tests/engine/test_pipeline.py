"""The loop over blocks: statistics of a block are collected before it is pruned, after the pruned blocks before it."""

import hashlib
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.engine import pipeline
from eggs_ptp.engine.context import RunContext
from eggs_ptp.engine.event import ignore
from eggs_ptp.engine.permutations import find_permutations
from eggs_ptp.engine.pipeline import prune_blocks
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.plan import Budget
from eggs_ptp.engine.preparation import first_block_inputs
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.fold import Heads
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (8, 32), generator=torch.Generator().manual_seed(1))
METHODS = ["wanda", "ria_cp", "eggs_paper"]
CONSUMERS = {
    "attention_in": "self_attn.q_proj",
    "heads": "self_attn.o_proj",
    "mlp_in": "mlp.up_proj",
    "mlp": "mlp.down_proj",
}


class Result:
    """Everything that a run has produced."""

    def __init__(self, blocks, permutations=None):
        self.tensors = {name: tensor for block in blocks for name, tensor in block.tensors.items()}
        self.permutations = {
            name: permutation for block in blocks for name, permutation in block.permutations.items()
        } | (permutations or {})
        self.records = {record["name"]: record for block in blocks for record in block.records}

    def mask(self, name):
        return self.tensors[f"model.layers.{name}.weight"] != 0


def prune(folder, *, tokens=TOKENS, batch_tokens=2048, dtype=torch.float32, listener=ignore, **recipe):
    skeleton = load_skeleton(folder)
    reader = CheckpointReader(folder, ties=skeleton.ties)
    settings = Recipe(**recipe)
    plan = make_plan(skeleton, reader, settings, device=CPU, dtype=dtype)
    plan = replace(plan, budget=Budget(batch_tokens))
    windows = None if tokens is None else Windows(tokens, "here", "given", 0, tokens.numel())
    context = RunContext(
        plan=plan,
        skeleton=skeleton,
        reader=reader,
        seed=settings.seed,
        share_permutation=settings.share == "consumers",
        refresh_statistics=settings.calibration.statistics == "group",
        propagate_dense=settings.calibration.propagate == "dense",
        device=CPU,
        dtype=dtype,
        listener=listener,
    )
    blocks = []
    permutations = None
    if plan.folds:
        inputs = first_block_inputs(context, windows) if plan.permutes_model_first else None
        permutations = find_permutations(context, inputs)
    inputs = first_block_inputs(context, windows) if windows else None
    prune_blocks(context, inputs, permutations, lambda block, _dense: blocks.append(block))
    assert [block.index for block in blocks] == [0, 1]
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    return Result(blocks, permutations)


@pytest.fixture
def collected(monkeypatch):
    """The statistics collected for every block, in order."""
    statistics = []

    def recorded(*args, **kwargs):
        statistics.append(collect_statistics(*args, **kwargs))
        return statistics[-1]

    collect_statistics = pipeline.collect_statistics
    monkeypatch.setattr(pipeline, "collect_statistics", recorded)
    return statistics


def norms_in(folder, replaced=None):
    """Input norms of the linears of both blocks in transformers, with some weights replaced."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict(replaced or {}, strict=False)
    norms = {}
    for path in (f"{block}.{path}" for block in (0, 1) for path in CONSUMERS.values()):
        model.model.layers.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, path=path: norms.update({path: args[0].flatten(0, 1).double().square().mean(0).sqrt()})
        )
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    return norms


def first_block(result, *linears):
    """The pruned weights of block 0, of some linears or of all."""
    names = [f"model.layers.0.{linear}.weight" for linear in linears]
    return {n: t for n, t in result.tensors.items() if n in names or (not linears and n.startswith("model.layers.0."))}


def assert_norm(statistics, input_activation, expected):
    norm = statistics[input_activation].moments.read("input_norm", input_activation)
    torch.testing.assert_close(norm, expected.float(), rtol=1e-5, atol=1e-6)


SLIDING = {"use_sliding_window": True, "sliding_window": 8}
SOURCES = {
    "plain": ("llama", {}),
    "sliding": ("mistral", {"sliding_window": 8}),
    "mixed": ("qwen2", {**SLIDING, "max_window_layers": 1}),  # block 0 sees everything, block 1 a window
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("method", METHODS)
def test_a_block_sees_the_pruned_blocks_before_it(tiny, collected, method, source):
    model_type, changes = SOURCES[source]
    folder = tiny(model_type, **changes)
    result = prune(folder, method=method)
    dense, pruned = norms_in(folder), norms_in(folder, first_block(result))
    for input_activation, path in CONSUMERS.items():
        assert_norm(collected[0], input_activation, dense[f"0.{path}"])
        assert_norm(collected[1], input_activation, pruned[f"1.{path}"])
        assert not torch.allclose(pruned[f"1.{path}"], dense[f"1.{path}"], rtol=1e-3)


def test_statistics_may_be_collected_again_before_each_group(tiny, collected):
    folder = tiny("llama")
    result = prune(folder, method="wanda", calibration=CalibrationSpec(statistics="group"))
    done: list[str] = []
    for statistics, (input_activation, path) in zip(collected[:4], CONSUMERS.items(), strict=True):
        assert_norm(statistics, input_activation, norms_in(folder, first_block(result, *done, "none"))[f"0.{path}"])
        done += [
            linear.path
            for linear in load_skeleton(folder).family.linears
            if linear.input_activation == input_activation
        ]
    assert_norm(collected[4], "attention_in", norms_in(folder, first_block(result))["1.self_attn.q_proj"])


def test_blocks_may_be_fed_the_dense_models_hidden_states(tiny, collected):
    folder = tiny("llama")
    prune(folder, method="wanda", calibration=CalibrationSpec(propagate="dense"))
    dense = norms_in(folder)
    for block in (0, 1):
        for input_activation, path in CONSUMERS.items():
            assert_norm(collected[block], input_activation, dense[f"{block}.{path}"])


def test_skipping_the_first_block_changes_what_the_second_sees(tiny, collected):
    both = prune(tiny("llama"), method="wanda")
    second = prune(tiny("llama"), method="wanda", exclude=("*.layers.0.*",))
    assert len(collected) == 3  # no statistics are collected for a block that is skipped
    with_pruned, with_dense = collected[1]["mlp_in"].moments, collected[2]["mlp_in"].moments
    assert not torch.allclose(with_pruned.read("input_norm", ""), with_dense.read("input_norm", ""), rtol=1e-3)
    assert not torch.equal(both.mask("1.mlp.up_proj"), second.mask("1.mlp.up_proj"))


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_independent_of_the_batches(tiny, method):
    small, large = (prune(tiny("llama"), method=method, batch_tokens=tokens) for tokens in (64, 4096))
    for name in small.records:
        short = name.removeprefix("model.layers.")
        assert torch.equal(small.mask(short), large.mask(short)), name
    assert small.permutations.keys() == large.permutations.keys()
    for name, permutation in small.permutations.items():
        assert torch.equal(permutation, large.permutations[name])


@pytest.mark.parametrize("method", METHODS)
def test_skipping_a_matrix_leaves_the_others_of_its_block_as_they_were(tiny, method):
    folder = tiny("llama")
    apart = {"share": "matrix", "permutation": "gather"}
    whole = prune(folder, method=method, **apart)
    for skipped in ("self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj"):
        part = prune(folder, method=method, exclude=(f"*.1.{skipped}",), **apart)
        assert f"model.layers.1.{skipped}" not in part.records
        for name in part.records:
            assert torch.equal(part.tensors[f"{name}.weight"], whole.tensors[f"{name}.weight"]), name
    with_shared_orders = prune(folder, method="ria_cp", permutation="gather", exclude=("*.1.self_attn.k_proj",))
    other = prune(folder, method="ria_cp", permutation="gather").permutations["model.layers.1.self_attn.q_proj"]
    assert not torch.equal(with_shared_orders.permutations["model.layers.1.self_attn.q_proj"], other)


def test_consumers_of_one_activation_share_a_permutation_by_default(tiny):
    consumers = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    shared = prune(tiny("llama"), method="ria_cp", permutation="gather").permutations
    own = prune(tiny("llama"), method="ria_cp", permutation="gather", share="matrix").permutations
    assert all(torch.equal(shared[name], shared[consumers[0]]) for name in consumers)
    assert not any(torch.equal(own[name], own[consumers[0]]) for name in consumers[1:])
    assert shared[consumers[0]].dtype == torch.int32


def test_folded_permutations_are_those_of_the_spaces(tiny):
    result = prune(tiny("llama"), method="ria_cp")
    blocks = [f"model.layers.{i}.{space}" for i in (0, 1) for space in ("heads", "mlp")]
    assert result.permutations.keys() == {"residual", *blocks}
    widths = {name.rpartition(".")[2]: len(permutation) for name, permutation in result.permutations.items()}
    assert widths == {"residual": 32, "heads": 16, "mlp": 64}  # 2 key/value heads of 8
    assert all(record["permuted"] and record["in_order"] for record in result.records.values())
    apart = prune(tiny("llama"), method="ria_cp", permutation="gather")
    assert all(record["permuted"] and not record["in_order"] for record in apart.records.values())
    plain = prune(tiny("llama"), method="ria")
    assert all(record["in_order"] and not record["permuted"] for record in plain.records.values())
    assert not any(record["in_order"] for record in prune(tiny("llama"), method="ria", pattern="0.5").records.values())


def test_every_matrix_takes_the_permutation_of_its_space(tiny):
    """Also those whose method permutes nothing: otherwise they would not be N:M once the permutation is folded."""
    targets = ({"match": "*.k_proj", "method": "wanda"}, {"match": "*.up_proj", "method": "sparsegpt"})
    whole = prune(tiny("llama"), method="ria_cp", targets=targets, exclude=("*.1.self_attn.v_proj",))
    for name, record in whole.records.items():
        space = {"o_proj": "heads", "down_proj": "mlp"}.get(name.rpartition(".")[2], "residual")
        permutation = whole.permutations[
            space if space == "residual" else f"{name.rpartition('.')[0].rpartition('.')[0]}.{space}"
        ]
        permutation = Heads(4, 2, 8).spread(permutation.long()) if space == "heads" else permutation.long()
        kept = whole.tensors[f"{name}.weight"][:, permutation] != 0
        assert (kept.view(len(kept), -1, 4).sum(-1) == 2).all(), name
        assert record["permuted"]
        assert record["in_order"]
    assert "model.layers.1.self_attn.v_proj" not in whole.records


def test_the_same_seed_gives_the_same_tensors(tiny):
    one, two = (prune(tiny("qwen3"), method="eggs_paper") for _ in range(2))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())


def test_every_tensor_of_a_block_is_kept_in_its_stored_type(tiny):
    for dtype in (torch.float32, torch.bfloat16):
        folder = tiny("qwen2", dtype=torch.bfloat16)
        result = prune(folder, method="wanda", dtype=dtype, exclude=("*.o_proj",))
        stored = {k: v for k, v in load_file(folder / "model.safetensors").items() if ".layers." in k}
        assert result.tensors.keys() == stored.keys()
        for name, tensor in result.tensors.items():
            assert tensor.dtype == torch.bfloat16
            kept = tensor != 0 if name.removesuffix(".weight") in result.records else torch.ones_like(tensor) == 1
            assert torch.equal(tensor[kept], stored[name][kept])


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_the_source_is_not_written_to(tiny, tmp_path, method):
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    prune(folder, method=method, tokens=None if method == "magnitude" else TOKENS)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).digest() == before


def test_without_statistics_no_token_is_needed_and_no_block_is_run(tiny, collected):
    result = prune(tiny("llama"), method="magnitude", tokens=None)
    assert collected == []
    assert all(record["output_error"] is None for record in result.records.values())
    weight = load_file(tiny("llama") / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    largest = weight.abs().view(64, 8, 4).topk(2).indices
    expected = torch.zeros(64, 8, 4, dtype=torch.bool).scatter_(2, largest, True).view(64, 32)
    assert torch.equal(result.mask("1.mlp.up_proj"), expected)


def test_a_record_says_what_was_done(tiny):
    record = prune(tiny("llama"), method="eggs_paper").records["model.layers.1.mlp.up_proj"]
    expected = {
        "shape": [64, 32],
        "pattern": "2:4",
        "method": "eggs_paper",
        "density": 0.5,
        "permuted": True,
        "in_order": True,
        "updated": False,
        "B": 5,
        "diagonal_rows": 20,
    }
    assert expected.items() <= record.items()
    assert record["seconds"] > 0


@pytest.mark.parametrize("path", ["self_attn.k_proj", "mlp.down_proj"])
def test_the_output_error_is_that_of_the_dense_and_the_pruned_matrix(tiny, path):
    folder = tiny("llama")
    result = prune(folder, method="wanda")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = []
    model.get_submodule(f"model.layers.0.{path}").register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    x = inputs[0].flatten(0, 1).double()  # 256 tokens: all of them are in the sample
    dense = load_file(folder / "model.safetensors")[f"model.layers.0.{path}.weight"].double()
    pruned = result.tensors[f"model.layers.0.{path}.weight"].double()
    expected = (x @ (dense - pruned).T).square().sum() / (x @ dense.T).square().sum()
    assert result.records[f"model.layers.0.{path}"]["output_error"] == pytest.approx(float(expected), rel=1e-4)


def test_the_listener_is_notified_of_every_stage_and_matrix(tiny):
    events = []
    prune(tiny("llama"), method="wanda", listener=events.append, exclude=("*.0.mlp.up_proj",))
    assert [event.stage for event in events if event.kind == "stage"] == [
        "embedding",
        *("observe", "prune", "propagate"),
        *("observe", "prune"),
    ]
    assert [event.block for event in events if event.kind == "block"] == [1, 2]
    assert {event.blocks for event in events} == {2}
    records = [event.record["name"] for event in events if event.kind == "matrix"]
    assert len(records) == 13
    assert "model.layers.0.mlp.up_proj" not in records


@pytest.mark.parametrize("method", ["magnitude", "wanda", "eggs"])
@pytest.mark.parametrize("path", ["0.self_attn.v_proj", "0.mlp.up_proj", "1.mlp.down_proj"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(altered, method, path, value):
    def spoil(weight):
        weight[3, 5] = value
        return weight

    folder = altered(f"model.layers.{path}.weight", spoil)
    with pytest.raises(NumericsError, match=re.escape(f"model.layers.{path}: the weight holds NaN or infinity")):
        prune(folder, method=method, tokens=None if method == "magnitude" else TOKENS)


def test_activations_that_are_not_finite_are_named(altered):
    folder = altered("model.layers.1.input_layernorm.weight", lambda weight: weight * float("nan"))
    message = "model.layers.1.self_attn.q_proj: 32 of 32 entries of input_norm are NaN or infinite"
    with pytest.raises(NumericsError, match=re.escape(message)):
        prune(folder, method="wanda")


def test_activations_that_overflow_are_named(altered):
    folder = altered("model.layers.0.mlp.down_proj.weight", lambda weight: weight * 1e6)
    with pytest.raises(NumericsError, match=r"^model\.layers\.0: its outputs hold NaN or infinity; try"):
        prune(folder, method="wanda", dtype=torch.float16)
    prune(folder, method="wanda")


def test_embeddings_that_are_not_finite_are_named(altered):
    folder = altered("model.embed_tokens.weight", lambda weight: weight * float("inf"))
    with pytest.raises(NumericsError, match="the embeddings of the calibration tokens hold NaN or infinity"):
        prune(folder, method="wanda")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["dead channel", "empty row", "equal weights", "all zero"])
def test_degenerate_matrices_keep_exact_counts(altered, method, kind):
    def change(weight):
        if kind == "dead channel":
            weight[:, 7] = 0.0
        elif kind == "empty row":
            weight[7] = 0.0
        else:
            weight[:] = 1.0 if kind == "equal weights" else 0.0
        return weight

    folder = altered("model.layers.0.mlp.up_proj.weight", change)
    result = prune(folder, method=method)
    assert result.records["model.layers.0.mlp.up_proj"]["density"] == 0.5
    if kind == "equal weights":
        assert result.mask("0.mlp.up_proj").sum() == 64 * 16
