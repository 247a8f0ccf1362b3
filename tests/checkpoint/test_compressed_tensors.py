"""Folders in compressed-tensors' formats: dequantised exactly, and groups that no longer hold are counted."""

import json
import shutil
from math import ceil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp import api
from eggs_ptp.checkpoint.compressed_tensors import CompressedTensorsReader, unpack_integers
from eggs_ptp.checkpoint.verify import AFTER_QUANTISING, verify_folder
from eggs_ptp.errors import CheckpointError, ModelError

UP = "model.layers.1.mlp.up_proj"


def packed(numbers, bits, *, split=True):
    """Pack signed integers into 32-bit words, as one long number a row; without `split`, none is in two words."""
    rows = []
    for row in numbers.tolist():
        stored = [number + 2 ** (bits - 1) for number in row]
        if split:
            whole = sum(number << (bits * i) for i, number in enumerate(stored))
            words = [whole >> (32 * i) & 0xFFFFFFFF for i in range(ceil(len(row) * bits / 32))]
        else:
            each = 32 // bits
            chunks = [stored[i : i + each] for i in range(0, len(stored), each)]
            words = [sum(number << (bits * i) for i, number in enumerate(chunk)) for chunk in chunks]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("count", [1, 31, 64, 96])
def test_integers_of_every_width_are_unpacked(bits, split, count):
    numbers = torch.randint(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (3, count), generator=torch.Generator().manual_seed(bits)
    )
    assert torch.equal(unpack_integers(packed(numbers, bits, split=split), bits, count), numbers.int())


def rounded(weight, group, bits=4):
    """Return integers and scales (rows, groups) of a weight, rounded to nearest in groups of columns."""
    grouped = weight.float().view(len(weight), -1, group)
    scale = grouped.abs().amax(-1).clamp_min(1e-6) / (2 ** (bits - 1) - 1)
    return (grouped / scale.unsqueeze(-1)).round().int().view(weight.shape), scale


def pack_quantized(weight, bits=4, group=16, *, split=True):
    numbers, scale = rounded(weight, group, bits)
    tensors = {
        "weight_packed": packed(numbers, bits, split=split),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    return tensors, numbers * scale.repeat_interleave(group, 1), {"num_bits": bits}


def asymmetric(weight):
    tensors, _, settings = pack_quantized(weight, 4, 16)
    numbers, scale = rounded(weight, 16, 3)
    zero_point = torch.arange(scale.numel()).view(scale.shape) % 4
    spread = zero_point.repeat_interleave(16, 1)
    tensors |= {
        "weight_packed": packed(numbers + spread, 4),
        "weight_scale": scale,
        "weight_zero_point": packed(zero_point.T, 4).T.contiguous(),
    }
    return tensors, numbers * scale.repeat_interleave(16, 1), settings


def reordered(weight):
    """Groups of columns that are not consecutive, as of an activation order."""
    index = torch.arange(weight.shape[1]) % 2
    numbers, _ = rounded(weight, weight.shape[1])
    scale = torch.rand(len(weight), 2) + 0.1
    tensors, _, settings = pack_quantized(weight)
    tensors |= {"weight_packed": packed(numbers, 4), "weight_scale": scale, "weight_g_idx": index.int()}
    return tensors, numbers * scale[:, index], settings


def int_quantized(weight):
    numbers, scale = rounded(weight, weight.shape[1], 8)
    return {"weight": numbers.to(torch.int8), "weight_scale": scale.bfloat16()}, numbers * scale.bfloat16().float(), {}


def float_quantized(weight):
    scale = torch.tensor([0.25])
    numbers = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale, {}


def blocks(weight):
    """One scale for 12 x 20 weights, of which the last blocks are smaller."""
    rows, columns = weight.shape
    scale = torch.rand(ceil(rows / 12), ceil(columns / 20)) + 0.1
    spread = scale.repeat_interleave(12, 0)[:rows].repeat_interleave(20, 1)[:, :columns]
    numbers = (weight.float() / spread).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * spread, {"block_structure": [12, 20]}


KINDS = {
    "four bits": ("pack-quantized", pack_quantized),
    "three bits": ("pack-quantized", lambda weight: pack_quantized(weight, 3)),
    "three bits, none split": ("pack-quantized", lambda weight: pack_quantized(weight, 3, split=False)),
    "zero points": ("pack-quantized", asymmetric),
    "columns in another order": ("pack-quantized", reordered),
    "int8": ("int-quantized", int_quantized),
    "float8": ("float-quantized", float_quantized),
    "float8 in blocks": ("float-quantized", blocks),
}


@pytest.fixture(scope="module")
def pruned(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "out"
    api.prune(str(tiny()), folder, method="magnitude", exclude=["*.o_proj"])
    return folder


@pytest.fixture
def quantised(pruned, tmp_path):
    """`quantised(kind, change)`: a copy with edited weights, quantised, and its matrices as they should be read."""

    def write(kind, change=lambda name, weight: weight, *, record=True):
        copy = shutil.copytree(pruned, tmp_path / "quantised")
        names = [matrix["name"] for matrix in json.loads((pruned / "eggs.json").read_text())["matrices"]]
        tensors = load_file(copy / "model.safetensors")
        quantised_format, quantise = KINDS[kind]
        expected = {}
        weights = {}
        for name in names:
            parts, expected[name], settings = quantise(change(name, tensors.pop(f"{name}.weight")))
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
            weights = {"num_bits": 8, **settings}
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": quantised_format,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
        (copy / "config.json").write_text(json.dumps(config))
        if not record:
            (copy / "eggs.json").unlink()
        return copy, expected

    return write


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_exactly_and_keeps_its_zeros(quantised, pruned, kind):
    folder, expected = quantised(kind)
    reader = CompressedTensorsReader(folder)
    before = load_file(pruned / "model.safetensors")
    assert set(reader.names) == before.keys()
    for name, weight in expected.items():
        read = reader.read(f"{name}.weight")
        assert (read.dtype, reader.dtype(f"{name}.weight")) == (torch.float32, torch.float32)
        assert reader.shape(f"{name}.weight") == tuple(read.shape)
        torch.testing.assert_close(read, weight.float(), rtol=1e-6, atol=0)
        assert not read[before[f"{name}.weight"] == 0].any()
    result = verify_folder(folder)
    assert result.ok, result.failures
    assert result.checks[0].detail == (
        f"quantised by compressed-tensors ({KINDS[kind][0]}); all 12 pruned matrices still hold their pattern"
    )


@pytest.mark.parametrize("kind", ["four bits", "zero points", "float8"])
def test_groups_that_no_longer_hold_are_counted(quantised, kind):
    def change(name, weight):
        if name == UP:
            row = weight[3].view(-1, 4)[:5]  # 5 groups of 4 of which 2 or 1 weights come back
            row[row == 0] = weight.abs().max()
            zeros = weight[4].view(-1, 4)[0] == 0
            weight[4, zeros.nonzero()[0]] = weight.abs().max()
        return weight

    folder, _ = quantised(kind, change)
    result = verify_folder(folder)
    pruned_matrix_groups = sum(
        matrix["shape"][0] * matrix["shape"][1] // 4
        for matrix in json.loads((folder / "eggs.json").read_text())["matrices"]
    )
    assert [check.name for check in result.failures] == [AFTER_QUANTISING, UP]
    share = 6 / pruned_matrix_groups
    assert f"6 of {pruned_matrix_groups} groups ({share:.1%}) no longer hold" in result.failures[0].detail
    assert (
        f"at least {11 / (2 * pruned_matrix_groups):.1%} of the pruned weights came back" in result.failures[0].detail
    )
    assert "round to nearest" in result.failures[0].detail
    assert result.failures[1].detail.startswith("6 of ")


def test_weights_that_are_rounded_to_zero_are_no_failure(quantised):
    folder, expected = quantised("three bits")
    recorded = json.loads((folder / "eggs.json").read_text())["matrices"]
    assert any((expected[matrix["name"]] != 0).sum() < matrix["nonzero"] for matrix in recorded)
    assert verify_folder(folder).ok


def test_without_a_record_the_pattern_is_given(quantised):
    folder, _ = quantised("int8", record=False)
    with pytest.raises(CheckpointError, match=r"no eggs\.json says what to expect; pass --pattern"):
        verify_folder(folder)
    result = verify_folder(folder, pattern="2:4")
    failed = [check.name for check in result.failures]
    assert failed == [AFTER_QUANTISING, *(f"model.layers.{i}.self_attn.o_proj" for i in (0, 1))]  # never pruned
    assert len(verify_folder(folder, pattern="1:4").failures) == 15


def test_an_unstructured_pattern_is_checked_by_its_density(quantised):
    folder, _ = quantised("int8", lambda name, weight: weight + weight.abs().max() if name == UP else weight)
    result = verify_folder(folder, pattern="0.5")
    assert [check.name for check in result.failures] == [AFTER_QUANTISING, UP]
    recorded = json.loads((folder / "eggs.json").read_text())["matrices"]
    sizes = {matrix["name"]: matrix["shape"][0] * matrix["shape"][1] for matrix in recorded}
    assert f"at least {sizes[UP] / sum(sizes.values()):.1%} of the pruned" in result.checks[0].detail
    assert "groups" not in result.checks[0].detail


def test_it_is_not_compared_with_the_source(quantised, tiny):
    folder, _ = quantised("four bits")
    with pytest.raises(CheckpointError, match=r"expected a folder that was not quantised to compare with .* --against"):
        verify_folder(folder, tiny())
    with pytest.raises(ModelError, match=r"already quantised \(compressed-tensors\)"):
        api.prune(str(folder), folder.parent / "again", method="magnitude")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda block: block.update(format="nvfp4-pack-quantized"),
            r"expected pack-quantized.*got 'nvfp4-pack-quantized'",
        ),
        (
            lambda block: block["config_groups"]["group_0"].update(format="mxfp4-pack-quantized"),
            "got 'mxfp4-pack-quant",
        ),
        (lambda block: block.update(sparsity_config={"format": "sparse-24-bitmask"}), "got 'sparse-24-bitmask'"),
        (lambda block: block.update(config_groups={}), "integers of no known number of bits"),
        (lambda block: block["config_groups"]["group_0"]["weights"].update(num_bits=5), "integers of 5 bits"),
    ],
)
def test_formats_that_are_not_read_are_named(quantised, change, message):
    folder, _ = quantised("four bits")
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("weight_scale", torch.ones(7, 3), "expected one scale for the matrix"),
        ("weight_scale", None, "weight_scale is in none of the files"),
        ("weight_shape", None, "weight_shape is in none of the files"),
        ("weight_shape", torch.tensor([64, -4]), "expected a matrix"),
        ("weight_shape", torch.tensor([float("nan"), 4]), "expected a matrix"),
        ("weight_shape", torch.tensor([64, 1 << 40]), "expected 1099511627776 integers"),
        ("weight_packed", torch.ones(64, 4), "do not fit"),
        ("weight_g_idx", torch.full((32,), 99), "do not fit"),
    ],
)
def test_damaged_tensors_are_refused(quantised, part, tensor, message):
    folder, _ = quantised("four bits")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(f"{UP}.{part}", None)
    if tensor is not None:
        tensors[f"{UP}.{part}"] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def test_integers_without_scales_are_refused(quantised):
    folder, _ = quantised("int8")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(f"{UP}.weight_scale")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{UP} is quantised, but {UP}.weight_scale is in none of the files"):
        verify_folder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_packing_is_that_of_compressed_tensors(bits, symmetric):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    numbers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (37, 75)).to(torch.int8)
    if symmetric:
        assert torch.equal(unpack_integers(helpers.pack_to_int32(numbers, bits), bits, 75), numbers.int())
    else:  # zero points are packed along the rows
        words = helpers.pack_to_int32(numbers, bits, packed_dim=0)
        assert torch.equal(unpack_integers(words.T, bits, 37).T, numbers.int())
