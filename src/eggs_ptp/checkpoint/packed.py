"""Packed folders: written from dense N:M ones, and back, a matrix at a time; docs/format.md has the form."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import CARD, MANIFEST, ORDERS, Draft
from eggs_ptp.checkpoint.stream import Spec, Stream
from eggs_ptp.checkpoint.unpacked import Unpacked, is_packed
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.pack import pack, structured
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.table import family_for
from eggs_ptp.sparse.contents import Contents

Form = Literal["dense", "packed"]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the matrices, and their bytes in both forms."""

    output: str
    form: str
    matrices: int
    dense_bytes: int
    packed_bytes: int


def export(
    folder: Path, output: Path, form: Form, *, pattern: AnyPattern | None = None, overwrite: bool = False
) -> Exported:
    """Write a pruned folder in the other form; everything but the pruned matrices is taken over as it is.

    Which matrices, patterns and orders there are is in `eggs.json`; a folder without one needs the `pattern`, which
    then stands for all linears of its blocks. The output appears when it is whole.

    Raises:
        CheckpointError: the folder has that form already, is not what it claims to be, or the output cannot be written.
        ModelError: no model folder.
        PatternError: a matrix is not N:M, or unstructured.
    """
    if output.resolve() == folder.resolve() or folder.resolve() in output.resolve().parents:
        raise CheckpointError(f"{output}: lies in the folder that is exported; write to another one")
    config = read_config(folder, packed=True)
    if is_packed(folder) == (form == "packed"):
        raise CheckpointError(f"{folder}: is {form} already")
    with Draft(output, overwrite=overwrite) as draft:
        block = _write_dense(folder, draft) if form == "dense" else _write_packed(folder, config, draft, pattern)
        draft.copy_files(folder)
        for name in (MANIFEST, CARD, ORDERS):
            if (folder / name).exists():
                (draft.folder / name).parent.mkdir(exist_ok=True)
                (draft.folder / name).write_bytes((folder / name).read_bytes())
        config.pop("quantization_config", None)
        text = json.dumps({**config, **block}, indent=2, ensure_ascii=False) + "\n"
        (draft.folder / "config.json").write_text(text, encoding="utf-8")
        draft.publish()
    dense, packed = (folder, output) if form == "packed" else (output, folder)
    return Exported(str(output), form, *_sizes(Shards(dense), Unpacked(packed)))


def _write_dense(folder: Path, draft: Draft) -> dict[str, Any]:
    shards = Unpacked(folder)
    specs = {name: Spec(shards.dtype(name), shards.shape(name)) for name in shards.names}
    with Stream(draft.folder, specs) as stream:
        for name in specs:
            stream.put_rows(name, shards.read_rows(name))
    return {}


def _write_packed(folder: Path, config: dict[str, Any], draft: Draft, pattern: AnyPattern | None) -> dict[str, Any]:
    shards = Shards(folder)
    matrices = {f"{name}.weight": found for name, found in _matrices(folder, config, shards, pattern).items()}
    specs = dict(_packed_specs(shards, matrices))
    with Stream(draft.folder, specs) as stream:
        for name in shards.names:
            if name not in matrices:
                stream.put(name, shards.read(name))
                continue
            matrix, (found, order) = name.removesuffix(".weight"), matrices[name]
            packed = pack(shards.read(name), found, order, name=f"{shards.where[name]}: {matrix}")
            stream.put(f"{matrix}.values", packed.values)
            stream.put(f"{matrix}.bits", packed.bits)
            if packed.order is not None:
                stream.put(f"{matrix}.order", packed.order)
    ordered = frozenset(name.removesuffix(".weight") for name, (_, order) in matrices.items() if order is not None)
    contents = Contents({name.removesuffix(".weight"): found for name, (found, _) in matrices.items()}, ordered)
    return {"quantization_config": contents.to_dict()}


def _packed_specs(shards: Shards, matrices: Mapping[str, tuple[Pattern, Tensor | None]]) -> Iterator[tuple[str, Spec]]:
    for name in shards.names:
        dtype, shape = shards.dtype(name), shards.shape(name)
        if name not in matrices:
            yield name, Spec(dtype, shape)
            continue
        matrix, (pattern, order) = name.removesuffix(".weight"), matrices[name]
        pattern.check_width(shape[1], f"{shards.where[name]}: {matrix}")
        yield f"{matrix}.values", Spec(dtype, (shape[0], shape[1] // pattern.group * pattern.keep))
        yield f"{matrix}.bits", Spec(torch.uint8, (shape[0], -(-shape[1] // 8)))
        if order is not None:
            yield f"{matrix}.order", Spec(torch.int32, (shape[1],))


def _matrices(
    folder: Path, config: dict[str, Any], shards: Shards, pattern: AnyPattern | None
) -> dict[str, tuple[Pattern, Tensor | None]]:
    """Pattern of each pruned matrix, and the order that it is N:M in where that is not its own."""
    if not (folder / MANIFEST).exists():
        if pattern is None:
            raise CheckpointError(f"{folder}: no {MANIFEST} says what was pruned; pass --pattern, as --pattern 2:4")
        family = family_for(str(config["model_type"]), str(folder))
        endings = tuple(f".{linear.path}.weight" for linear in family.linears)
        names = [name.removesuffix(".weight") for name in shards.names if name.endswith(endings)]
        return {name: (structured(pattern, f"{folder}: {name}"), None) for name in names}
    orders = Shards.of_file(folder / ORDERS) if (folder / ORDERS).exists() else None
    found = {}
    for matrix in read_manifest(folder)["matrices"]:
        name = str(matrix["name"])
        if f"{name}.weight" not in shards:
            raise CheckpointError(f"{folder}: {name} is in {MANIFEST}, but its weight is in none of the files")
        order = None
        if not matrix["in_order"]:
            if orders is None or name not in orders:
                raise CheckpointError(f"{folder}: {name} was permuted, but {ORDERS} does not have its order")
            order = orders.read(name)
        asked = pattern or parse_pattern(str(matrix["pattern"]))
        found[name] = (structured(asked, f"{folder}: {name}"), order)
    return found


def _sizes(dense: Shards, packed: Unpacked) -> tuple[int, int, int]:
    """Number of packed matrices, and their bytes dense and packed."""
    names = list(packed.contents.matrices)
    stored = Shards(packed.folder)
    small = sum(stored.bytes(tensor) for name in names for tensor in packed.contents.tensors(name))
    return len(names), sum(dense.bytes(f"{name}.weight") for name in names), small
