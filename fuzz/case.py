"""Case: one input of the fuzzers as the files of a model folder, and what a reader must make of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from eggs_ptp.checkpoint.unpacked import open_shards
from eggs_ptp.checkpoint.verify import verify_folder
from eggs_ptp.engine.masks import MaskFile
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import EggsError
from eggs_ptp.models.folder import find_folder, read_config, stored_names

# What separates the parts of an input: three JSON files, then header and tensors of two safetensors files. The length
# of a header goes before it, unless it begins with RAW. Tensors that begin like a zip are a file of masks too.
SPLIT, RAW, ZIP = b"\n%%%%\n", b"!", b"PK"
CONFIG, RECORD, INDEX, HEADER, DATA, ORDERS, ORDERS_DATA = range(7)
NAMES = ("config.json", "eggs.json", "model.safetensors.index.json")
MOST = 1 << 22  # bytes that a tensor of a case of a few KB may stand for


def write(case: bytes, folder: Path) -> None:
    """Make the folder that an input stands for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = parts_of(case)
    for name, part in zip(NAMES, parts, strict=False):
        if part:
            (folder / name).write_bytes(part)
    content = _safetensors(parts[HEADER], parts[DATA])
    for name in ("model.safetensors", "a.safetensors") if parts[INDEX] else ("model.safetensors",):
        (folder / name).write_bytes(content)
    if parts[ORDERS]:
        (folder / "eggs").mkdir()
        (folder / "eggs" / "orders.safetensors").write_bytes(_safetensors(parts[ORDERS], parts[ORDERS_DATA]))
    if parts[DATA].startswith(ZIP):
        (folder / "masks.npz").write_bytes(parts[DATA])


def parts_of(case: bytes) -> list[bytes]:
    """The parts of an input, empty where it ends early."""
    return [*case.split(SPLIT), *[b""] * 7][:7]


def read_all(folder: Path) -> Iterator[str]:
    """Run every reader of folders; yields the words of its own errors. Whatever else is raised is a fault."""
    for reader in (_config, _header, _tensors, _rows, _verify, _masks, _zipped):
        try:
            reader(folder)
        except EggsError as error:
            yield f"{type(error).__name__}: {error}"


def _safetensors(header: bytes, data: bytes) -> bytes:
    length = b"" if header.startswith(RAW) else len(header).to_bytes(8, "little")
    return length + header.removeprefix(RAW) + data


def _config(folder: Path) -> None:
    stored_names(folder)
    read_config(find_folder(str(folder)), packed=True)


def _header(folder: Path) -> None:
    _look(Shards(folder))


def _tensors(folder: Path) -> None:
    shards = open_shards(folder)
    _look(shards)
    for name in shards.names:
        tensor = shards.read_sound(name)
        assert tensor.shape == shards.shape(name), name
        assert tensor.dtype == shards.dtype(name), name
        shards.sha256(name)


def _rows(folder: Path) -> None:
    shards = open_shards(folder)
    for name in shards.names if hasattr(shards, "read_rows") else ():
        assert sum(map(len, shards.read_rows(name))) == shards.shape(name)[0], name


def _verify(folder: Path) -> None:
    assert verify_folder(folder, folder).to_dict()["checks"]


def _masks(folder: Path) -> None:
    MaskFile(folder / "model.safetensors").read("model.layers.0.mlp.down_proj", 4, 8)


def _zipped(folder: Path) -> None:
    MaskFile(folder / "masks.npz").read("model.layers.0.mlp.down_proj", 4, 8)


def _look(shards: Shards) -> None:
    for name in shards.names:
        assert shards.bytes(name) <= MOST, (name, shards.shape(name))
