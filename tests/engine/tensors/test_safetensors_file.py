"""Headers that promise what their file does not hold, and files that change while they are read."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from eggs_ptp.engine.tensors.masks import MaskFile
from eggs_ptp.engine.tensors.safetensors_file import TensorFile
from eggs_ptp.errors import CheckpointError, ModelError


def entry(shape=(2,), start=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def put(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_what_the_library_writes_is_read_bit_for_bit(path):
    torch.manual_seed(0)
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {
        str(dtype): torch.randn(3, 5).mul(9).to(dtype) for dtype in (*types, torch.int8, torch.uint8, torch.bool)
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    save_file(tensors, path, {"format": "pt"})
    file = TensorFile(path)
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (file.read(name).dtype, file.read(name).shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(file.read(name), tensor)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry((2**40, 2**40))}, "which F32 of shape"),
        ({"a": entry((2**62, 0), 0, 0)}, None),
        ({"a": entry((2**63, 0), 0, 0)}, "an impossible shape or data_offsets"),
        ({"a": entry((2**40, 2**40, 0), 0, 0)}, "which F32 of shape"),
        ({"a": entry((-2,))}, "an impossible shape or data_offsets"),
        ({"a": entry((2.0,))}, "an impossible shape or data_offsets"),
        ({"a": entry((True,), 0, 4)}, "an impossible shape or data_offsets"),
        ({"a": entry((1,) * 65, 0, 4)}, "an impossible shape or data_offsets"),
        ({"a": entry((4,), 0, 16)}, "its tensors end at byte"),
        ({"a": entry((1,), 0, 4)}, "its tensors end at byte"),
        ({"a": entry((1,), 4, 8)}, "a starts at byte"),
        ({"a": entry(), "b": entry()}, "b starts at byte"),
        ({"a": entry((1,), 0, 4), "b": entry((1,), 2, 6)}, "b starts at byte"),
        ({"a": entry((2,), 8, 0)}, "has -8 bytes, which F32"),
        ({"a": entry(dtype="F31")}, "type 'F31', which the format does not have"),
        ({"a": entry(dtype=4)}, "type '4', which the format does not have"),
        ({"a": {"dtype": "F32"}}, "lacks a dtype, a shape or data_offsets"),
        ({"a": []}, "lacks a dtype, a shape or data_offsets"),
        ([], "no object of tensors"),
        ({"__metadata__": 3}, "no object of tensors"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_headers_are_held_against_the_file(path, header, reason):
    put(path, header, data=b"" if reason is None else b"\0" * 8)
    if reason is None:
        assert TensorFile(path).entries["a"].shape == (2**62, 0)
        return
    with pytest.raises(
        ModelError, match=rf"model\.safetensors: not a readable safetensors file \(.*{reason}"
    ) as caught:
        TensorFile(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 100])
def test_a_header_longer_than_its_file_is_never_read(path, length):
    with pytest.raises(ModelError, match=f"its header would take {length} bytes"):
        TensorFile(put(path, {"a": entry()}, length=length))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"\0\0")
    for name, reason in (
        ("pipe", "it is no regular file"),
        ("short", "its header would take"),
        (".", "it is no regular file"),
    ):
        with pytest.raises(ModelError, match=reason):
            TensorFile(tmp_path / name)


def test_a_file_truncated_while_it_is_read_is_refused_in_one_line(path):
    """A mapped file would end the process."""
    file = TensorFile(put(path, {"a": entry()}))
    os.truncate(path, 40)
    with pytest.raises(ModelError, match=r"a cannot be read \(the file has been truncated meanwhile\)"):
        file.read("a")


def test_a_disk_that_fails_is_one_line(path, monkeypatch):
    file = TensorFile(put(path, {"a": entry()}))

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ModelError, match=r"model\.safetensors: a cannot be read \(Input/output error\)"):
        file.read("a")


def test_a_tensor_beyond_the_memory_is_one_line(path):
    """A file of holes may be as long as its header says."""
    size = 1 << 43
    put(path, {"a": entry((size,), 0, size, "U8")}, data=b"")
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("no files of 9 TB here")
    with pytest.raises(ModelError, match=f"a: no memory for its {size} bytes"):
        TensorFile(path).read("a")


def test_booleans_of_other_bytes_are_refused(path):
    with pytest.raises(ModelError, match="neither 0 nor 1"):
        TensorFile(put(path, {"a": entry((8,), 0, 8, "BOOL")}, data=b"\0\1\2\0\0\0\0\0")).read("a")


def test_a_mask_that_cannot_be_one_is_not_read(tmp_path, monkeypatch):
    """Masks as a zip that inflates to more than the matrix has."""
    import numpy as np

    np.savez_compressed(tmp_path / "masks.npz", a=np.zeros((1000, 1000), bool))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(
        CheckpointError, match=r"a has bool of shape \(1000, 1000\), expected 0 and 1 of shape \(4, 8\)"
    ):
        MaskFile(tmp_path / "masks.npz").read("a", 4, 8)


def test_weights_of_whole_numbers_are_refused(tmp_path):
    """One byte of a header makes F32 to I32, of the same size."""
    from eggs_ptp.engine.tensors.reader import CheckpointReader

    save_file({"a.weight": torch.ones(2), "ids": torch.ones(2).int()}, tmp_path / "model.safetensors")
    CheckpointReader(tmp_path).check_floats()
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content.replace(b'"F32"', b'"I32"'))
    with pytest.raises(ModelError, match=r"a\.weight has type torch\.int32, expected floating-point"):
        CheckpointReader(tmp_path).check_floats()
