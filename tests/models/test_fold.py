"""Folding: whatever the orders, the model computes what it did, and undoing gives the very tensors back."""

import functools
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES
from transformers import AutoModelForCausalLM

from eggs_ptp.core.order import invert
from eggs_ptp.errors import MethodError, ModelError
from eggs_ptp.models.fold import Fold, Heads, check_names, space_key
from eggs_ptp.models.load import load_heads, load_skeleton
from eggs_ptp.models.table import FAMILIES as TABLE

TOKENS = torch.randint(0, 258, (2, 24), generator=torch.Generator().manual_seed(1))
BIASED = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}
SHAPES = {
    "grouped": {},
    "one-value-head": {"num_key_value_heads": 1},
    "as-many-value-heads": {"num_key_value_heads": 4},
    "narrow-heads": {"head_dim": 4},  # heads put out less than the residual stream holds
    "tied": {"tie": True},
}


def random_orders(family, heads, tensors, seed=0):
    """One for every space of the model, each as free as the space allows."""
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for block in {name.split(".")[2] for name in tensors if name.startswith(f"{family.blocks}.")}:
        for linear in family.linears:
            space = family.spaces[linear.reads]
            width = tensors[f"{family.blocks}.{block}.{linear.path}.weight"].shape[1]
            key = space_key(family, f"{family.blocks}.{block}", space)
            if family.reach[space] == "head":
                parts = [torch.randperm(heads.width, generator=generator) for _ in range(heads.value)]
                orders[key] = torch.cat([part + head * heads.width for head, part in enumerate(parts)])
            else:
                orders.setdefault(key, torch.randperm(width, generator=generator))
    return orders


def rms_norm(module, hidden):
    """What the library's norms compute, but they do so in float32 whatever they are given."""
    return module.weight * hidden * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def logits(folder):
    """In float64 throughout."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, module)
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def folded_folder(source, target, change):
    """A copy of a folder with every tensor changed."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = {name: change(name, t).contiguous() for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_random_orders_of_every_space_change_no_logit(tiny, tmp_path, model_type, shape, biased):
    source = tiny(model_type, **SHAPES[shape], **(BIASED.get(model_type, {}) if biased else {}))
    tensors = load_file(source / "model.safetensors")
    family, heads = TABLE[model_type], load_heads(source)
    orders = random_orders(family, heads, tensors)
    assert orders.keys() == {"residual", *(f"model.layers.{i}.{space}" for i in (0, 1) for space in ("heads", "mlp"))}
    fold = Fold(family, heads, orders)
    output = folded_folder(source, tmp_path / "folded", fold.apply)
    dense, folded = logits(source), logits(output)
    assert dense.std() > 0.1
    torch.testing.assert_close(folded, dense, rtol=0.0, atol=1e-10)
    for name, tensor in load_file(output / "model.safetensors").items():
        assert torch.equal(fold.undo(name, tensor), tensors[name])
        moves = not name.endswith(("q_norm.weight", "k_norm.weight", "q_proj.bias", "k_proj.bias"))
        assert torch.equal(tensor, tensors[name]) != moves, name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_space_folds_by_itself_and_reaches_what_it_should(tiny, tmp_path, model_type):
    source = tiny(model_type)
    tensors = load_file(source / "model.safetensors")
    family, heads = TABLE[model_type], load_heads(source)
    touched = {
        "model.layers.1.mlp": {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"},
        "model.layers.1.heads": {"self_attn.v_proj.weight", "self_attn.o_proj.weight"},
    }
    if model_type == "qwen2":
        touched["model.layers.1.heads"].add("self_attn.v_proj.bias")
    for space, order in random_orders(family, heads, tensors).items():
        fold = Fold(family, heads, {space: order})
        changed = {name for name, tensor in tensors.items() if not torch.equal(fold.apply(name, tensor), tensor)}
        if space in touched:
            assert changed == {f"model.layers.1.{path}" for path in touched[space]}
        output = folded_folder(source, tmp_path / space, fold.apply)
        torch.testing.assert_close(logits(output), logits(source), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_knows_every_tensor_of_a_model(tiny, model_type):
    """With biases wherever the architecture can have them."""
    model = AutoModelForCausalLM.from_pretrained(tiny(model_type, **BIASED.get(model_type, {})))
    check_names(TABLE[model_type], list(model.state_dict()))
    spaces = {space for _, space in TABLE[model_type].spaces.items()}
    assert spaces == TABLE[model_type].reach.keys()
    assert {linear.writes for linear in TABLE[model_type].linears} - {None} <= spaces


@pytest.mark.parametrize("name", ["model.layers.0.mlp.router.weight", "model.layers.x", "visual.weight"])
def test_a_tensor_that_the_family_does_not_know_is_named(name):
    fold = Fold(TABLE["llama"], Heads(4, 2, 8), {"residual": torch.arange(32)})
    for refuse in (lambda: check_names(TABLE["llama"], [name]), lambda: fold.axes(name)):
        with pytest.raises(ModelError, match=rf"^{re.escape(name)}: the llama family does not know this tensor"):
            refuse()


def test_without_orders_every_tensor_is_left_as_it_is():
    tensor = torch.rand(3, 4)
    assert Fold(TABLE["llama"], Heads(4, 2, 8)).apply("anything", tensor) is tensor


def test_by_hand():
    fold = Fold(
        TABLE["llama"], Heads(2, 1, 2), {"residual": torch.tensor([1, 0]), "model.layers.3.heads": torch.tensor([1, 0])}
    )
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert fold.apply("model.layers.3.self_attn.v_proj.weight", values).tolist() == [[4.0, 3.0], [2.0, 1.0]]
    output = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])  # two query heads on one value head
    assert fold.apply("model.layers.3.self_attn.o_proj.weight", output).tolist() == [[6, 5, 8, 7], [2, 1, 4, 3]]
    assert fold.apply("model.layers.2.self_attn.o_proj.weight", output).tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
    assert fold.apply("model.layers.3.self_attn.q_proj.weight", values).tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert fold.apply("lm_head.weight", values).tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert fold.apply("model.norm.weight", values[0]).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("heads", [Heads(4, 2, 8), Heads(4, 4, 8), Heads(6, 1, 4)])
def test_what_is_spread_over_query_heads_is_gathered_again(heads):
    parts = [torch.randperm(heads.width) + head * heads.width for head in range(heads.value)]
    order = torch.cat(parts)
    spread = heads.spread(order)
    assert torch.equal(heads.gather(spread), order)
    values = torch.rand(heads.value, heads.width)
    repeated = values.repeat_interleave(heads.query // heads.value, 0).flatten()
    permuted = values.flatten()[order].view_as(values)
    assert torch.equal(repeated[spread], permuted.repeat_interleave(heads.query // heads.value, 0).flatten())
    assert torch.equal(spread[invert(spread)], torch.arange(heads.query * heads.width))


@pytest.mark.parametrize(
    ("name", "order", "message"),
    [
        ("residual", [0, 0, 1], "residual: expected a channel order"),
        ("model.layers.0.heads", [1, 2, 0, 3], "keeps each of the 2 key/value heads of 2 channels to itself"),
        ("model.layers.0.heads", [2, 3, 0, 1], "keeps each of the 2 key/value heads of 2 channels to itself"),
        ("model.layers.0.heads", [1, 0], "keeps each of the 2 key/value heads of 2 channels to itself"),
    ],
)
def test_what_is_no_order_of_a_space_is_refused(name, order, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        Fold(TABLE["llama"], Heads(4, 2, 2), {name: torch.tensor(order)})


def test_heads_are_read_from_the_config(tiny):
    assert load_skeleton(tiny("llama", head_dim=4)).heads == load_heads(tiny("llama", head_dim=4)) == Heads(4, 2, 4)
