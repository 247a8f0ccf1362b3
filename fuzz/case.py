"""One input of the fuzzer as the files of a model folder, and the readers that it is tested with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.checkpoint.verify import verify_folder
from eggs_ptp.engine.tensors.masks import MaskFile
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import EggsError
from eggs_ptp.models.folder import find_folder, read_config, stored_names

# The parts of an input are separated by SPLIT: three JSON files, then headers and tensors of two safetensors files. A
# header is preceded by its length, unless it begins with RAW. Tensors that begin like a zip file are also a mask file.
SPLIT = b"\n%%%%\n"
RAW = b"!"
ZIP = b"PK"
CONFIG, RECORD, INDEX, HEADER, DATA, PERMUTATIONS, PERMUTATIONS_DATA = range(7)
NAMES = ("config.json", "eggs.json", "model.safetensors.index.json")
MAX_TENSOR_BYTES = 1 << 22  # of a tensor in an input of a few KB


def write(case: bytes, folder: Path) -> None:
    """Write the folder that an input describes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = parts_of(case)
    for name, part in zip(NAMES, parts, strict=False):
        if part:
            (folder / name).write_bytes(part)
    content = _safetensors(parts[HEADER], parts[DATA])
    for name in ("model.safetensors", "a.safetensors") if parts[INDEX] else ("model.safetensors",):
        (folder / name).write_bytes(content)
    if parts[PERMUTATIONS]:
        (folder / "eggs").mkdir()
        content = _safetensors(parts[PERMUTATIONS], parts[PERMUTATIONS_DATA])
        (folder / "eggs" / "orders.safetensors").write_bytes(content)
    if parts[DATA].startswith(ZIP):
        (folder / "masks.npz").write_bytes(parts[DATA])


def parts_of(case: bytes) -> list[bytes]:
    """Return the parts of an input; missing ones are empty."""
    return [*case.split(SPLIT), *[b""] * 7][:7]


def read_all(folder: Path) -> Iterator[str]:
    """Run every reader of folders; yield messages of this package's errors. Any other exception is a bug."""
    for reader in (read_config_file, _read_header, _read_tensors, _read_rows, _verify, _read_masks, _read_zipped_masks):
        try:
            reader(folder)
        except EggsError as error:
            yield f"{type(error).__name__}: {error}"


def _safetensors(header: bytes, data: bytes) -> bytes:
    length = b"" if header.startswith(RAW) else len(header).to_bytes(8, "little")
    return length + header.removeprefix(RAW) + data


def read_config_file(folder: Path) -> None:
    """Read the config, and the tensor names."""
    stored_names(folder)
    read_config(find_folder(str(folder)), packed=True)


def _read_header(folder: Path) -> None:
    _check_sizes(CheckpointReader(folder))


def _read_tensors(folder: Path) -> None:
    reader = open_reader(folder)
    _check_sizes(reader)
    for name in reader.names:
        tensor = reader.read_sound(name)
        assert tensor.shape == reader.shape(name), name
        assert tensor.dtype == reader.dtype(name), name
        reader.sha256(name)


def _read_rows(folder: Path) -> None:
    reader = open_reader(folder)
    for name in reader.names if hasattr(reader, "read_rows") else ():
        assert sum(map(len, reader.read_rows(name))) == reader.shape(name)[0], name


def _verify(folder: Path) -> None:
    assert verify_folder(folder, folder).to_dict()["checks"]


def _read_masks(folder: Path) -> None:
    MaskFile(folder / "model.safetensors").read("model.layers.0.mlp.down_proj", 4, 8)


def _read_zipped_masks(folder: Path) -> None:
    MaskFile(folder / "masks.npz").read("model.layers.0.mlp.down_proj", 4, 8)


def _check_sizes(reader: CheckpointReader) -> None:
    for name in reader.names:
        assert reader.bytes(name) <= MAX_TENSOR_BYTES, (name, reader.shape(name))
