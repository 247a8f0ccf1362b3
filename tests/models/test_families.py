"""Every architecture: all linears of a block are listed with their input activations, and folding changes no output."""

import functools
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES as LLAMA_SHAPED
from tiny import MIXTURES, OTHERS
from torch import nn
from transformers import AutoModelForCausalLM

from eggs_ptp.core.permutation import invert
from eggs_ptp.engine.planning.checks import check_coverage
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.discover import is_linear
from eggs_ptp.models.fold import Fold, check_names, space_key
from eggs_ptp.models.load import load_family, load_skeleton
from eggs_ptp.models.registry import FAMILIES, VARIANTS

NAMES = [*OTHERS, *MIXTURES]
TOKENS = torch.randint(0, 258, (2, 24), generator=torch.Generator().manual_seed(1))
SAME_AS_ATTENTION_IN = {"stablelm-parallel": "mlp_in", "falcon-7b": "mlp_in"}  # two names of the same tensor
TIED = ("gemma2", "gpt2", "opt-350m", "falcon-7b", "phi3")


def rms_norm(module, hidden):
    """Compute the library's norms in float64; they themselves always compute in float32."""
    gemma = type(module).__name__.startswith("Gemma")
    scale = hidden.square().mean(-1, keepdim=True) + (module.eps if gemma else module.variance_epsilon)
    return (module.weight + float(gemma)) * hidden * scale.rsqrt()


def logits(folder):
    """Compute the logits of a folder's model in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    model.set_experts_implementation("eager")  # other implementations do not support float64
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, module)
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def random_permutations(family, heads, skeleton):
    """Draw a permutation of every space of the model, as free as its scope allows."""
    generator = torch.Generator().manual_seed(0)
    permutations = {}
    for index, block in enumerate(skeleton.blocks):
        for linear in skeleton.of_block(index).linears:
            space = family.spaces[linear.input_activation]
            key = space_key(family, skeleton.block_name(index), space)
            if family.scope[space] == "head":
                parts = [torch.randperm(heads.width, generator=generator) for _ in range(heads.value)]
                permutations[key] = torch.cat([part + head * heads.width for head, part in enumerate(parts)])
            else:
                width = block.get_submodule(linear.path).weight.shape[0 if linear.transposed else 1]
                permutations.setdefault(key, torch.randperm(width, generator=generator))
    return permutations


def folded_folder(source, target, change):
    """Copy a folder and change every tensor."""
    shutil.copytree(source, target)
    tensors = {name: change(name, t).contiguous() for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_every_family_has_a_tiny_model():
    assert {model_type for model_type, _ in OTHERS.values()} | set(LLAMA_SHAPED) == set(FAMILIES)
    assert {model_type for model_type, _ in MIXTURES.values()} == VARIANTS.keys() - FAMILIES.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_every_linear_of_a_block_is_listed_with_its_input_activation(tiny, name):
    skeleton = load_skeleton(tiny(name))
    check_coverage(skeleton, CheckpointReader(skeleton.folder, ties=skeleton.ties))
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
    for first in family.linears:
        for second in family.linears:
            activations = {
                linear.input_activation.replace(SAME_AS_ATTENTION_IN.get(name, "\n"), "attention_in")
                for linear in (first, second)
            }
            a = inputs[first.path]
            b = inputs[second.path]
            same_input = a.shape == b.shape and torch.equal(a, b)
            assert same_input == (len(activations) == 1), (first.path, second.path)


@pytest.mark.parametrize(("name", "tie"), [*((name, False) for name in NAMES), *((name, True) for name in TIED)])
def test_random_permutations_of_every_space_change_no_logit(tiny, tmp_path, name, tie):
    source = tiny(name, tie=tie)
    family, heads = load_family(source)
    permutations = random_permutations(family, heads, load_skeleton(source))
    assert {family.scope[name.rpartition(".")[2]] for name in permutations} == {"model", "head", "block"}
    fold = Fold(family, heads, permutations)
    output = folded_folder(source, tmp_path / "folded", fold.apply)
    dense, folded = logits(source), logits(output)
    assert dense.std() > 0.1
    torch.testing.assert_close(folded, dense, rtol=0.0, atol=1e-9)
    tensors = load_file(source / "model.safetensors")
    for tensor, moved in load_file(output / "model.safetensors").items():
        assert torch.equal(fold.undo(tensor, moved), tensors[tensor])
        assert torch.equal(moved, tensors[tensor]) == (
            not any(permutation is not None for permutation in fold.axes(tensor))
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_space_folds_alone_and_moves_its_consumers_and_producers(tiny, tmp_path, name):
    source = tiny(name)
    family, heads = load_family(source)
    tensors = load_file(source / "model.safetensors")
    dense = logits(source)
    for space, permutation in random_permutations(family, heads, load_skeleton(source)).items():
        if space.startswith(f"{family.blocks}.0."):
            continue  # the same as in block 1
        fold = Fold(family, heads, {space: permutation})
        output = folded_folder(source, tmp_path / space, fold.apply)
        torch.testing.assert_close(logits(output), dense, rtol=0.0, atol=1e-9)
        moved = {name for name, tensor in tensors.items() if not torch.equal(fold.apply(name, tensor), tensor)}
        block, _, space_name = space.rpartition(".")
        for linear in family.linears if block else ():
            touched = space_name in (linear.output_space, family.spaces[linear.input_activation])
            assert (f"{block}.{linear.path}.weight" in moved) == touched
        assert len(moved) >= (2 if block else len(tensors) // 2)


@pytest.mark.parametrize("name", OTHERS)
def test_the_inputs_of_a_folded_matrix_are_permuted_as_reported(tiny, name):
    """With the inverse of the reported permutation, a folded matrix has the rows of the dense one, in some order."""
    source = tiny(name)
    family, heads = load_family(source)
    skeleton = load_skeleton(source)
    fold = Fold(family, heads, random_permutations(family, heads, skeleton))
    tensors = load_file(source / "model.safetensors")
    for linear in family.linears:
        matrix = f"{skeleton.block_name(1)}.{linear.path}"
        dense, folded = (
            weight.T if linear.transposed else weight
            for weight in (tensors[f"{matrix}.weight"], fold.apply(f"{matrix}.weight", tensors[f"{matrix}.weight"]))
        )
        permutation = fold.of_inputs(matrix)
        assert permutation is not None
        restored = folded[:, invert(permutation)]
        assert torch.equal(restored.sort(0).values, dense.sort(0).values)


@pytest.mark.parametrize("name", OTHERS)
def test_a_family_knows_every_tensor_of_a_model(tiny, name):
    family, _ = load_family(tiny(name))
    check_names(family, list(AutoModelForCausalLM.from_pretrained(tiny(name)).state_dict()))
    spaces = set(family.spaces.values())
    assert spaces == family.scope.keys()
    assert {linear.output_space for linear in family.linears} - {None} <= spaces
    assert family.known
    assert family.folds


def test_a_checkpoint_without_its_head_is_the_same_model(tiny, tmp_path):
    """As GPT-2 on the hub, whose tensors have no prefix."""
    source = tiny("gpt2", tie=True)
    headless = shutil.copytree(source, tmp_path / "headless")
    tensors = load_file(source / "model.safetensors")
    save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, headless / "model.safetensors")
    skeleton = load_skeleton(headless)
    reader = CheckpointReader(headless, ties=skeleton.ties)
    check_coverage(skeleton, reader)
    check_names(skeleton.family, reader.names)
    assert skeleton.block_name(1) == "h.1"
    assert isinstance(skeleton.blocks, nn.ModuleList)
    family, heads = load_family(headless)
    assert family == skeleton.family
    fold = Fold(family, heads, random_permutations(family, heads, skeleton))
    torch.testing.assert_close(
        logits(folded_folder(headless, tmp_path / "out", fold.apply)), logits(source), rtol=0, atol=1e-9
    )
