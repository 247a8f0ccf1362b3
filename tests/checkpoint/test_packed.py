"""Folders packed and made dense again: every bit, and every damaged file by its name."""

import json
import shutil

import pytest
import torch
from oracles.packing import nm_matrix, same_bits
from safetensors.torch import load_file, save_file
from tiny import change_packed

from eggs_ptp import api
from eggs_ptp.checkpoint import stream as streams
from eggs_ptp.checkpoint.draft import MANIFEST, ORDERS
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.checkpoint.unpacked import Unpacked, is_packed, open_shards
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, EggsError, ModelError, PatternError

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    """`pruned(dtype, family)`: a folder pruned to 2:4, and its MLPs to 4:8."""
    made = {}

    def folder(dtype=torch.float32, family="llama", **settings):
        key = repr((dtype, family, settings))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("pruned") / "out"
            settings = {"method": "magnitude", "targets": [{"match": "*.mlp.*", "pattern": "4:8"}], **settings}
            api.prune(str(tiny(family, dtype=dtype)), made[key], **settings)
        return made[key]

    return folder


@pytest.fixture
def packed(pruned, tmp_path):
    export(pruned(), tmp_path / "packed", "packed")
    return tmp_path / "packed"


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change(folder, **tensors):
    """Replace tensors by name (dots as double underscores), or drop those that are None."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    for name, tensor in tensors.items():
        stored.pop(name.replace("__", "."), None)
        if tensor is not None:
            stored[name.replace("__", ".")] = tensor
    save_file(stored, path, {"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back_is_the_same_folder(pruned, tmp_path, dtype, family):
    source = pruned(dtype, family)
    there = export(source, tmp_path / "packed", "packed")
    back = export(tmp_path / "packed", tmp_path / "dense", "dense")
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
    share = (0.5 + 1 / (8 * dtype.itemsize)) * there.dense_bytes
    assert (there.matrices, there.packed_bytes) == (14, share)
    assert (there.dense_bytes, there.packed_bytes) == (back.dense_bytes, back.packed_bytes)


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantised_there_and_back_and_there_again(pruned, tiny, tmp_path, dtype, values):
    one, two = tmp_path / "one", tmp_path / "two"
    there = export(pruned(dtype), one, "packed", values=values)
    assert (there.matrices, there.rounded) == (14, 14)
    stored = load_file(one / "model.safetensors")
    assert {stored[f"{DOWN}.{part}"].dtype for part in ("values", "scales")} == {
        {"int8": torch.int8, "int4": torch.uint8}[values],
        dtype,
    }
    grids = [stored[name].nbytes for name in stored if name.endswith((".values", ".bits", ".scales"))]
    assert sum(grids) == there.packed_bytes
    assert api.verify(one, str(tiny("llama", dtype=dtype))).ok
    export(one, tmp_path / "dense", "dense")
    assert api.verify(tmp_path / "dense").ok
    packed, dense = Unpacked(one), Shards(tmp_path / "dense")
    assert packed.contents.values[DOWN] == values
    assert packed.names == dense.names
    assert all(same_bits(packed.read(name), dense.read(name)) for name in dense.names)
    assert all((packed.shape(n), packed.dtype(n)) == (dense.shape(n), dense.dtype(n)) for n in dense.names)
    assert export(tmp_path / "dense", two, "packed", values=values).rounded == 0
    again = load_file(two / "model.safetensors")
    assert stored.keys() == again.keys()
    assert all(same_bits(packed.read(name), Unpacked(two).read(name)) for name in dense.names)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_what_gptq_put_on_the_grid_is_packed_without_a_change(tiny, tmp_path, values):
    """Scales are read off the weights: also where orders were folded, and weights are stored in 16 bits."""
    text = tmp_path / "text.txt"
    text.write_text("A text of a few words, said again and again. " * 60)
    settings = {"calibration": str(text), "nsamples": 4, "seqlen": 32, "steps": {"update": {"values": values}}}
    model = str(tiny("llama", dtype=torch.bfloat16))
    record = api.prune(model, tmp_path / "out", method="ria_cp+gptq", **settings)
    assert record.orders == "fold"
    assert export(tmp_path / "out", tmp_path / "packed", "packed", values=values).rounded == 0
    dense, packed = Shards(tmp_path / "out"), Unpacked(tmp_path / "packed")
    assert all(same_bits(packed.read(name), dense.read(name)) for name in dense.names)
    assert (tmp_path / "packed" / MANIFEST).read_bytes() == (tmp_path / "out" / MANIFEST).read_bytes()


def test_the_card_says_in_which_form_the_folder_is(pruned, tmp_path):
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
    block = config["quantization_config"]
    first = {"quant_method": "eggs", "format": 1, "matrices": block["matrices"], "ordered": []}
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": first}))
    assert is_packed(packed)
    assert all(same_bits(Unpacked(packed).read(name), Shards(pruned()).read(name)) for name in Shards(pruned()).names)


def test_a_packed_folder_is_verified_like_the_dense_one(pruned, packed, tiny):
    dense = api.verify(pruned(), str(tiny("llama", dtype=torch.float32)))
    found = api.verify(packed, str(tiny("llama", dtype=torch.float32)))
    assert found.ok
    assert found.checks == dense.checks
    values = load_file(packed / "model.safetensors")[f"{DOWN}.values"]
    values[0, 0] += 1.0
    change(packed, **{f"{DOWN}.values".replace(".", "__"): values})
    assert [check.name for check in api.verify(packed, str(tiny("llama", dtype=torch.float32))).failures] == [
        "kept weights"
    ]


def test_patterns_are_those_that_were_recorded(packed):
    assert is_packed(packed)
    patterns = Unpacked(packed).contents.matrices
    assert {str(pattern) for name, pattern in patterns.items() if ".mlp." in name} == {"4:8"}
    assert {str(pattern) for name, pattern in patterns.items() if ".self_attn." in name} == {"2:4"}


def test_a_packed_folder_reads_like_the_dense_one(pruned, packed):
    dense, unpacked = Shards(pruned()), open_shards(packed)
    assert unpacked.names == dense.names
    for name in dense.names:
        assert same_bits(unpacked.read(name), dense.read(name))
        assert (unpacked.shape(name), unpacked.dtype(name)) == (dense.shape(name), dense.dtype(name))
        assert (unpacked.bytes(name), unpacked.sha256(name)) == (dense.bytes(name), dense.sha256(name))
    assert type(open_shards(pruned())) is Shards


def test_large_folders_come_in_shards(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(streams.Stream.__init__, "__kwdefaults__", {"largest": 20_000})
    export(pruned(), tmp_path / "packed", "packed")
    assert len(list((tmp_path / "packed").glob("model-*-of-*.safetensors"))) > 2
    dense = Shards(pruned())
    unpacked = Unpacked(tmp_path / "packed")
    assert unpacked.names == dense.names
    assert all(same_bits(unpacked.read(name), dense.read(name)) for name in dense.names)


def test_orders_that_are_gathered_are_stored(pruned, tmp_path):
    """A folder that is N:M only in the orders of its record."""
    source = shutil.copytree(pruned(), tmp_path / "source")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).int()
    weight = load_file(source / "model.safetensors")[f"{DOWN}.weight"]
    scattered = torch.empty_like(weight).index_copy_(1, order.long(), weight)
    change(source, **{f"{DOWN}.weight".replace(".", "__"): scattered})
    (source / "eggs").mkdir()
    save_file({DOWN: order}, source / ORDERS)
    record = json.loads((source / MANIFEST).read_text())
    for matrix in record["matrices"]:
        matrix.update({"permuted": True, "in_order": False} if matrix["name"] == DOWN else {})
    (source / MANIFEST).write_text(json.dumps(record))
    export(source, tmp_path / "packed", "packed")
    unpacked = Unpacked(tmp_path / "packed")
    assert unpacked.contents.ordered == {DOWN}
    assert torch.equal(unpacked.packed(DOWN).order, order)
    assert same_bits(unpacked.read(f"{DOWN}.weight"), scattered)
    export(tmp_path / "packed", tmp_path / "dense", "dense")
    assert files(tmp_path / "dense").keys() == files(source).keys()
    (source / ORDERS).unlink()
    with pytest.raises(CheckpointError, match=rf"{DOWN} was permuted, but eggs/orders\.safetensors does not have"):
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


def test_a_negative_zero_that_was_pruned_by_multiplying_comes_back_plain(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    weight = nm_matrix(32, 64, Pattern(4, 8))
    change(source, **{f"{DOWN}.weight".replace(".", "__"): torch.where(weight == 0, -0.0, weight)})
    export(source, tmp_path / "packed", "packed")
    assert same_bits(Unpacked(tmp_path / "packed").read(f"{DOWN}.weight"), weight)


def test_nothing_is_left_of_an_export_that_fails(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    change(source, **{f"{DOWN}.weight".replace(".", "__"): torch.ones(32, 64)})
    with pytest.raises(PatternError, match=rf"model\.safetensors: {DOWN}: not 4:8: 256 of 256 groups keep more than 4"):
        export(source, tmp_path / "deep" / "out", "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_forms_and_places_that_make_no_sense_are_refused(pruned, packed, tmp_path):
    with pytest.raises(CheckpointError, match="is dense already"):
        export(pruned(), tmp_path / "out", "dense")
    with pytest.raises(CheckpointError, match="is packed already"):
        export(packed, tmp_path / "out", "packed")
    with pytest.raises(CheckpointError, match=r"not empty; pass --overwrite"):
        export(pruned(), packed, "packed")
    with pytest.raises(CheckpointError, match="lies in the model's own folder"):
        export(packed, packed / "dense", "dense")
    export(pruned(), packed, "packed", overwrite=True)


def test_a_folder_that_holds_what_is_exported_is_not_replaced(pruned, tmp_path):
    outer = shutil.copytree(pruned(), tmp_path / "outer")
    inner = shutil.copytree(pruned(), outer / "inner")
    before = files(outer)
    with pytest.raises(CheckpointError, match=r"outer: holds .*inner, which would go with it; write to another one"):
        export(inner, outer, "packed", overwrite=True)
    assert files(outer) == before


def test_a_card_in_another_encoding_stays_as_it_is(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    (source / "README.md").write_bytes(b"caf\xe9\n")
    export(source, tmp_path / "out", "packed")
    assert b"caf\xe9\n" in (tmp_path / "out" / "README.md").read_bytes()


def test_what_a_record_calls_a_matrix_must_be_one(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    record = json.loads((source / MANIFEST).read_text())
    record["matrices"][0]["name"] = "model.norm"
    record.pop("untouched")
    (source / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"model\.norm is to be packed as a matrix, but has shape \(32,\)"):
        export(source, tmp_path / "out", "packed")
    with pytest.raises(CheckpointError, match=r"model\.norm is recorded as a matrix, but has shape \(32,\)"):
        api.export_masks(source, tmp_path / "masks.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tensor_called_as_a_part_of_a_packed_matrix_is_refused(pruned, tmp_path):
    source = shutil.copytree(pruned(), tmp_path / "source")
    change(source, **{f"{DOWN}.values".replace(".", "__"): torch.ones(2, 2)})
    record = json.loads((source / MANIFEST).read_text())
    record.pop("untouched")
    (source / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"{DOWN}\.values is a tensor of its own, and would be a part of"):
        export(source, tmp_path / "out", "packed")


def damaged_bits(folder):
    bits = load_file(folder / "model.safetensors")[f"{DOWN}.bits"]
    bits[3, 2] ^= 0b11
    bits[3, 3] ^= 0b1
    change(folder, **{f"{DOWN}.bits".replace(".", "__"): bits})


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def short_values(folder):
    change(folder, **{f"{DOWN}.values".replace(".", "__"): torch.zeros(32, 16)})


def no_bits(folder):
    change(folder, **{f"{DOWN}.bits".replace(".", "__"): None})


def future(folder):
    change_packed(folder, format=7)


def another_pattern(folder):
    matrices = json.loads((folder / "config.json").read_text())["quantization_config"]["matrices"]
    change_packed(folder, matrices={**matrices, DOWN: "2:4"})


def bad_scales(folder):
    export(folder.parent / "source", folder, "packed", values="int8", overwrite=True)
    scales = load_file(folder / "model.safetensors")[f"{DOWN}.scales"]
    scales[3] = torch.nan
    change(folder, **{f"{DOWN}.scales".replace(".", "__"): scales})


def no_scales(folder):
    export(folder.parent / "source", folder, "packed", values="int8", overwrite=True)
    change(folder, **{f"{DOWN}.scales".replace(".", "__"): None})


def other_values(folder):
    change_packed(folder, values={DOWN: "int8"})
    change(folder, **{f"{DOWN}.scales".replace(".", "__"): torch.ones(32, 1)})


DAMAGES = [
    (bad_scales, rf"model\.safetensors: {DOWN}: scales must be finite and not negative, and some are not"),
    (no_scales, rf"packed: {DOWN}\.scales is named in config\.json, but in none of the files"),
    (other_values, rf"model\.safetensors: {DOWN}\.values is torch\.float32 of shape .*, expected torch\.int8 of shape"),
    (damaged_bits, rf"model\.safetensors: {DOWN}: the bits of \d groups do not mark 4 of 8 columns"),
    (cut, r"model\.safetensors: not a readable safetensors file"),
    (
        short_values,
        rf"safetensors: {DOWN}\.bits is .* \(32, 8\), expected torch\.uint8 of shape \(32, 4\), by config\.json",
    ),
    (no_bits, rf"packed: {DOWN}\.bits is named in config\.json, but in none of the files"),
    (future, r"config\.json: packed format 7, this version reads formats 1, 2, 3; update eggs-ptp"),
    (another_pattern, rf"{DOWN}: the bits of \d+ groups do not mark 2 of 4 columns"),
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
