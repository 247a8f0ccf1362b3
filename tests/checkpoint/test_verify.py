"""Verification: a sound folder passes, and every kind of damage is found and named."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp import api
from eggs_ptp.checkpoint.verify import made_from, verify_folder
from eggs_ptp.errors import CheckpointError, EggsError, ModelError
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def outputs(tiny, text_file, tmp_path_factory):
    """`outputs("wanda")`: source and a pruned folder, made once."""
    made = {}

    def pruned(method="wanda", pattern="2:4", orders="fold", **source):
        key = (method, pattern, orders, *sorted(source.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("pruned") / "out"
            calibration = CalibrationSpec(text=str(text_file), nsamples=4, seqlen=32)
            settings = {"method": method, "pattern": pattern, "orders": orders, "calibration": calibration}
            recipe = Recipe(exclude=("*.o_proj",), **settings)
            api.prune(str(tiny(**source)), folder, recipe)
            made[key] = folder
        return tiny(**source), made[key]

    return pruned


@pytest.fixture
def damaged(outputs, tmp_path):
    """`damaged(tensor, change)`: verify a copy in which one tensor was changed, against the source."""

    def verify(tensor, change, *, method="wanda", pattern="2:4", **source):
        dense, folder = outputs(method, pattern, **source)
        copy = shutil.copytree(folder, tmp_path / "copy")
        edit(copy / "model.safetensors", tensor, change)
        return verify_folder(copy, dense)

    return verify


def edit(file, tensor, change):
    """Let `change` alter a tensor in place, or return another one, or None to leave it out."""
    tensors = load_file(file)
    result = change(tensors[tensor])
    tensors.pop(tensor)
    if result is not None:
        tensors[tensor] = result.contiguous()
    save_file(tensors, file, {"format": "pt"})


def set_to(place, value):
    def change(tensor):
        tensor[place] = value
        return tensor

    return change


def only_failure(found, name, detail):
    assert not found.ok
    assert [(check.name, check.detail) for check in found.failures] == [(name, detail)]


@pytest.mark.parametrize("source", [{}, {"tie": True, "dtype": torch.bfloat16}], ids=["untied", "tied-bfloat16"])
@pytest.mark.parametrize("method", ["wanda", "eggs_paper"])
@pytest.mark.parametrize("orders", ["fold", "gather", "mask"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_sound_folder_passes(outputs, method, pattern, orders, source):
    dense, folder = outputs(method, pattern, orders, **source)
    found = verify_folder(folder, dense)
    assert found.ok
    assert found.failures == []
    names = [check.name for check in found.checks]
    assert len(names) == 12 + 6
    rest = ["finite values", "ties", "untouched tensors", "tensor names", "unpruned tensors", "kept weights"]
    assert names[12:] == rest
    assert not any(name.endswith("o_proj") for name in names)
    assert found.checks[0].detail == f"{pattern}, 0.5000 non-zero"
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


def test_an_unstructured_folder_passes_and_the_source_is_optional(outputs):
    _, folder = outputs("wanda", "0.6")
    found = verify_folder(folder)
    assert found.ok
    assert found.checks[0].detail == "0.6, 0.4062 non-zero"  # round(32 * 0.6) = 19 of 32 are zero


def test_a_group_with_too_many_is_found(damaged):
    found = damaged(f"{UP}.weight", set_to((0, slice(0, 4)), 1.0))
    assert {check.name for check in found.failures} == {UP, "kept weights"}
    assert found.failures[0].detail == "1 of 512 groups keep more than 2:4"


@pytest.mark.parametrize("method", ["wanda", "eggs_paper"])
def test_a_dense_matrix_is_found(outputs, tmp_path, method):
    dense, folder = outputs(method)
    copy = shutil.copytree(folder, tmp_path / "copy")
    weight = load_file(dense / "model.safetensors")[f"{UP}.weight"]
    edit(copy / "model.safetensors", f"{UP}.weight", lambda _: weight)
    only_failure(verify_folder(copy), UP, "512 of 512 groups keep more than 2:4")


def test_too_high_a_density_is_found(damaged):
    found = damaged(f"{UP}.weight", lambda weight: weight.where(weight != 0, 1.0), pattern="0.6")
    assert found.failures[0].name == UP
    assert found.failures[0].detail == "1.000000 of the weights are non-zero, expected at most 0.406250"


def test_a_kept_weight_that_changed_is_found(damaged):
    found = damaged(f"{UP}.weight", lambda weight: weight * 1.001)
    only_failure(found, "kept weights", f"changed: {UP}.weight")


def test_kept_weights_that_became_zero_are_found(damaged):
    found = damaged(f"{UP}.weight", torch.zeros_like)
    assert [(check.name, check.detail) for check in found.failures] == [
        (UP, "0 weights are not zero, recorded were 1024"),
        ("kept weights", f"changed: {UP}.weight"),
    ]


def test_a_negative_zero_is_found(damaged):
    found = damaged(f"{UP}.weight", lambda weight: weight.where(weight != 0, -0.0))
    only_failure(found, "kept weights", f"changed: {UP}.weight")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.o_proj.weight"])
def test_an_unpruned_tensor_that_changed_is_found(damaged, name):
    found = damaged(name, lambda tensor: tensor + 1e-6)
    assert [(check.name, check.detail) for check in found.failures] == [
        ("untouched tensors", f"changed: {name}"),  # by its hash, so also without the source
        ("unpruned tensors", f"changed: {name}"),
    ]


def test_an_unpruned_tensor_of_another_type_is_found(damaged):
    name = "model.norm.weight"
    found = damaged(name, lambda tensor: tensor.double())
    assert ("unpruned tensors", f"changed: {name}") in [(check.name, check.detail) for check in found.failures]


def test_the_same_bits_of_another_type_are_found(damaged):
    name = "model.norm.weight"
    found = damaged(name, lambda tensor: tensor.view(torch.float16), dtype=torch.bfloat16)
    assert ("unpruned tensors", f"changed: {name}") in [(check.name, check.detail) for check in found.failures]


def test_a_pruned_tensor_of_another_type_is_found(damaged):
    found = damaged(f"{UP}.weight", lambda tensor: tensor.double())
    only_failure(found, "kept weights", f"changed: {UP}.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_found(damaged, value):
    found = damaged("model.norm.weight", set_to(3, value))
    assert ("finite values", "NaN or infinity in model.norm.weight") in [(c.name, c.detail) for c in found.failures]


def test_a_missing_tensor_is_found(damaged):
    found = damaged(f"{UP}.weight", lambda _: None)
    assert [(check.name, check.detail) for check in found.failures] == [
        (UP, "recorded as pruned, but the folder does not have it"),
        ("tensor names", f"only in one of the two: {UP}.weight"),
    ]


def test_a_broken_tie_is_found(outputs, tmp_path):
    _, folder = outputs(tie=True)
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, file)
    assert "ties" not in [check.name for check in verify_folder(copy).failures]  # stored twice, but the same
    save_file({**tensors, "lm_head.weight": embedding + 1}, file)
    found = {check.name: check.detail for check in verify_folder(copy).failures}
    assert found["ties"] == "lm_head.weight differs from model.embed_tokens.weight"
    assert found["untouched tensors"] == "only in the record or only in the folder: lm_head.weight"


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda _: None, "recorded as permuted, but eggs/orders.safetensors does not have its order"),
        (set_to(0, 5), "its order in eggs/orders.safetensors is not a permutation of 32 channels"),
        (lambda order: order[:-1], "its order in eggs/orders.safetensors is not a permutation of 32 channels"),
        (lambda order: order + 1, "its order in eggs/orders.safetensors is not a permutation of 32 channels"),
    ],
    ids=["missing", "doubled", "short", "shifted"],
)
def test_a_broken_order_is_found(outputs, tmp_path, change, detail):
    _, folder = outputs("eggs_paper", orders="mask")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", UP, change)
    only_failure(verify_folder(copy), UP, detail)


def test_another_order_is_found(outputs, tmp_path):
    _, folder = outputs("eggs_paper", orders="gather")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", UP, lambda order: order.sort().values)
    (failure,) = verify_folder(copy).failures
    assert failure.name == UP
    assert re.fullmatch(r"\d+ of 512 groups keep more than 2:4", failure.detail)


def test_missing_orders_are_found(outputs, tmp_path):
    _, folder = outputs("eggs_paper", orders="gather")
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "eggs")
    found = verify_folder(copy)
    assert len(found.failures) == 12
    assert {check.detail[:21] for check in found.failures} == {"recorded as permuted,"}


@pytest.mark.parametrize(
    ("name", "change", "detail"),
    [
        ("residual", lambda _: None, "does not have the order folded into model.layers.0.self_attn.q_proj"),
        ("model.layers.1.mlp", lambda _: None, "does not have the order folded into model.layers.1.mlp.down_proj"),
        ("residual", set_to(0, 5), "residual: expected a channel order, integers of shape (32,) with each of 0..31"),
        ("residual", lambda order: order[:-1], "residual: expected a channel order"),
    ],
    ids=["missing", "missing-mlp", "doubled", "short"],
)
def test_a_broken_order_of_a_space_is_found(outputs, tmp_path, name, change, detail):
    dense, folder = outputs("eggs_paper")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", name, change)
    for found in (verify_folder(copy), verify_folder(copy, dense)):
        (failure,) = found.failures
        assert failure.name == "orders"
        assert detail in failure.detail


def test_an_order_that_mixes_heads_is_found(tiny, text_file, tmp_path):
    calibration = CalibrationSpec(text=str(text_file), nsamples=4, seqlen=32)
    api.prune(str(tiny()), tmp_path / "out", Recipe(method="ria_cp", calibration=calibration))
    edit(tmp_path / "out" / "eggs" / "orders.safetensors", "model.layers.0.heads", lambda order: order.flip(0))
    (failure,) = verify_folder(tmp_path / "out").failures
    assert failure.name == "orders"
    assert "expected an order that keeps each of the 2 key/value heads of 8 channels to itself" in failure.detail


def test_another_folded_order_is_found(outputs, tmp_path):
    """Every tensor is then found where it is not, which only the source can tell."""
    dense, folder = outputs("eggs_paper")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", "residual", lambda order: order.flip(0))
    assert verify_folder(copy).ok
    assert {check.name for check in verify_folder(copy, dense).failures} == {"unpruned tensors", "kept weights"}


@pytest.mark.parametrize("name", ["lm_head.weight", f"{UP}.weight"])
def test_a_folded_tensor_that_changed_is_found(outputs, tmp_path, name):
    dense, folder = outputs("eggs_paper")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "model.safetensors", name, lambda tensor: tensor * 1.001)
    expected = {"kept weights"} if name.startswith(UP) else {"unpruned tensors", "untouched tensors"}
    assert {check.name for check in verify_folder(copy, dense).failures} == expected


def test_a_record_of_the_first_format_is_read(outputs, tmp_path):
    dense, folder = outputs("eggs_paper", orders="gather")
    copy = shutil.copytree(folder, tmp_path / "copy")
    record = json.loads((copy / "eggs.json").read_text())
    first = {**record, "format": 1, "matrices": [{**m, "in_order": None} for m in record["matrices"]]}
    first.pop("orders")
    for matrix in first["matrices"]:
        matrix.pop("in_order")
    (copy / "eggs.json").write_text(json.dumps(first))
    assert verify_folder(copy, dense).ok
    shutil.rmtree(copy / "eggs")
    assert len(verify_folder(copy).failures) == 12


def test_another_pattern_may_be_asked_for(outputs):
    _, folder = outputs("wanda", "2:4")
    assert verify_folder(folder, pattern="4:8").ok  # each 2:4 is one
    found = verify_folder(folder, pattern="1:4")
    assert len(found.failures) == 12
    assert "keep more than 1:4" in found.failures[0].detail


def test_a_folder_of_another_tool_is_checked_for_a_pattern(outputs, tiny, tmp_path):
    _, folder = outputs("wanda", "2:4")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "eggs.json").unlink()
    found = verify_folder(copy, pattern="2:4")
    assert [check.name for check in found.failures] == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)]
    assert made_from(copy) is None
    assert len(verify_folder(tiny(), pattern="2:4").failures) == 14


def test_a_width_that_the_pattern_does_not_divide_is_found(tiny):
    found = verify_folder(tiny(), pattern="3:5")
    assert found.failures[0].detail == "64 inputs cannot be cut into groups of 5"


def test_a_folder_of_another_tool_needs_a_pattern(tiny):
    with pytest.raises(CheckpointError, match=r"no eggs\.json says what to expect; pass --pattern"):
        verify_folder(tiny())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: "{", "not valid JSON"),
        (lambda record: "[]", "not a record that this version can read"),
        (lambda record: json.dumps({**record, "format": 99}), "format 99, this version reads format 1 and 2"),
        (
            lambda record: json.dumps({**record, "source": {}}),
            "can read (source.model is no text",
        ),
        (lambda record: json.dumps({**record, "matrices": [{"name": UP}]}), "not a record that this version can read"),
        (lambda record: json.dumps({**record, "matrices": []}), "there is nothing to check"),
    ],
    ids=["not-json", "list", "format", "no-source", "half-a-matrix", "no-matrix"],
)
def test_a_broken_record_is_named(outputs, tmp_path, change, message):
    _, folder = outputs("wanda")
    copy = shutil.copytree(folder, tmp_path / "copy")
    record = json.loads((copy / "eggs.json").read_text())
    (copy / "eggs.json").write_text(change(record))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        verify_folder(copy)


def test_a_recorded_pattern_that_is_none_is_named(outputs, tmp_path):
    _, folder = outputs("wanda")
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "eggs.json"
    path.write_text(path.read_text().replace('"pattern": "2:4"', '"pattern": "4:2"'))
    with pytest.raises(EggsError, match="pattern 4:2 keeps 4 of 2"):
        verify_folder(copy)


def test_what_is_no_model_is_refused(tmp_path, outputs):
    _, folder = outputs("wanda")
    with pytest.raises(ModelError, match=r"no config\.json"):
        verify_folder(tmp_path)
    with pytest.raises(ModelError, match=r"expected model\.safetensors"):
        verify_folder(folder, tmp_path)


def test_the_source_is_remembered(outputs):
    dense, folder = outputs("wanda")
    assert made_from(folder) == str(dense)
    assert made_from(dense) is None
