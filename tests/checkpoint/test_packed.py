"""Folders packed and made dense again, bit for bit; damaged files are refused by name."""

import json
import shutil

import pytest
import torch
from oracles.packing import nm_matrix, same_bits
from safetensors.torch import load_file, save_file
from tiny import change_packed

from eggs_ptp import api
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.checkpoint.staging import MANIFEST, ORDERS
from eggs_ptp.checkpoint.unpacked import UnpackedReader, is_packed, open_reader
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.engine.tensors.writer import SafetensorsWriter
from eggs_ptp.errors import CheckpointError, EggsError, ModelError, PatternError

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    """`pruned(dtype, family)`: a folder pruned to 2:4, and its MLPs to 4:8."""
    folders = {}

    def folder(dtype=torch.float32, family="llama", **settings):
        key = repr((dtype, family, settings))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("pruned") / "out"
            settings = {"method": "magnitude", "targets": [{"match": "*.mlp.*", "pattern": "4:8"}], **settings}
            api.prune(str(tiny(family, dtype=dtype)), folders[key], **settings)
        return folders[key]

    return folder


@pytest.fixture
def packed(pruned, tmp_path):
    export(pruned(), tmp_path / "packed", "packed")
    return tmp_path / "packed"


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change(folder, name, tensor):
    """Replace a tensor, or drop it if `tensor` is None."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored.pop(name, None)
    if tensor is not None:
        stored[name] = tensor
    save_file(stored, path, {"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packing_and_unpacking_restores_the_folder(pruned, tmp_path, dtype, family):
    source = pruned(dtype, family)
    packing = export(source, tmp_path / "packed", "packed")
    unpacking = export(tmp_path / "packed", tmp_path / "dense", "dense")
    before, after = files(source), files(tmp_path / "dense")
    assert before.keys() == after.keys()
    for name in before:
        if name.suffix == ".safetensors":
            old, new = load_file(source / name), load_file(tmp_path / "dense" / name)
            assert old.keys() == new.keys()
            assert all(same_bits(old[key], new[key]) for key in old)
        elif name.name == "config.json":
            assert json.loads(before[name]) == json.loads(after[name])
        else:
            assert before[name] == after[name], name
    expected_bytes = (0.5 + 1 / (8 * dtype.itemsize)) * packing.dense_bytes
    assert (packing.matrices, packing.packed_bytes) == (14, expected_bytes)
    assert (packing.dense_bytes, packing.packed_bytes) == (unpacking.dense_bytes, unpacking.packed_bytes)


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_quantised_folder_unpacks_and_packs_without_another_change(pruned, tiny, tmp_path, dtype, values):
    first = tmp_path / "first"
    second = tmp_path / "second"
    packing = export(pruned(dtype), first, "packed", values=values)
    assert (packing.matrices, packing.rounded) == (14, 14)
    stored = load_file(first / "model.safetensors")
    integers = {"int8": torch.int8, "int4": torch.uint8}[values]
    assert {stored[f"{DOWN}.{part}"].dtype for part in ("values", "scales")} == {integers, dtype}
    sizes = [tensor.nbytes for name, tensor in stored.items() if name.endswith((".values", ".bits", ".scales"))]
    assert sum(sizes) == packing.packed_bytes
    assert api.verify(first, str(tiny("llama", dtype=dtype))).ok
    export(first, tmp_path / "dense", "dense")
    assert api.verify(tmp_path / "dense").ok
    packed = UnpackedReader(first)
    dense = CheckpointReader(tmp_path / "dense")
    assert packed.packed_config.values[DOWN] == values
    assert packed.names == dense.names
    for name in dense.names:
        assert same_bits(packed.read(name), dense.read(name))
        assert (packed.shape(name), packed.dtype(name)) == (dense.shape(name), dense.dtype(name))
    assert export(tmp_path / "dense", second, "packed", values=values).rounded == 0
    assert stored.keys() == load_file(second / "model.safetensors").keys()
    assert all(same_bits(packed.read(name), UnpackedReader(second).read(name)) for name in dense.names)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_gptq_weights_on_the_quantisation_grid_are_packed_without_a_change(tiny, tmp_path, values):
    """Scales are computed from the weights, which works with folded permutations and weights stored in 16 bits."""
    text = tmp_path / "text.txt"
    text.write_text("A text of a few words, said again and again. " * 60)
    settings = {"calibration": str(text), "nsamples": 4, "seqlen": 32, "steps": {"update": {"values": values}}}
    model = str(tiny("llama", dtype=torch.bfloat16))
    record = api.prune(model, tmp_path / "out", method="ria_cp+gptq", **settings)
    assert record.permutations == "fold"
    assert export(tmp_path / "out", tmp_path / "packed", "packed", values=values).rounded == 0
    dense, packed = CheckpointReader(tmp_path / "out"), UnpackedReader(tmp_path / "packed")
    assert all(same_bits(packed.read(name), dense.read(name)) for name in dense.names)
    assert (tmp_path / "packed" / MANIFEST).read_bytes() == (tmp_path / "out" / MANIFEST).read_bytes()


def test_the_card_says_which_format_the_folder_has(pruned, tmp_path):
    dense = (pruned() / "README.md").read_text()
    assert "stored dense with zeros" in dense
    for values in (None, "int8", "int4"):
        export(pruned(), tmp_path / f"{values}", "packed", values=values)
        card = (tmp_path / f"{values}" / "README.md").read_text()
        assert "stored dense" not in card
        assert "The weights are packed, without their zeros" in card
        assert "`import eggs_ptp`" in card
        assert (f"kept values are {values}" in card) == bool(values)
        export(tmp_path / f"{values}", tmp_path / f"{values}-dense", "dense")
        assert (tmp_path / f"{values}-dense" / "README.md").read_text() == dense


def test_a_folder_of_the_first_format_is_read(pruned, packed):
    config = json.loads((packed / "config.json").read_text())
    matrices = config["quantization_config"]["matrices"]
    first_format = {"quant_method": "eggs", "format": 1, "matrices": matrices, "ordered": []}
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": first_format}))
    assert is_packed(packed)
    unpacked = UnpackedReader(packed)
    dense = CheckpointReader(pruned())
    assert all(same_bits(unpacked.read(name), dense.read(name)) for name in dense.names)


def test_a_packed_folder_is_verified_like_the_dense_one(pruned, packed, tiny):
    source = str(tiny("llama", dtype=torch.float32))
    dense_result = api.verify(pruned(), source)
    packed_result = api.verify(packed, source)
    assert packed_result.ok
    assert packed_result.checks == dense_result.checks
    values = load_file(packed / "model.safetensors")[f"{DOWN}.values"]
    values[0, 0] += 1.0
    change(packed, f"{DOWN}.values", values)
    assert [check.name for check in api.verify(packed, source).failures] == ["kept weights"]


def test_patterns_are_the_recorded_ones(packed):
    assert is_packed(packed)
    patterns = UnpackedReader(packed).packed_config.matrices
    assert {str(pattern) for name, pattern in patterns.items() if ".mlp." in name} == {"4:8"}
    assert {str(pattern) for name, pattern in patterns.items() if ".self_attn." in name} == {"2:4"}


def test_a_packed_folder_is_read_as_the_dense_one(pruned, packed):
    dense, unpacked = CheckpointReader(pruned()), open_reader(packed)
    assert unpacked.names == dense.names
    for name in dense.names:
        assert same_bits(unpacked.read(name), dense.read(name))
        assert (unpacked.shape(name), unpacked.dtype(name)) == (dense.shape(name), dense.dtype(name))
        assert (unpacked.bytes(name), unpacked.sha256(name)) == (dense.bytes(name), dense.sha256(name))
    assert type(open_reader(pruned())) is CheckpointReader


def test_large_folders_are_sharded(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(SafetensorsWriter.__init__, "__kwdefaults__", {"largest": 20_000})
    export(pruned(), tmp_path / "packed", "packed")
    assert len(list((tmp_path / "packed").glob("model-*-of-*.safetensors"))) > 2
    dense = CheckpointReader(pruned())
    unpacked = UnpackedReader(tmp_path / "packed")
    assert unpacked.names == dense.names
    assert all(same_bits(unpacked.read(name), dense.read(name)) for name in dense.names)


def test_permutations_to_gather_are_stored(pruned, tmp_path):
    """The folder is N:M only in the permutations that its record names."""
    source = shutil.copytree(pruned(), tmp_path / "source")
    permutation = torch.randperm(64, generator=torch.Generator().manual_seed(0)).int()
    weight = load_file(source / "model.safetensors")[f"{DOWN}.weight"]
    scattered = torch.empty_like(weight).index_copy_(1, permutation.long(), weight)
    change(source, f"{DOWN}.weight", scattered)
    (source / "eggs").mkdir()
    save_file({DOWN: permutation}, source / ORDERS)
    record = json.loads((source / MANIFEST).read_text())
    for matrix in record["matrices"]:
        matrix.update({"permuted": True, "in_order": False} if matrix["name"] == DOWN else {})
    (source / MANIFEST).write_text(json.dumps(record))
    export(source, tmp_path / "packed", "packed")
    unpacked = UnpackedReader(tmp_path / "packed")
    assert unpacked.packed_config.ordered == {DOWN}
    assert torch.equal(unpacked.read_packed(DOWN).order, permutation)
    assert same_bits(unpacked.read(f"{DOWN}.weight"), scattered)
    export(tmp_path / "packed", tmp_path / "dense", "dense")
    assert files(tmp_path / "dense").keys() == files(source).keys()
    (source / ORDERS).unlink()
    with pytest.raises(CheckpointError, match=rf"{DOWN} was permuted, but eggs/orders\.safetensors does not have its"):
        export(source, tmp_path / "again", "packed")


def test_folders_of_other_tools_need_a_pattern(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    (source / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"no eggs\.json says what was pruned; pass --pattern"):
        export(source, tmp_path / "out", "packed")
    with pytest.raises(PatternError, match=r"model\.safetensors: model\.layers\.0\.mlp\.down_proj: not 2:4: \d+ of"):
        export(source, tmp_path / "out", "packed", pattern=Pattern(2, 4))
    assert export(source, tmp_path / "out", "packed", pattern=Pattern(4, 8)).matrices == 14
    with pytest.raises(PatternError, match=r"sparsity 0\.5 is unstructured"):
        export(source, tmp_path / "again", "packed", pattern=Unstructured(0.5))


def test_a_negative_zero_becomes_a_positive_one(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    weight = nm_matrix(32, 64, Pattern(4, 8))
    change(source, f"{DOWN}.weight", torch.where(weight == 0, -0.0, weight))
    export(source, tmp_path / "packed", "packed")
    assert same_bits(UnpackedReader(tmp_path / "packed").read(f"{DOWN}.weight"), weight)


def test_an_export_that_fails_leaves_nothing(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    change(source, f"{DOWN}.weight", torch.ones(32, 64))
    with pytest.raises(PatternError, match=rf"model\.safetensors: {DOWN}: not 4:8: 256 of 256 groups keep more than 4"):
        export(source, tmp_path / "deep" / "out", "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_formats_and_outputs_that_make_no_sense_are_refused(pruned, packed, tmp_path):
    with pytest.raises(CheckpointError, match="is dense already"):
        export(pruned(), tmp_path / "out", "dense")
    with pytest.raises(CheckpointError, match="is packed already"):
        export(packed, tmp_path / "out", "packed")
    with pytest.raises(CheckpointError, match=r"not empty; pass --overwrite"):
        export(pruned(), packed, "packed")
    with pytest.raises(CheckpointError, match="inside the model's own folder"):
        export(packed, packed / "dense", "dense")
    export(pruned(), packed, "packed", overwrite=True)


def test_a_folder_that_contains_the_source_is_not_replaced(pruned, tmp_path):
    outer = shutil.copytree(pruned(), tmp_path / "outer")
    inner = shutil.copytree(pruned(), outer / "inner")
    before = files(outer)
    with pytest.raises(
        CheckpointError, match=r"outer: contains .*inner, which would be deleted; write to another folder"
    ):
        export(inner, outer, "packed", overwrite=True)
    assert files(outer) == before


def test_a_card_in_another_encoding_is_copied_unchanged(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    (source / "README.md").write_bytes(b"caf\xe9\n")
    export(source, tmp_path / "out", "packed")
    assert b"caf\xe9\n" in (tmp_path / "out" / "README.md").read_bytes()


def test_a_recorded_matrix_that_is_a_vector_is_refused(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    record = json.loads((source / MANIFEST).read_text())
    record["matrices"][0]["name"] = "model.norm"
    record.pop("untouched")
    (source / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"model\.norm: expected a matrix to pack, got shape \(32,\)"):
        export(source, tmp_path / "out", "packed")
    with pytest.raises(CheckpointError, match=r"model\.norm is recorded as a matrix, but has shape \(32,\)"):
        api.export_masks(source, tmp_path / "masks.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tensor_named_like_a_part_of_a_packed_matrix_is_refused(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    change(source, f"{DOWN}.values", torch.ones(2, 2))
    record = json.loads((source / MANIFEST).read_text())
    record.pop("untouched")
    (source / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"a tensor {DOWN}\.values, which is the name of a part of"):
        export(source, tmp_path / "out", "packed")


def flip_bits(folder):
    bits = load_file(folder / "model.safetensors")[f"{DOWN}.bits"]
    bits[3, 2] ^= 0b11
    bits[3, 3] ^= 0b1
    change(folder, f"{DOWN}.bits", bits)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def shorten_values(folder):
    change(folder, f"{DOWN}.values", torch.zeros(32, 16))


def drop_bits(folder):
    change(folder, f"{DOWN}.bits", None)


def set_future_format(folder):
    change_packed(folder, format=7)


def change_pattern(folder):
    matrices = json.loads((folder / "config.json").read_text())["quantization_config"]["matrices"]
    change_packed(folder, matrices={**matrices, DOWN: "2:4"})


def break_scales(folder):
    export(folder.parent / "source", folder, "packed", values="int8", overwrite=True)
    scales = load_file(folder / "model.safetensors")[f"{DOWN}.scales"]
    scales[3] = torch.nan
    change(folder, f"{DOWN}.scales", scales)


def drop_scales(folder):
    export(folder.parent / "source", folder, "packed", values="int8", overwrite=True)
    change(folder, f"{DOWN}.scales", None)


def change_value_kind(folder):
    change_packed(folder, values={DOWN: "int8"})
    change(folder, f"{DOWN}.scales", torch.ones(32, 1))


DAMAGES = [
    (break_scales, rf"model\.safetensors: {DOWN}: scales must be finite and not negative, and some are not"),
    (drop_scales, rf"packed: {DOWN}\.scales is named in config\.json, but in none of the files"),
    (
        change_value_kind,
        rf"model\.safetensors: {DOWN}\.values is torch\.float32 of shape .*, expected torch\.int8 of shape",
    ),
    (flip_bits, rf"model\.safetensors: {DOWN}: the bits of \d groups do not mark 4 of 8 columns"),
    (truncate, r"model\.safetensors: not a readable safetensors file"),
    (
        shorten_values,
        rf"safetensors: {DOWN}\.bits is .* \(32, 8\), expected torch\.uint8 of shape \(32, 4\), by config\.json",
    ),
    (drop_bits, rf"packed: {DOWN}\.bits is named in config\.json, but in none of the files"),
    (set_future_format, r"config\.json: packed format 7, this version reads formats 1, 2, 3; update eggs-ptp"),
    (change_pattern, rf"{DOWN}: the bits of \d+ groups do not mark 2 of 4 columns"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_folders_are_refused_by_name_and_nothing_is_written(packed, pruned, tmp_path, damage, message):
    shutil.copytree(pruned(), tmp_path / "source")
    damage(packed)
    with pytest.raises((CheckpointError, ModelError), match=message) as caught:
        export(packed, tmp_path / "dense", "dense")
    assert isinstance(caught.value, EggsError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dense").exists()


def test_a_tensor_renamed_by_a_damaged_header_is_not_exported(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"model.norm.weight"', b'"model.norm.weighs"'))
    message = r"model\.norm\.weigh[st] is in eggs\.json or in the files, but not in both"
    with pytest.raises(CheckpointError, match=message):
        export(source, tmp_path / "packed", "packed")
    assert not (tmp_path / "packed").exists()
