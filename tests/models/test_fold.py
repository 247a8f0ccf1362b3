"""Folding: no permutation changes the model's outputs, and undoing it restores every tensor."""

import functools
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES
from transformers import AutoModelForCausalLM

from eggs_ptp.core.permutation import invert
from eggs_ptp.errors import MethodError, ModelError
from eggs_ptp.models.fold import Fold, Heads, check_names, space_key
from eggs_ptp.models.load import load_heads, load_skeleton
from eggs_ptp.models.registry import FAMILIES as REGISTERED

TOKENS = torch.randint(0, 258, (2, 24), generator=torch.Generator().manual_seed(1))
BIASED = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}
SHAPES = {
    "grouped": {},
    "one-value-head": {"num_key_value_heads": 1},
    "as-many-value-heads": {"num_key_value_heads": 4},
    "narrow-heads": {"head_dim": 4},  # fewer attention channels than the residual stream has
    "tied": {"tie": True},
}


def random_permutations(family, heads, tensors, seed=0):
    """Draw a permutation of every space of the model, as free as its scope allows."""
    generator = torch.Generator().manual_seed(seed)
    permutations = {}
    for block in {name.split(".")[2] for name in tensors if name.startswith(f"{family.blocks}.")}:
        for linear in family.linears:
            space = family.spaces[linear.input_activation]
            width = tensors[f"{family.blocks}.{block}.{linear.path}.weight"].shape[1]
            key = space_key(family, f"{family.blocks}.{block}", space)
            if family.scope[space] == "head":
                parts = [torch.randperm(heads.width, generator=generator) for _ in range(heads.value)]
                permutations[key] = torch.cat([part + head * heads.width for head, part in enumerate(parts)])
            else:
                permutations.setdefault(key, torch.randperm(width, generator=generator))
    return permutations


def rms_norm(module, hidden):
    """Compute the library's norms in float64; they themselves always compute in float32."""
    return module.weight * hidden * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def logits(folder):
    """Compute the logits of a folder's model in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, module)
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def folded_folder(source, target, change):
    """Copy a folder and change every tensor."""
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
def test_random_permutations_of_every_space_change_no_logit(tiny, tmp_path, model_type, shape, biased):
    source = tiny(model_type, **SHAPES[shape], **(BIASED.get(model_type, {}) if biased else {}))
    tensors = load_file(source / "model.safetensors")
    family, heads = REGISTERED[model_type], load_heads(source)
    permutations = random_permutations(family, heads, tensors)
    assert permutations.keys() == {
        "residual",
        *(f"model.layers.{i}.{space}" for i in (0, 1) for space in ("heads", "mlp")),
    }
    fold = Fold(family, heads, permutations)
    output = folded_folder(source, tmp_path / "folded", fold.apply)
    dense, folded = logits(source), logits(output)
    assert dense.std() > 0.1
    torch.testing.assert_close(folded, dense, rtol=0.0, atol=1e-10)
    for name, tensor in load_file(output / "model.safetensors").items():
        assert torch.equal(fold.undo(name, tensor), tensors[name])
        is_permuted = not name.endswith(("q_norm.weight", "k_norm.weight", "q_proj.bias", "k_proj.bias"))
        assert torch.equal(tensor, tensors[name]) != is_permuted, name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_space_folds_alone_and_moves_its_own_tensors(tiny, tmp_path, model_type):
    source = tiny(model_type)
    tensors = load_file(source / "model.safetensors")
    family, heads = REGISTERED[model_type], load_heads(source)
    touched = {
        "model.layers.1.mlp": {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"},
        "model.layers.1.heads": {"self_attn.v_proj.weight", "self_attn.o_proj.weight"},
    }
    if model_type == "qwen2":
        touched["model.layers.1.heads"].add("self_attn.v_proj.bias")
    for space, permutation in random_permutations(family, heads, tensors).items():
        fold = Fold(family, heads, {space: permutation})
        changed = {name for name, tensor in tensors.items() if not torch.equal(fold.apply(name, tensor), tensor)}
        if space in touched:
            assert changed == {f"model.layers.1.{path}" for path in touched[space]}
        output = folded_folder(source, tmp_path / space, fold.apply)
        torch.testing.assert_close(logits(output), logits(source), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_knows_every_tensor_of_a_model(tiny, model_type):
    """With biases where the architecture can have them."""
    model = AutoModelForCausalLM.from_pretrained(tiny(model_type, **BIASED.get(model_type, {})))
    check_names(REGISTERED[model_type], list(model.state_dict()))
    spaces = {space for _, space in REGISTERED[model_type].spaces.items()}
    assert spaces == REGISTERED[model_type].scope.keys()
    assert {linear.output_space for linear in REGISTERED[model_type].linears} - {None} <= spaces


@pytest.mark.parametrize("name", ["model.layers.0.mlp.router.weight", "model.layers.x", "visual.weight"])
def test_a_tensor_that_the_family_does_not_know_is_named(name):
    fold = Fold(REGISTERED["llama"], Heads(4, 2, 8), {"residual": torch.arange(32)})
    for refuse in (lambda: check_names(REGISTERED["llama"], [name]), lambda: fold.axes(name)):
        with pytest.raises(ModelError, match=rf"^{re.escape(name)}: the llama family does not know this tensor"):
            refuse()


def test_without_permutations_every_tensor_is_left_as_it_is():
    tensor = torch.rand(3, 4)
    assert Fold(REGISTERED["llama"], Heads(4, 2, 8)).apply("anything", tensor) is tensor


def test_a_small_example():
    fold = Fold(
        REGISTERED["llama"],
        Heads(2, 1, 2),
        {"residual": torch.tensor([1, 0]), "model.layers.3.heads": torch.tensor([1, 0])},
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
def test_a_permutation_spread_over_query_heads_is_gathered_again(heads):
    parts = [torch.randperm(heads.width) + head * heads.width for head in range(heads.value)]
    permutation = torch.cat(parts)
    spread = heads.spread(permutation)
    assert torch.equal(heads.gather(spread), permutation)
    values = torch.rand(heads.value, heads.width)
    repeated = values.repeat_interleave(heads.query // heads.value, 0).flatten()
    permuted = values.flatten()[permutation].view_as(values)
    assert torch.equal(repeated[spread], permuted.repeat_interleave(heads.query // heads.value, 0).flatten())
    assert torch.equal(spread[invert(spread)], torch.arange(heads.query * heads.width))


@pytest.mark.parametrize(
    ("name", "permutation", "message"),
    [
        ("residual", [0, 0, 1], "residual: expected a channel permutation"),
        ("model.layers.0.heads", [1, 2, 0, 3], "a permutation inside each of the 2 key/value heads of 2 channels"),
        ("model.layers.0.heads", [2, 3, 0, 1], "a permutation inside each of the 2 key/value heads of 2 channels"),
        ("model.layers.0.heads", [1, 0], "a permutation inside each of the 2 key/value heads of 2 channels"),
    ],
)
def test_a_permutation_that_is_not_possible_in_its_space_is_refused(name, permutation, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        Fold(REGISTERED["llama"], Heads(4, 2, 2), {name: torch.tensor(permutation)})


def test_heads_are_read_from_the_config(tiny):
    assert load_skeleton(tiny("llama", head_dim=4)).heads == load_heads(tiny("llama", head_dim=4)) == Heads(4, 2, 4)


@pytest.mark.parametrize("method", ["apply", "undo"])
def test_a_tensor_of_another_width_is_refused(method):
    fold = Fold(REGISTERED["llama"], Heads(2, 1, 2), {"residual": torch.arange(4).flip(0)})
    message = r"norm\.weight: the permutation of axis 0 has 4 channels, .* shape \(6,\)"
    with pytest.raises(MethodError, match=message):
        getattr(fold, method)("model.norm.weight", torch.ones(6))


@pytest.mark.parametrize(
    "heads",
    [{"num_attention_heads": 3, "num_key_value_heads": 2}, {"head_dim": -1}, {"num_key_value_heads": -1}],
    ids=str,
)
def test_heads_that_no_attention_can_have_are_refused(heads):
    with pytest.raises(ModelError, match="no attention can have"):
        Heads.of(SimpleNamespace(**{"hidden_size": 12, **heads}))
