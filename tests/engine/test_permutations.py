"""Permutations that can be folded: of the residual stream from the dense model, and inside each head."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.engine import permutations as engine
from eggs_ptp.engine.context import RunContext
from eggs_ptp.engine.event import ignore
from eggs_ptp.engine.permutations import find_permutations, permute_by_head, residual_permutation
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.plan import Budget
from eggs_ptp.engine.preparation import first_block_inputs
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.fold import Heads
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.permute.allocate import allocate
from eggs_ptp.recipe.recipe import Recipe
from eggs_ptp.score.magnitude import magnitude
from eggs_ptp.score.ria import ria

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (8, 32), generator=torch.Generator().manual_seed(1))
TWO_OF_FOUR = Pattern(2, 4)
CONSUMERS = [f"self_attn.{kind}_proj" for kind in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]


def find(folder, *, tokens=TOKENS, listener=ignore, batch_tokens=2048, dtype=torch.float32, **recipe):
    """The permutations found before any block is pruned."""
    skeleton = load_skeleton(folder)
    reader = CheckpointReader(folder, ties=skeleton.ties)
    plan = make_plan(skeleton, reader, Recipe(**recipe), device=CPU, dtype=dtype)
    plan = replace(plan, budget=Budget(batch_tokens))
    context = RunContext(plan, skeleton, reader, 0, True, CPU, dtype, listener)
    inputs = None
    if plan.permutes_model_first:
        inputs = first_block_inputs(context, Windows(tokens, "here", "given", 0, tokens.numel()))
    permutations = find_permutations(context, inputs)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert (not permutations) or context.times.seconds["order"] > 0
    return permutations


def dense_scores(folder, consumers=CONSUMERS):
    """RIA's scores of the consumers of the residual stream in the dense model, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    norms = {}
    for name, module in model.named_modules():
        if any(name.endswith(path) for path in consumers):
            module.register_forward_pre_hook(
                lambda _m, args, name=name: norms.update(
                    {name: args[0].flatten(0, 1).double().square().mean(0).sqrt().float()}
                )
            )
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    return torch.cat([ria(model.get_submodule(name).weight.detach(), norm) for name, norm in norms.items()])


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_residual_permutation_is_that_of_all_consumers_scores_in_the_dense_model(tiny, model_type):
    permutations = find(tiny(model_type), method="ria_cp")
    assert permutations.keys() == {"residual"}
    scores = dense_scores(tiny(model_type))
    assert scores.shape == (2 * (32 + 16 + 16 + 64 + 64), 32)
    assert torch.equal(permutations["residual"], allocate(scores, TWO_OF_FOUR, assign=True))


def test_consumers_that_do_not_permute_are_left_out(tiny):
    permutations = find(tiny(), method="wanda", targets=({"match": "*.up_proj", "method": "ria_cp"},))
    assert torch.equal(permutations["residual"], allocate(dense_scores(tiny(), ["up_proj"]), TWO_OF_FOUR, assign=True))
    assert find(tiny(), method="ria_cp", include=("*.o_proj", "*.down_proj")) == {}
    assert find(tiny(), method="ria_cp", permutation="gather") == {}


def test_the_search_of_most_weights_is_used(tiny):
    few = ({"match": "*.q_proj", "pattern": "4:8"}, {"match": "*.v_proj", "steps": {"permute": {"assign": False}}})
    scores = dense_scores(tiny())
    permutations = find(tiny(), method="ria_cp", targets=few)
    assert torch.equal(permutations["residual"], allocate(scores, TWO_OF_FOUR, assign=True))
    many = find(tiny(), method="ria_cp", targets=({"match": "*.mlp.*", "pattern": "4:8"},))
    assert torch.equal(many["residual"], allocate(scores, Pattern(4, 8), assign=True))


def test_scores_without_statistics_need_no_calibration(tiny):
    permutations = find(tiny(), method="magnitude", steps={"permute": {"name": "allocate"}}, tokens=None)
    weights = load_file(tiny() / "model.safetensors")
    scores = [magnitude(weights[f"model.layers.{block}.{path}.weight"]) for block in (0, 1) for path in CONSUMERS]
    assert torch.equal(permutations["residual"], allocate(torch.cat(scores), TWO_OF_FOUR))


def test_scores_may_need_output_statistics(tiny):
    assert sorted(find(tiny(), method="symwanda", steps={"permute": "allocate"})["residual"].tolist()) == list(
        range(32)
    )


def test_the_result_is_independent_of_the_batches(tiny):
    one, other = (find(tiny(), method="eggs", batch_tokens=tokens)["residual"] for tokens in (64, 4096))
    assert torch.equal(one, other)


def test_the_last_block_runs_no_further_than_needed(tiny, monkeypatch):
    advanced = []
    collect_statistics = engine.collect_statistics

    def recorded(*args, advance, **kwargs):
        advanced.append(advance)
        return collect_statistics(*args, advance=advance, **kwargs)

    monkeypatch.setattr(engine, "collect_statistics", recorded)
    find(tiny(), method="ria_cp")
    assert advanced == [True, False]
    advanced.clear()
    find(tiny(), method="ria_cp", exclude=("*.1.*",))
    assert advanced == [False]


def test_the_listener_is_notified_of_every_block(tiny):
    events = []
    find(tiny(), method="ria_cp", listener=events.append)
    assert [(event.kind, event.block, event.stage) for event in events] == [
        ("stage", 0, "embedding"),
        ("stage", 0, "order"),
        ("stage", 1, "order"),
    ]


def stacked(lengths, limit, monkeypatch):
    """Which rows of consumers with these numbers of rows are stacked."""
    monkeypatch.setattr(engine, "PERMUTATION_ROWS", limit)
    rows, stacked_rows = sum(lengths), []
    numbers = torch.arange(rows, dtype=torch.float32)[:, None].split(lengths)
    residual_permutation(
        ((None, part) for part in numbers), rows, lambda score: stacked_rows.extend(score[:, 0].int().tolist())
    )
    return stacked_rows


@pytest.mark.parametrize("lengths", [[5, 3, 4], [1, 1, 10], [12]])
def test_the_stack_holds_evenly_spaced_rows_of_all(lengths, monkeypatch):
    assert stacked(lengths, 100, monkeypatch) == list(range(12))
    assert stacked(lengths, 6, monkeypatch) == [0, 2, 4, 6, 8, 10]
    assert stacked(lengths, 5, monkeypatch) == [0, 2, 4, 7, 9]
    assert stacked(lengths, 1, monkeypatch) == [0]


@pytest.mark.parametrize("heads", [Heads(4, 2, 8), Heads(4, 4, 8), Heads(4, 1, 8)], ids=str)
def test_heads_are_permuted_inside_for_all_their_query_heads_together(heads):
    score = torch.rand(12, 32, generator=torch.Generator().manual_seed(2))
    permutation = permute_by_head(heads, score, lambda part: allocate(part, TWO_OF_FOUR, assign=True))
    sharing = heads.query // heads.value
    for value in range(heads.value):
        columns = [slice(query * 8, query * 8 + 8) for query in range(value * sharing, (value + 1) * sharing)]
        expected = allocate(torch.cat([score[:, column] for column in columns]), TWO_OF_FOUR, assign=True)
        for column in columns:
            assert torch.equal(permutation[column], expected + column.start)


@pytest.mark.parametrize(
    ("tensor", "factor", "message"),
    [
        ("model.layers.0.self_attn.v_proj.weight", "nan", "model.layers.0.self_attn.v_proj: the weight holds NaN"),
        (
            "model.layers.0.self_attn.o_proj.weight",
            "inf",
            "model.layers.0.mlp.gate_proj: 32 of 32 entries of input_norm",
        ),
        ("model.layers.0.mlp.down_proj.weight", "nan", "model.layers.0.mlp.down_proj.weight: the weight holds NaN"),
        ("model.layers.1.input_layernorm.weight", "nan", "model.layers.1.self_attn.q_proj: 32 of 32 entries of input"),
    ],
)
def test_what_is_not_finite_is_named(altered, tensor, factor, message):
    folder = altered(tensor, lambda weight: weight * float(factor))
    with pytest.raises(NumericsError, match=f"^{re.escape(message)}"):
        find(folder, method="ria_cp")


def test_activations_that_overflow_are_named(altered):
    folder = altered("model.layers.0.mlp.down_proj.weight", lambda weight: weight * 1e6)
    with pytest.raises(NumericsError, match=r"^model\.layers\.0: its outputs hold NaN or infinity; try"):
        find(folder, method="ria_cp", dtype=torch.float16)
