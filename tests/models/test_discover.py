"""Models without a family: blocks and linears are found in the module tree."""

import re

import pytest
import torch
from tiny import UNKNOWN
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from eggs_ptp.errors import ModelError
from eggs_ptp.models.discover import discover, is_linear
from eggs_ptp.models.load import load_family, load_skeleton

BLOCKS = {"bloom": "transformer.h", "gptj": "transformer.h", "gpt_bigcode": "transformer.h", "cohere": "model.layers"}


@pytest.mark.parametrize("name", UNKNOWN)
def test_blocks_and_all_their_linears_are_found(tiny, name):
    skeleton = load_skeleton(tiny(name))
    family = skeleton.family
    assert (family.model_type, family.blocks, family.known, family.folds) == (name, BLOCKS[name], False, False)
    assert len(skeleton.blocks) == 2
    for block in skeleton.blocks:
        paths = [path for path, module in block.named_modules() if is_linear(module)]
        assert [linear.path for linear in family.linears] == paths
    assert len({linear.input_activation for linear in family.linears}) == len(family.linears)
    assert set(family.scope.values()) == {"fixed"}
    assert family.residual_producers == ()
    assert load_family(skeleton.folder) == (family, skeleton.heads)


def _blocks(count, width):
    return nn.ModuleList(
        nn.ModuleDict({"one": nn.Linear(width, width), "norm": nn.LayerNorm(width)}) for _ in range(count)
    )


def test_the_list_with_most_weights_has_the_blocks():
    model = nn.ModuleDict({"few": _blocks(2, 8), "most": _blocks(5, 8), "none": nn.ModuleList()})
    assert discover(model, "odd", "here").blocks == "most"


def test_a_linear_that_some_blocks_lack_is_optional():
    model = nn.ModuleDict({"layers": _blocks(2, 8)})
    model["layers"][1]["two"] = nn.Linear(8, 8)
    family = discover(model, "odd", "here")
    assert [linear.path for linear in family.linears] == ["one", "two"]
    assert all(linear.optional for linear in family.linears)
    assert [linear.path for linear in family.of_block(["one", "norm"])] == ["one"]


@pytest.mark.parametrize(
    "model", [nn.Linear(4, 4), nn.ModuleDict({"layers": nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])})]
)
def test_a_model_without_blocks_is_refused(model):
    message = "here: model type 'odd' has no family here, and no list of blocks with linears was found in it"
    with pytest.raises(ModelError, match=re.escape(message)):
        discover(model, "odd", "here")


def test_fused_experts_are_refused():
    config = AutoConfig.for_model(
        "gpt_oss", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_local_experts=4, vocab_size=16
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    message = r"^here: .* its experts \(model\.layers\.\*\.mlp\.experts\.gate_up_proj\) are fused into one tensor"
    with pytest.raises(ModelError, match=message):
        discover(model, "gpt_oss", "here")


@pytest.mark.parametrize("shape", [(8, 4), (2, 4, 4)])
def test_experts_that_are_no_linears_are_refused_for_any_shape(shape):
    model = nn.ModuleDict({"layers": _blocks(2, 8)})
    model["layers"][1]["experts"] = nn.ParameterDict({"w1": nn.Parameter(torch.zeros(shape))})
    with pytest.raises(ModelError, match=r"its experts \(layers\.\*\.experts\.w1\) are fused into one tensor"):
        discover(model, "odd", "here")


def test_routers_are_not_pruned_and_experts_are_routed():
    model = nn.ModuleDict({"layers": _blocks(2, 8)})
    for block in model["layers"]:
        block["mlp"] = nn.ModuleDict({"gate": nn.Linear(8, 2), "experts": nn.ModuleList([nn.Linear(8, 8)])})
        block["router"] = nn.ModuleDict({"layer": nn.Linear(8, 2)})
        block["gate"] = nn.Linear(8, 8)  # not a router
    family = discover(model, "odd", "here")
    assert {linear.path: linear.routed for linear in family.linears} == {
        "one": False,
        "mlp.experts.0": True,
        "gate": False,
    }
    assert family.inside == {"mlp.gate.weight": (None, None), "router.layer.weight": (None, None)}


def test_blocks_in_two_lists_are_refused():
    model = nn.ModuleDict(
        {"attentions": _blocks(3, 8), "ffns": _blocks(3, 9), "norms": nn.ModuleList([nn.LayerNorm(8)] * 3)}
    )
    with pytest.raises(
        ModelError, match=r"its blocks are in two lists, ffns and attentions, of which only one would be p"
    ):
        discover(model, "odd", "here")
