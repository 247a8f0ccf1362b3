"""Orders that can be folded: found from the dense model, inside each head, and not from more rows than said."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.engine import orders as engine
from eggs_ptp.engine.budget import Budget
from eggs_ptp.engine.event import ignore
from eggs_ptp.engine.orders import by_head, find_orders, residual_order
from eggs_ptp.engine.plan import plan_run
from eggs_ptp.engine.run import Run
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.fold import Heads
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.permute.deal import deal
from eggs_ptp.recipe.recipe import Recipe
from eggs_ptp.score.magnitude import magnitude
from eggs_ptp.score.ria import ria

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (8, 32), generator=torch.Generator().manual_seed(1))
TWO_OF_FOUR = Pattern(2, 4)
READERS = [f"self_attn.{kind}_proj" for kind in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]


def found(folder, *, tokens=TOKENS, listener=ignore, batch_tokens=2048, dtype=torch.float32, **recipe):
    """The orders that are found for a folder before any block is pruned."""
    skeleton = load_skeleton(folder)
    shards = Shards(folder, ties=skeleton.ties)
    plan = plan_run(skeleton, shards, Recipe(**recipe), device=CPU, dtype=dtype)
    plan = replace(plan, budget=Budget(batch_tokens))
    run = Run(plan, skeleton, shards, 0, True, CPU, dtype, listener)
    inputs = run.inputs(Windows(tokens, "here", "given", 0, tokens.numel())) if plan.orders_first else None
    orders = find_orders(run, inputs)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert (not orders) or run.stages.seconds["order"] > 0
    return orders


def dense_scores(folder, readers=READERS):
    """RIA's scores of the readers of the residual stream in the dense model, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    norms = {}
    for name, module in model.named_modules():
        if any(name.endswith(path) for path in readers):
            module.register_forward_pre_hook(
                lambda _m, args, name=name: norms.update(
                    {name: args[0].flatten(0, 1).double().square().mean(0).sqrt().float()}
                )
            )
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    return torch.cat([ria(model.get_submodule(name).weight.detach(), norm) for name, norm in norms.items()])


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_residual_order_is_that_of_all_readers_scores_in_the_dense_model(tiny, model_type):
    orders = found(tiny(model_type), method="ria_cp")
    assert orders.keys() == {"residual"}
    scores = dense_scores(tiny(model_type))
    assert scores.shape == (2 * (32 + 16 + 16 + 64 + 64), 32)
    assert torch.equal(orders["residual"], deal(scores, TWO_OF_FOUR, assign=True))


def test_readers_that_do_not_permute_have_no_say(tiny):
    orders = found(tiny(), method="wanda", targets=({"match": "*.up_proj", "method": "ria_cp"},))
    assert torch.equal(orders["residual"], deal(dense_scores(tiny(), ["up_proj"]), TWO_OF_FOUR, assign=True))
    assert found(tiny(), method="ria_cp", include=("*.o_proj", "*.down_proj")) == {}
    assert found(tiny(), method="ria_cp", orders="gather") == {}


def test_the_search_that_most_weights_ask_for_is_made(tiny):
    few = ({"match": "*.q_proj", "pattern": "4:8"}, {"match": "*.v_proj", "steps": {"permute": {"assign": False}}})
    scores = dense_scores(tiny())
    orders = found(tiny(), method="ria_cp", targets=few)
    assert torch.equal(orders["residual"], deal(scores, TWO_OF_FOUR, assign=True))
    many = found(tiny(), method="ria_cp", targets=({"match": "*.mlp.*", "pattern": "4:8"},))
    assert torch.equal(many["residual"], deal(scores, Pattern(4, 8), assign=True))


def test_scores_without_statistics_need_no_calibration(tiny):
    orders = found(tiny(), method="magnitude", steps={"permute": {"name": "deal"}}, tokens=None)
    weights = load_file(tiny() / "model.safetensors")
    scores = [magnitude(weights[f"model.layers.{block}.{path}.weight"]) for block in (0, 1) for path in READERS]
    assert torch.equal(orders["residual"], deal(torch.cat(scores), TWO_OF_FOUR))


def test_scores_may_need_output_statistics(tiny):
    assert sorted(found(tiny(), method="symwanda", steps={"permute": "deal"})["residual"].tolist()) == list(range(32))


def test_the_result_is_independent_of_the_batches(tiny):
    one, other = (found(tiny(), method="eggs", batch_tokens=tokens)["residual"] for tokens in (64, 4096))
    assert torch.equal(one, other)


def test_the_last_block_is_run_no_further_than_it_is_looked_at(tiny, monkeypatch):
    ran = []
    observe = engine.observe

    def observed(*given, onward, **more):
        ran.append(onward)
        return observe(*given, onward=onward, **more)

    monkeypatch.setattr(engine, "observe", observed)
    found(tiny(), method="ria_cp")
    assert ran == [True, False]
    ran.clear()
    found(tiny(), method="ria_cp", exclude=("*.1.*",))
    assert ran == [False]


def test_whoever_listens_hears_of_every_block(tiny):
    events = []
    found(tiny(), method="ria_cp", listener=events.append)
    assert [(event.kind, event.block, event.stage) for event in events] == [
        ("stage", 0, "embedding"),
        ("stage", 0, "order"),
        ("stage", 1, "order"),
    ]


def stacked(lengths, limit, monkeypatch):
    """Which rows of readers with so many rows are stacked."""
    monkeypatch.setattr(engine, "ORDER_ROWS", limit)
    rows, seen = sum(lengths), []
    numbers = torch.arange(rows, dtype=torch.float32)[:, None].split(lengths)
    residual_order(((None, part) for part in numbers), rows, lambda score: seen.extend(score[:, 0].int().tolist()))
    return seen


@pytest.mark.parametrize("lengths", [[5, 3, 4], [1, 1, 10], [12]])
def test_the_stack_holds_evenly_spaced_rows_of_all(lengths, monkeypatch):
    assert stacked(lengths, 100, monkeypatch) == list(range(12))
    assert stacked(lengths, 6, monkeypatch) == [0, 2, 4, 6, 8, 10]
    assert stacked(lengths, 5, monkeypatch) == [0, 2, 4, 7, 9]
    assert stacked(lengths, 1, monkeypatch) == [0]


@pytest.mark.parametrize("heads", [Heads(4, 2, 8), Heads(4, 4, 8), Heads(4, 1, 8)], ids=str)
def test_heads_are_permuted_inside_for_all_their_query_heads_together(heads):
    score = torch.rand(12, 32, generator=torch.Generator().manual_seed(2))
    order = by_head(heads, score, lambda part: deal(part, TWO_OF_FOUR, assign=True))
    sharing = heads.query // heads.value
    for value in range(heads.value):
        columns = [slice(query * 8, query * 8 + 8) for query in range(value * sharing, (value + 1) * sharing)]
        expected = deal(torch.cat([score[:, column] for column in columns]), TWO_OF_FOUR, assign=True)
        for column in columns:
            assert torch.equal(order[column], expected + column.start)


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
        found(folder, method="ria_cp")


def test_activations_that_overflow_are_named(altered):
    folder = altered("model.layers.0.mlp.down_proj.weight", lambda weight: weight * 1e6)
    with pytest.raises(NumericsError, match=r"^model\.layers\.0: its outputs hold NaN or infinity; try"):
        found(folder, method="ria_cp", dtype=torch.float16)
