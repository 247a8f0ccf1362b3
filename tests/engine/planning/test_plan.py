"""Plans: what happens to every matrix, decided before any weight is read."""

import json
import re
import shutil

import pytest
import torch
from tiny import FAMILIES
from torch import nn

from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.plan import matrices_by_activation
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import ModelError, PatternError, RecipeError
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe, TargetRule

CPU = torch.device("cpu")


@pytest.fixture
def planned(tiny):
    """`planned("llama", method="ria")`: the plan of a recipe for a tiny model."""

    def plan(model_type="llama", *, source=None, alter=None, **recipe):
        folder = tiny(model_type, **(source or {}))
        skeleton = load_skeleton(folder)
        if alter:
            alter(skeleton)
        reader = CheckpointReader(folder, ties=skeleton.ties)
        return make_plan(skeleton, reader, Recipe(**recipe), device=CPU, dtype=torch.float32)

    return plan


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_linear_of_every_block_is_planned(planned, model_type):
    plan = planned(model_type)
    assert (plan.model_type, plan.blocks, plan.device, plan.dtype) == (model_type, 2, "cpu", "float32")
    shapes = {"q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32), "gate": (64, 32), "up": (64, 32)}
    for matrix in plan.matrices:
        kind = matrix.name.split(".")[-1].removesuffix("_proj")
        assert (matrix.rows, matrix.columns) == shapes.get(kind, (32, 64))
        assert str(matrix.resolved.pattern) == "2:4"
        assert matrix.resolved.method.method.name == "eggs+"
        assert matrix.skipped is None
    assert [matrix.block for matrix in plan.matrices] == [0] * 7 + [1] * 7
    assert plan.of_block(1)[0].name == "model.layers.1.self_attn.q_proj"


def test_matrices_that_read_one_activation_are_grouped(planned):
    plan = planned(exclude=("*.k_proj", "*.o_proj"))
    groups = matrices_by_activation(plan.of_block(0))
    paths = {
        input_activation: [matrix.path.split(".")[1] for matrix in matrices]
        for input_activation, matrices in groups.items()
    }
    assert paths == {
        "attention_in": ["q_proj", "v_proj"],
        "mlp_in": ["gate_proj", "up_proj"],
        "mlp": ["down_proj"],
    }


def test_rules_decide_and_reasons_are_given(planned):
    plan = planned(
        exclude=("*.0.mlp.*",),
        targets=(
            TargetRule(match="*.down_proj", pattern="4:8", method="wanda"),
            TargetRule(match="*.o_proj", skip=True),
        ),
    )
    fates = {m.name.removeprefix("model.layers."): m for m in plan.matrices}
    assert fates["0.mlp.up_proj"].skipped == "excluded by '*.0.mlp.*'"
    assert fates["1.self_attn.o_proj"].skipped == "skipped by targets[1] '*.o_proj'"
    assert str(fates["1.mlp.down_proj"].resolved.pattern) == "4:8"
    assert fates["1.mlp.down_proj"].resolved.method.method.name == "wanda"
    assert str(fates["1.mlp.up_proj"].resolved.pattern) == "2:4"


def test_a_plan_is_plain_data(planned):
    plan = planned(exclude=("*.1.*",), calibration=CalibrationSpec(text="a.txt", nsamples=3, seqlen=64))
    data = json.loads(json.dumps(plan.to_dict()))
    assert (data["nsamples"], data["seqlen"], data["calibration"]) == (3, 64, "a.txt")
    assert data["matrices"][0] == {
        "name": "model.layers.0.self_attn.q_proj",
        "shape": [32, 32],
        "input_activation": "attention_in",
        "pattern": "2:4",
        "method": "eggs+",
        "statistics": ["cross", "gram", "input_norm", "tokens"],
        "skipped": None,
    }
    assert data["matrices"][-1]["skipped"] == "excluded by '*.1.*'"
    assert data["matrices"][-1]["pattern"] is None


def test_a_plan_without_statistics_needs_no_calibration(planned):
    plan = planned(method="magnitude")
    assert not plan.needs_calibration
    assert (plan.to_dict()["nsamples"], plan.seconds) == (0, 0.0)
    assert planned(method="wanda").needs_calibration
    assert not planned(targets=(TargetRule(match="*", method="ri"),)).needs_calibration


def test_windows_are_as_long_as_the_context_unless_asked(planned):
    assert planned().seqlen == 128
    assert planned(calibration=CalibrationSpec(seqlen=32)).seqlen == 32
    with pytest.raises(RecipeError, match="seqlen 129 is longer than the model's context of 128 tokens"):
        planned(calibration=CalibrationSpec(seqlen=129))


def test_estimates_grow_with_the_work(planned):
    small, large = (planned(method="eggs", calibration=CalibrationSpec(text="demo", nsamples=n)) for n in (80, 160))
    assert large.memory_bytes - small.memory_bytes == 80 * 128 * 32 * 4  # 80 more windows of hidden states
    assert 0 < small.seconds < large.seconds
    larger = planned(method="eggs", calibration=CalibrationSpec(text="demo", nsamples=240))
    assert larger.seconds - large.seconds == pytest.approx(large.seconds - small.seconds)
    assert small.seconds <= small.processor_seconds
    assert 0 < planned(method="magnitude").memory_bytes < small.memory_bytes


def test_no_weight_is_read(planned, monkeypatch):
    monkeypatch.setattr(CheckpointReader, "read", lambda self, name: pytest.fail(f"{name} was read"))
    planned(targets=(TargetRule(match="*.up_proj", pattern="1:4"),))


def test_a_width_that_the_pattern_does_not_divide_is_named(planned):
    message = (
        "model.layers.0.mlp.down_proj: 60 input features cannot be cut into groups of 8 for pattern 4:8; "
        "skip it (--exclude 'model.layers.0.mlp.down_proj', or a [[targets]] rule with skip = true) or give it another"
    )
    odd = {"intermediate_size": 60}
    with pytest.raises(PatternError, match=re.escape(message)):
        planned(source=odd, pattern="4:8")
    planned(source=odd, pattern="4:8", exclude=("*.down_proj",))
    planned(source=odd, pattern="2:4")


@pytest.mark.parametrize("method", ["ria_cp", "eggs"])
def test_an_unstructured_pattern_is_refused_where_groups_are_needed(planned, method):
    with pytest.raises(PatternError, match=r"^model\.layers\.0\.self_attn\.q_proj: permute step 'allocate'"):
        planned(method=method, pattern="0.5")


def test_a_plan_says_what_becomes_of_permutations(planned):
    assert planned().to_dict()["permutation"] == "fold"
    assert planned(permutation="gather").permutation == "gather"
    assert planned(method="wanda").permutation is None
    assert [matrix.scope for matrix in planned().of_block(0)] == ["model"] * 3 + ["head"] + ["model"] * 2 + ["block"]


def test_the_models_permutation_takes_a_quarter_of_a_pass(planned):
    settings = {"calibration": CalibrationSpec(nsamples=80)}
    fold = planned(method="eggs", permutation="fold", **settings)
    gather = planned(method="eggs", permutation="gather", **settings)
    assert (fold.permutes_model_first, gather.permutes_model_first) == (True, False)
    assert fold.seconds == pytest.approx(1.125 * gather.seconds)
    assert not planned(method="magnitude", steps={"permute": "allocate"}).permutes_model_first
    assert not planned(include=("*.down_proj", "*.o_proj")).permutes_model_first


def test_heads_that_the_group_does_not_divide_are_not_permuted(planned):
    settings = {"source": {"head_dim": 12}, "pattern": "4:8"}
    plan = planned(**settings)
    assert [matrix.path for matrix in plan.unpermuted] == ["self_attn.o_proj"] * plan.blocks
    assert plan.to_dict()["unpermuted"] == [f"model.layers.{block}.self_attn.o_proj" for block in range(plan.blocks)]
    assert {matrix.scope for matrix in plan.matrices} == {"model", "fixed", "block"}
    for other in (
        planned(permutation="gather", **settings),
        planned(exclude=("*.o_proj",), **settings),
        planned(method="wanda", **settings),
        planned(source={"head_dim": 12}, pattern="2:4"),
    ):
        assert not other.unpermuted


def test_a_tensor_that_the_family_does_not_know_cannot_be_folded(planned, monkeypatch):
    names = CheckpointReader.names.fget
    strange = "model.layers.0.mlp.router.weight"
    monkeypatch.setattr(CheckpointReader, "names", property(lambda self: [*names(self), strange]))
    with pytest.raises(ModelError, match=rf"^{re.escape(strange)}: the llama family does not know this tensor"):
        planned()
    planned(permutation="gather")
    planned(method="wanda")


def test_a_run_that_would_prune_nothing_is_refused(planned):
    with pytest.raises(RecipeError, match="the rules skip every matrix, so nothing would be pruned"):
        planned(exclude=("*",))


def test_a_linear_that_the_family_does_not_know_is_named(planned):
    def extra(skeleton):
        skeleton.blocks[1].mlp.gate = nn.Linear(32, 4, device="meta")

    message = "model.layers.1.mlp.gate: the llama family does not know this linear"
    with pytest.raises(ModelError, match=re.escape(message)):
        planned(alter=extra)


def test_a_linear_that_the_block_lacks_is_named(planned):
    def fewer(skeleton):
        skeleton.blocks[0].mlp.up_proj = nn.Identity()

    message = "model.layers.0.mlp.up_proj: the llama family expects this linear, but the block lacks it"
    with pytest.raises(ModelError, match=re.escape(message)):
        planned(alter=fewer)


def test_a_checkpoint_of_another_shape_is_named(tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 96}))
    skeleton = load_skeleton(folder)
    message = "model.layers.0.mlp.gate_proj.weight: the config defines [96, 32], the checkpoint has [64, 32]"
    with pytest.raises(ModelError, match=re.escape(message)):
        make_plan(skeleton, CheckpointReader(folder), Recipe(), device=CPU, dtype=torch.float32)


def test_a_checkpoint_with_too_few_blocks_is_named(tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"no tensor is named model\.layers\.2\.self_attn\.q_proj\.weight"):
        make_plan(load_skeleton(folder), CheckpointReader(folder), Recipe(), device=CPU, dtype=torch.float32)


def test_the_dense_model_is_counted(planned):
    settings = {"permutation": "gather", "calibration": CalibrationSpec(text="demo")}
    plain, compared = (planned(method=method, **settings) for method in ("ria_cp+pcg", "ria_cp+pcg+drift"))
    hidden = plain.nsamples * plain.seqlen * 32 * 4
    assert compared.memory_bytes - plain.memory_bytes > 5 * hidden  # the dense stream, and four of its activations
    assert plain.seconds < compared.seconds < 2.5 * plain.seconds
    tuned = planned(method="ria_cp+pcg+adam", **settings)
    # The dense stream, and what the backward pass takes beyond solving: 2.5 times the tokens that train.
    assert hidden < tuned.memory_bytes - plain.memory_bytes < 5 * hidden
