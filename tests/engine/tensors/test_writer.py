"""Safetensors files written out of order, as the library itself reads them."""

import json

import pytest
import torch
from oracles.packing import same_bits
from safetensors.torch import load_file

from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.engine.tensors.writer import SafetensorsWriter, TensorSpec
from eggs_ptp.errors import CheckpointError

TENSORS = {
    "a.bits": torch.arange(15, dtype=torch.uint8).view(3, 5),
    "a.values": torch.randn(3, 7).bfloat16(),
    "b.bias": torch.randn(11),
    "b.empty": torch.empty(0, 4, dtype=torch.float16),
    "c.order": torch.arange(9, dtype=torch.int32),
    "c.scalar": torch.tensor(3.0, dtype=torch.float64),
}
SPECS = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def write(folder, names=tuple(TENSORS), **options):
    with SafetensorsWriter(folder, SPECS, **options) as stream:
        for name in reversed(names):
            stream.put(name, TENSORS[name])


def test_the_library_reads_every_bit(tmp_path):
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(same_bits(read[name], tensor) for name, tensor in TENSORS.items())


def test_every_tensor_is_aligned(tmp_path):
    write(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, spec in SPECS.items():
        assert (8 + size + header[name]["data_offsets"][0]) % spec.dtype.itemsize == 0


def test_shards_have_an_index(tmp_path):
    write(tmp_path, largest=60)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*[f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)], "model.safetensors.index.json"]
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    reader = CheckpointReader(tmp_path)
    assert reader.names == sorted(TENSORS)
    assert all(same_bits(reader.read(name), tensor) for name, tensor in TENSORS.items())


def test_a_tensor_that_is_forgotten_or_another_is_our_own_fault(tmp_path):
    with pytest.raises(AssertionError, match=r"c\.scalar"):
        write(tmp_path, list(TENSORS)[:-1])
    (tmp_path / "other").mkdir()
    with pytest.raises(AssertionError, match=r"b\.bias"), SafetensorsWriter(tmp_path / "other", SPECS) as stream:
        stream.put("b.bias", torch.zeros(3))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing/model\.safetensors: cannot be written \(No such file"):
        write(tmp_path / "missing")
