"""Families of every shape: all linears of a block are known under what they read, and folding changes nothing."""

import functools
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES as LLAMA_SHAPED
from tiny import MIXTURES, OTHERS
from torch import nn
from transformers import AutoModelForCausalLM

from eggs_ptp.core.order import invert
from eggs_ptp.engine.fit import check_coverage
from eggs_ptp.engine.shards import Shards
from eggs_ptp.models.discover import is_linear
from eggs_ptp.models.fold import Fold, check_names, space_key
from eggs_ptp.models.load import load_family, load_skeleton
from eggs_ptp.models.table import FAMILIES, VARIANTS

NAMES = [*OTHERS, *MIXTURES]
TOKENS = torch.randint(0, 258, (2, 24), generator=torch.Generator().manual_seed(1))
SHARING = {"stablelm-parallel": "mlp_in", "falcon-7b": "mlp_in"}  # these see what another activation is, too
TIED = ("gemma2", "gpt2", "opt-350m", "falcon-7b", "phi3")


def rms_norm(module, hidden):
    """What the library's norms compute, but they do so in float32 whatever they are given."""
    gemma = type(module).__name__.startswith("Gemma")
    scale = hidden.square().mean(-1, keepdim=True) + (module.eps if gemma else module.variance_epsilon)
    return (module.weight + float(gemma)) * hidden * scale.rsqrt()


def logits(folder):
    """In float64 throughout."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    model.set_experts_implementation("eager")  # others know no float64
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, module)
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def random_orders(family, heads, skeleton):
    """One for every space of the model, each as free as the space allows."""
    generator = torch.Generator().manual_seed(0)
    orders = {}
    for index, block in enumerate(skeleton.blocks):
        for linear in skeleton.of_block(index).linears:
            space = family.spaces[linear.reads]
            key = space_key(family, skeleton.block_name(index), space)
            if family.reach[space] == "head":
                parts = [torch.randperm(heads.width, generator=generator) for _ in range(heads.value)]
                orders[key] = torch.cat([part + head * heads.width for head, part in enumerate(parts)])
            else:
                width = block.get_submodule(linear.path).weight.shape[0 if linear.transposed else 1]
                orders.setdefault(key, torch.randperm(width, generator=generator))
    return orders


def folded_folder(source, target, change):
    """A copy of a folder with every tensor changed."""
    shutil.copytree(source, target)
    tensors = {name: change(name, t).contiguous() for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_every_family_has_a_tiny_model():
    assert {model_type for model_type, _ in OTHERS.values()} | set(LLAMA_SHAPED) == set(FAMILIES)
    assert {model_type for model_type, _ in MIXTURES.values()} == VARIANTS.keys() - FAMILIES.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_every_linear_of_a_block_is_known_under_what_it_reads(tiny, name):
    skeleton = load_skeleton(tiny(name))
    check_coverage(skeleton, Shards(skeleton.folder, ties=skeleton.ties))
    family = skeleton.family
    model = AutoModelForCausalLM.from_pretrained(skeleton.folder).eval()
    ran: list[str] = []
    inputs: dict[str, torch.Tensor] = {}
    for path, module in model.get_submodule(family.blocks)[1].named_modules():
        if is_linear(module):
            module.register_forward_pre_hook(
                lambda _m, args, path=path: (ran.append(path), inputs.update({path: args[0].flatten(0, -2)}))[0]
            )
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    paths = [linear.path for linear in family.linears]
    assert sorted(ran) == sorted(paths)
    for one in family.linears:
        for other in family.linears:
            reads = {linear.reads.replace(SHARING.get(name, "\n"), "attention_in") for linear in (one, other)}
            a, b = inputs[one.path], inputs[other.path]
            assert (a.shape == b.shape and torch.equal(a, b)) == (len(reads) == 1), (one.path, other.path)


@pytest.mark.parametrize(("name", "tie"), [*((name, False) for name in NAMES), *((name, True) for name in TIED)])
def test_random_orders_of_every_space_change_no_logit(tiny, tmp_path, name, tie):
    source = tiny(name, tie=tie)
    family, heads = load_family(source)
    orders = random_orders(family, heads, load_skeleton(source))
    assert {family.reach[name.rpartition(".")[2]] for name in orders} == {"model", "head", "block"}
    fold = Fold(family, heads, orders)
    output = folded_folder(source, tmp_path / "folded", fold.apply)
    dense, folded = logits(source), logits(output)
    assert dense.std() > 0.1
    torch.testing.assert_close(folded, dense, rtol=0.0, atol=1e-9)
    tensors = load_file(source / "model.safetensors")
    for tensor, moved in load_file(output / "model.safetensors").items():
        assert torch.equal(fold.undo(tensor, moved), tensors[tensor])
        assert torch.equal(moved, tensors[tensor]) == (not any(order is not None for order in fold.axes(tensor)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_space_folds_by_itself_and_moves_what_is_read_and_written(tiny, tmp_path, name):
    source = tiny(name)
    family, heads = load_family(source)
    tensors = load_file(source / "model.safetensors")
    dense = logits(source)
    for space, order in random_orders(family, heads, load_skeleton(source)).items():
        if space.startswith(f"{family.blocks}.0."):
            continue  # as block 1
        fold = Fold(family, heads, {space: order})
        output = folded_folder(source, tmp_path / space, fold.apply)
        torch.testing.assert_close(logits(output), dense, rtol=0.0, atol=1e-9)
        moved = {name for name, tensor in tensors.items() if not torch.equal(fold.apply(name, tensor), tensor)}
        block, _, short = space.rpartition(".")
        for linear in family.linears if block else ():
            touched = short in (linear.writes, family.spaces[linear.reads])
            assert (f"{block}.{linear.path}.weight" in moved) == touched
        assert len(moved) >= (2 if block else len(tensors) // 2)


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_matrix_reads_is_what_its_inputs_are_permuted_by(tiny, name):
    """Of the folded matrix and of inputs in the order that it says: the rows of the dense one, in some order."""
    source = tiny(name)
    family, heads = load_family(source)
    skeleton = load_skeleton(source)
    fold = Fold(family, heads, random_orders(family, heads, skeleton))
    tensors = load_file(source / "model.safetensors")
    for linear in family.linears:
        matrix = f"{skeleton.block_name(1)}.{linear.path}"
        dense, folded = (
            weight.T if linear.transposed else weight
            for weight in (tensors[f"{matrix}.weight"], fold.apply(f"{matrix}.weight", tensors[f"{matrix}.weight"]))
        )
        order = fold.of_inputs(matrix)
        assert order is not None
        restored = folded[:, invert(order)]
        assert torch.equal(restored.sort(0).values, dense.sort(0).values)


@pytest.mark.parametrize("name", OTHERS)
def test_a_family_knows_every_tensor_of_a_model(tiny, name):
    family, _ = load_family(tiny(name))
    check_names(family, list(AutoModelForCausalLM.from_pretrained(tiny(name)).state_dict()))
    spaces = set(family.spaces.values())
    assert spaces == family.reach.keys()
    assert {linear.writes for linear in family.linears} - {None} <= spaces
    assert family.known
    assert family.folds


def test_a_checkpoint_without_its_head_is_the_same_model(tiny, tmp_path):
    """As that of GPT-2 on the hub, whose names lack the prefix."""
    source = tiny("gpt2", tie=True)
    bare = shutil.copytree(source, tmp_path / "bare")
    tensors = load_file(source / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, bare / "model.safetensors")
    skeleton = load_skeleton(bare)
    shards = Shards(bare, ties=skeleton.ties)
    check_coverage(skeleton, shards)
    check_names(skeleton.family, shards.names)
    assert skeleton.block_name(1) == "h.1"
    assert isinstance(skeleton.blocks, nn.ModuleList)
    family, heads = load_family(bare)
    assert family == skeleton.family
    fold = Fold(family, heads, random_orders(family, heads, skeleton))
    torch.testing.assert_close(
        logits(folded_folder(bare, tmp_path / "out", fold.apply)), logits(source), rtol=0, atol=1e-9
    )
