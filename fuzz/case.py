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

# What separates the parts of an input; a part that begins with RAW is written as it is, one of a safetensors file that
# does not is a header, whose length goes before it, and the part behind it is its tensors.
SPLIT, RAW = b"\n%%%%\n", b"!"
CONFIG, RECORD, INDEX, HEADER, DATA = range(5)
FILES = ("config.json", "eggs.json", "model.safetensors.index.json", "model.safetensors")
MOST = 1 << 22  # elements of what a case of a few KB may stand for


def write(case: bytes, folder: Path) -> None:
    """Make the folder that an input stands for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = [*case.split(SPLIT), *[b""] * 5][:5]
    for name, part in zip(FILES[:3], parts, strict=False):
        if part:
            (folder / name).write_bytes(part)
    header, data = parts[HEADER], parts[DATA]
    if header.startswith(RAW):
        content = header[1:] + data
    else:
        content = len(header).to_bytes(8, "little") + header + data
    for name in ("model.safetensors", "a.safetensors") if parts[INDEX] else ("model.safetensors",):
        (folder / name).write_bytes(content)


def join(*parts: bytes) -> bytes:
    """The input of these parts."""
    return SPLIT.join(parts)


def read_all(folder: Path) -> Iterator[str]:
    """Run every reader of folders; yields the words of its own errors. Whatever else is raised is a fault."""
    for reader in (_config, _header, _tensors, _rows, _verify, _masks):
        try:
            reader(folder)
        except EggsError as error:
            yield f"{type(error).__name__}: {error}"


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
    for name in shards.names:
        if hasattr(shards, "read_rows"):
            assert sum(map(len, shards.read_rows(name))) == (shards.shape(name) or (0,))[0], name


def _verify(folder: Path) -> None:
    assert verify_folder(folder).to_dict()["checks"]


def _masks(folder: Path) -> None:
    MaskFile(folder / "model.safetensors").read("model.layers.0.mlp.down_proj", 4, 8)


def _look(shards: Shards) -> None:
    for name in shards.names:
        assert shards.bytes(name) <= MOST, (name, shards.shape(name))
