"""Verification: an intact folder passes, and every kind of damage is found and named."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp import api
from eggs_ptp.checkpoint.verify import source_model, verify_folder
from eggs_ptp.errors import CheckpointError, EggsError, ModelError
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def outputs(tiny, text_file, tmp_path_factory):
    """`outputs("wanda")`: source and a pruned folder, created once."""
    folders = {}

    def pruned(method="wanda", pattern="2:4", permutation="fold", **source):
        key = (method, pattern, permutation, *sorted(source.items()))
        if key not in folders:
            folder = tmp_path_factory.mktemp("pruned") / "out"
            recipe = Recipe(
                method=method,
                pattern=pattern,
                permutation=permutation,
                exclude=("*.o_proj",),
                calibration=CalibrationSpec(text=str(text_file), nsamples=4, seqlen=32),
            )
            api.prune(str(tiny(**source)), folder, recipe)
            folders[key] = folder
        return tiny(**source), folders[key]

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
    """Replace a tensor of a file by what `change` returns, or drop it if that is None."""
    tensors = load_file(file)
    changed = change(tensors.pop(tensor))
    if changed is not None:
        tensors[tensor] = changed.contiguous()
    save_file(tensors, file, {"format": "pt"})


def set_to(index, value):
    def change(tensor):
        tensor[index] = value
        return tensor

    return change


def name_and_detail(checks):
    return [(check.name, check.detail) for check in checks]


def check_only_failure(result, name, detail):
    assert not result.ok
    assert name_and_detail(result.failures) == [(name, detail)]


@pytest.mark.parametrize("source", [{}, {"tie": True, "dtype": torch.bfloat16}], ids=["untied", "tied-bfloat16"])
@pytest.mark.parametrize("method", ["wanda", "eggs_paper"])
@pytest.mark.parametrize("permutation", ["fold", "gather", "mask"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_an_intact_folder_passes(outputs, method, pattern, permutation, source):
    dense, folder = outputs(method, pattern, permutation, **source)
    result = verify_folder(folder, dense)
    assert result.ok
    assert result.failures == []
    names = [check.name for check in result.checks]
    assert len(names) == 12 + 6
    folder_checks = ["finite values", "ties", "untouched tensors", "tensor names", "unpruned tensors", "kept weights"]
    assert names[12:] == folder_checks
    assert not any(name.endswith("o_proj") for name in names)
    assert result.checks[0].detail == f"{pattern}, 0.5000 non-zero"
    assert json.loads(json.dumps(result.to_dict()))["ok"] is True


def test_an_unstructured_folder_passes_and_the_source_is_optional(outputs):
    _, folder = outputs("wanda", "0.6")
    result = verify_folder(folder)
    assert result.ok
    assert result.checks[0].detail == "0.6, 0.4062 non-zero"  # round(32 * 0.6) = 19 of 32 are zero


def test_a_group_with_too_many_weights_is_found(damaged):
    result = damaged(f"{UP}.weight", set_to((0, slice(0, 4)), 1.0))
    assert {check.name for check in result.failures} == {UP, "kept weights"}
    assert result.failures[0].detail == "1 of 512 groups keep more than 2:4"


@pytest.mark.parametrize("method", ["wanda", "eggs_paper"])
def test_a_dense_matrix_is_found(outputs, tmp_path, method):
    dense, folder = outputs(method)
    copy = shutil.copytree(folder, tmp_path / "copy")
    weight = load_file(dense / "model.safetensors")[f"{UP}.weight"]
    edit(copy / "model.safetensors", f"{UP}.weight", lambda _: weight)
    check_only_failure(verify_folder(copy), UP, "512 of 512 groups keep more than 2:4")


def test_a_density_that_is_too_high_is_found(damaged):
    result = damaged(f"{UP}.weight", lambda weight: weight.where(weight != 0, 1.0), pattern="0.6")
    assert result.failures[0].name == UP
    assert result.failures[0].detail == "1.000000 of the weights are non-zero, expected at most 0.406250"


def test_a_kept_weight_that_changed_is_found(damaged):
    result = damaged(f"{UP}.weight", lambda weight: weight * 1.001)
    check_only_failure(result, "kept weights", f"changed: {UP}.weight")


def test_kept_weights_that_became_zero_are_found(damaged):
    result = damaged(f"{UP}.weight", torch.zeros_like)
    assert name_and_detail(result.failures) == [
        (UP, "0 weights are not zero, recorded were 1024"),
        ("kept weights", f"changed: {UP}.weight"),
    ]


def test_a_negative_zero_is_found(damaged):
    result = damaged(f"{UP}.weight", lambda weight: weight.where(weight != 0, -0.0))
    check_only_failure(result, "kept weights", f"changed: {UP}.weight")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.o_proj.weight"])
def test_an_unpruned_tensor_that_changed_is_found(damaged, name):
    result = damaged(name, lambda tensor: tensor + 1e-6)
    assert name_and_detail(result.failures) == [
        ("untouched tensors", f"changed: {name}"),  # by its hash, so also without the source
        ("unpruned tensors", f"changed: {name}"),
    ]


def test_an_unpruned_tensor_of_another_type_is_found(damaged):
    name = "model.norm.weight"
    result = damaged(name, lambda tensor: tensor.double())
    assert ("unpruned tensors", f"changed: {name}") in name_and_detail(result.failures)


def test_the_same_bits_of_another_type_are_found(damaged):
    name = "model.norm.weight"
    result = damaged(name, lambda tensor: tensor.view(torch.float16), dtype=torch.bfloat16)
    assert ("unpruned tensors", f"changed: {name}") in name_and_detail(result.failures)


def test_a_pruned_tensor_of_another_type_is_found(damaged):
    result = damaged(f"{UP}.weight", lambda tensor: tensor.double())
    check_only_failure(result, "kept weights", f"changed: {UP}.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_found(damaged, value):
    result = damaged("model.norm.weight", set_to(3, value))
    assert ("finite values", "NaN or infinity in model.norm.weight") in name_and_detail(result.failures)


def test_a_missing_tensor_is_found(damaged):
    result = damaged(f"{UP}.weight", lambda _: None)
    assert name_and_detail(result.failures) == [
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
    details = dict(name_and_detail(verify_folder(copy).failures))
    assert details["ties"] == "lm_head.weight differs from model.embed_tokens.weight"
    assert details["untouched tensors"] == "only in the record or only in the folder: lm_head.weight"


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda _: None, "recorded as permuted, but eggs/orders.safetensors does not have its permutation"),
        (set_to(0, 5), "its entry in eggs/orders.safetensors is not a permutation of 32 channels"),
        (
            lambda permutation: permutation[:-1],
            "its entry in eggs/orders.safetensors is not a permutation of 32 channels",
        ),
        (
            lambda permutation: permutation + 1,
            "its entry in eggs/orders.safetensors is not a permutation of 32 channels",
        ),
    ],
    ids=["missing", "doubled", "short", "shifted"],
)
def test_a_broken_permutation_is_found(outputs, tmp_path, change, detail):
    _, folder = outputs("eggs_paper", permutation="mask")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", UP, change)
    check_only_failure(verify_folder(copy), UP, detail)


def test_another_permutation_is_found(outputs, tmp_path):
    _, folder = outputs("eggs_paper", permutation="gather")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", UP, lambda permutation: permutation.sort().values)
    (failure,) = verify_folder(copy).failures
    assert failure.name == UP
    assert re.fullmatch(r"\d+ of 512 groups keep more than 2:4", failure.detail)


def test_missing_permutations_are_found(outputs, tmp_path):
    _, folder = outputs("eggs_paper", permutation="gather")
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "eggs")
    result = verify_folder(copy)
    assert len(result.failures) == 12
    assert {check.detail[:21] for check in result.failures} == {"recorded as permuted,"}


@pytest.mark.parametrize(
    ("name", "change", "detail"),
    [
        ("residual", lambda _: None, "does not have the permutation folded into model.layers.0.self_attn.q_proj"),
        (
            "model.layers.1.mlp",
            lambda _: None,
            "does not have the permutation folded into model.layers.1.mlp.down_proj",
        ),
        (
            "residual",
            set_to(0, 5),
            "residual: expected a channel permutation, integers of shape (32,) with each of 0..31",
        ),
        ("residual", lambda permutation: permutation[:-1], "residual: expected a channel permutation"),
    ],
    ids=["missing", "missing-mlp", "doubled", "short"],
)
def test_a_broken_permutation_of_a_channel_space_is_found(outputs, tmp_path, name, change, detail):
    dense, folder = outputs("eggs_paper")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", name, change)
    for result in (verify_folder(copy), verify_folder(copy, dense)):
        (failure,) = result.failures
        assert failure.name == "permutations"
        assert detail in failure.detail


def test_a_permutation_that_mixes_heads_is_found(tiny, text_file, tmp_path):
    calibration = CalibrationSpec(text=str(text_file), nsamples=4, seqlen=32)
    api.prune(str(tiny()), tmp_path / "out", Recipe(method="ria_cp", calibration=calibration))
    edit(
        tmp_path / "out" / "eggs" / "orders.safetensors",
        "model.layers.0.heads",
        lambda permutation: permutation.flip(0),
    )
    (failure,) = verify_folder(tmp_path / "out").failures
    assert failure.name == "permutations"
    assert "expected a permutation inside each of the 2 key/value heads of 8 channels" in failure.detail


def test_another_folded_permutation_is_found(outputs, tmp_path):
    """Every tensor is then permuted wrongly, which only a comparison with the source shows."""
    dense, folder = outputs("eggs_paper")
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(copy / "eggs" / "orders.safetensors", "residual", lambda permutation: permutation.flip(0))
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
    dense, folder = outputs("eggs_paper", permutation="gather")
    copy = shutil.copytree(folder, tmp_path / "copy")
    record = json.loads((copy / "eggs.json").read_text())
    first_format = {**record, "format": 1, "matrices": [{**m, "in_order": None} for m in record["matrices"]]}
    first_format.pop("orders")
    for matrix in first_format["matrices"]:
        matrix.pop("in_order")
    (copy / "eggs.json").write_text(json.dumps(first_format))
    assert verify_folder(copy, dense).ok
    shutil.rmtree(copy / "eggs")
    assert len(verify_folder(copy).failures) == 12


def test_another_pattern_can_be_checked(outputs):
    _, folder = outputs("wanda", "2:4")
    assert verify_folder(folder, pattern="4:8").ok  # each 2:4 is one
    result = verify_folder(folder, pattern="1:4")
    assert len(result.failures) == 12
    assert "keep more than 1:4" in result.failures[0].detail


def test_a_folder_of_another_tool_is_checked_for_the_given_pattern(outputs, tiny, tmp_path):
    _, folder = outputs("wanda", "2:4")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "eggs.json").unlink()
    result = verify_folder(copy, pattern="2:4")
    assert [check.name for check in result.failures] == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)]
    assert source_model(copy) is None
    assert len(verify_folder(tiny(), pattern="2:4").failures) == 14


def test_a_width_that_the_pattern_does_not_divide_is_found(tiny):
    result = verify_folder(tiny(), pattern="3:5")
    assert result.failures[0].detail == "64 inputs cannot be cut into groups of 5"


def test_a_folder_of_another_tool_needs_a_pattern(tiny):
    with pytest.raises(CheckpointError, match=r"no eggs\.json says what to expect; pass --pattern"):
        verify_folder(tiny())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: "{", "not valid JSON"),
        (lambda record: "[]", "not a record that this version can read"),
        (lambda record: json.dumps({**record, "format": 99}), "got format 99, this version reads formats 1 and 2"),
        (
            lambda record: json.dumps({**record, "source": {}}),
            "can read (source.model is not text",
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


def test_an_impossible_recorded_pattern_is_named(outputs, tmp_path):
    _, folder = outputs("wanda")
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "eggs.json"
    path.write_text(path.read_text().replace('"pattern": "2:4"', '"pattern": "4:2"'))
    with pytest.raises(EggsError, match="pattern 4:2 keeps 4 of 2"):
        verify_folder(copy)


def test_a_folder_that_is_not_a_model_is_refused(tmp_path, outputs):
    _, folder = outputs("wanda")
    with pytest.raises(ModelError, match=r"no config\.json"):
        verify_folder(tmp_path)
    with pytest.raises(ModelError, match=r"expected model\.safetensors"):
        verify_folder(folder, tmp_path)


def test_the_source_is_recorded(outputs):
    dense, folder = outputs("wanda")
    assert source_model(folder) == str(dense)
    assert source_model(dense) is None
