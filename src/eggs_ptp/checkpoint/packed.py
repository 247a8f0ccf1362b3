"""Packed folders: written from dense N:M ones, and back, a matrix at a time; docs/format.md has the form."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.checkpoint.card import card_of
from eggs_ptp.checkpoint.draft import CARD, MANIFEST, ORDERS, Draft, check_apart
from eggs_ptp.checkpoint.stream import Spec, Stream
from eggs_ptp.checkpoint.unpacked import Unpacked, is_packed
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.layout import layout
from eggs_ptp.core.mask import nonzeros
from eggs_ptp.core.pack import floats, pack, quantise, structured
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.engine.fused import open_dense
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.family import Linear
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.load import load_family
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
    rounded: int  # matrices that unpack to other values than they had: quantised, and not on the grid before


class _Matrix(NamedTuple):
    """A pruned matrix as it is to be packed: its `order` where it is N:M in another than its own."""

    pattern: Pattern
    order: Tensor | None
    transposed: bool


def export(
    folder: Path,
    output: Path,
    form: Form,
    *,
    pattern: AnyPattern | None = None,
    values: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a pruned folder in the other form; everything but the pruned matrices is taken over as it is.

    `values`, "int8" or "int4", puts the values of packed matrices on a grid, the nearest numbers; without it they are
    those of the folder.

    Which matrices, patterns and orders there are is in `eggs.json`; a folder without one needs the `pattern`, which
    then stands for all linears of its blocks. The output appears when it is whole.

    Raises:
        CheckpointError: the folder has that form already, is not what it claims to be, or the output cannot be written.
        ModelError: no model folder.
        PatternError: a matrix is not N:M, or unstructured.
    """
    check_apart(output, folder)
    config = read_config(folder, packed=True)
    if is_packed(folder) == (form == "packed"):
        raise CheckpointError(f"{folder}: is {form} already")
    contents: Contents | None = None
    rounded: Mapping[str, int] = {}
    with Draft(output, overwrite=overwrite) as draft:
        if form == "dense":
            _write_dense(folder, draft)
        else:
            contents, rounded = _write_packed(folder, draft, pattern, values)
        draft.copy_files(folder)
        _copy_records(folder, draft, config, contents, rounded)
        config.pop("quantization_config", None)
        block = {} if contents is None else {"quantization_config": contents.to_dict()}
        text = json.dumps({**config, **block}, indent=2, ensure_ascii=False) + "\n"
        (draft.folder / "config.json").write_text(text, encoding="utf-8")
        draft.publish()
    dense, packed = (folder, output) if form == "packed" else (output, folder)
    return Exported(str(output), form, *_sizes(open_dense(dense), Unpacked(packed)), len(rounded))


def _copy_records(
    folder: Path, draft: Draft, config: dict[str, Any], contents: Contents | None, rounded: Mapping[str, int]
) -> None:
    """What says how the folder was made, and the card, which says in which form it is."""
    for name in (MANIFEST, ORDERS):
        if (folder / name).exists():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_bytes((folder / name).read_bytes())
    if rounded and (folder / MANIFEST).exists():  # the record follows the weights: `verify` holds them against it
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for matrix in record["matrices"]:
            if (name := matrix["name"]) in rounded and contents is not None:
                matrix.update(updated=True, nonzero=rounded[name], rounded=contents.values[name])
        (draft.folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if (folder / CARD).exists():
        text = (folder / CARD).read_text(encoding="utf-8", errors="surrogateescape")  # other bytes stay as they are
        card = card_of(text, config, contents)
        (draft.folder / CARD).write_text(card, encoding="utf-8", errors="surrogateescape")


def _write_dense(folder: Path, draft: Draft) -> None:
    shards = Unpacked(folder)
    _check_names(folder, shards)
    specs = {name: Spec(shards.dtype(name), shards.shape(name)) for name in shards.names}
    with Stream(draft.folder, specs) as stream:
        for name in specs:
            stream.put_rows(name, shards.read_rows(name))


def _write_packed(
    folder: Path, draft: Draft, pattern: AnyPattern | None, values: str | None
) -> tuple[Contents, dict[str, int]]:
    """Write tensors; returns what config.json says of them, and how many non-zeros each rounded matrix now has."""
    shards, rounded = open_dense(folder), {}
    _check_names(folder, shards)
    matrices = {f"{name}.weight": found for name, found in _matrices(folder, shards, pattern).items()}
    specs: dict[str, Spec] = {}
    for name, spec in _packed_specs(shards, matrices, values):
        if name in specs:
            raise CheckpointError(f"{folder}: {name} is a tensor of its own, and would be a part of a packed matrix")
        specs[name] = spec
    with Stream(draft.folder, specs) as stream:
        for name in shards.names:
            if name not in matrices:
                stream.put(name, shards.read(name))
                continue
            matrix, found = name.removesuffix(".weight"), matrices[name]
            where = f"{shards.where[name]}: {matrix}"
            weight = shards.read(name)
            packed = pack(weight.T if found.transposed else weight, found.pattern, found.order, name=where)
            plain = packed.values
            if values is not None:
                packed = quantise(packed, values, where)
            if not torch.equal(now := floats(packed), plain):
                rounded[matrix] = nonzeros(now)
            for part, tensor in packed.tensors().items():
                stream.put(f"{matrix}.{part}", tensor)
    own = {name.removesuffix(".weight"): found for name, found in matrices.items()}
    ordered = frozenset(name for name, found in own.items() if found.order is not None)
    transposed = frozenset(name for name, found in own.items() if found.transposed)
    patterns = {name: found.pattern for name, found in own.items()}
    return Contents(patterns, ordered, dict.fromkeys(patterns, values) if values else {}, transposed), rounded


def _packed_specs(shards: Shards, matrices: Mapping[str, _Matrix], values: str | None) -> Iterator[tuple[str, Spec]]:
    for name in shards.names:
        dtype, shape = shards.dtype(name), shards.shape(name)
        if name not in matrices:
            yield name, Spec(dtype, shape)
            continue
        matrix, (pattern, order, transposed) = name.removesuffix(".weight"), matrices[name]
        if len(shape) != 2:
            raise CheckpointError(f"{shards.where[name]}: {matrix} is to be packed as a matrix, but has shape {shape}")
        shape = shape[::-1] if transposed else shape
        pattern.check_width(shape[1], f"{shards.where[name]}: {matrix}")
        for part, spec in layout(shape, dtype, pattern, values, ordered=order is not None).items():
            yield f"{matrix}.{part}", Spec(*spec)


def _matrices(folder: Path, shards: Shards, pattern: AnyPattern | None) -> dict[str, _Matrix]:
    """The pruned matrices by name."""
    if not (folder / MANIFEST).exists():
        if pattern is None:
            raise CheckpointError(f"{folder}: no {MANIFEST} says what was pruned; pass --pattern, as --pattern 2:4")
        linears = load_family(folder)[0].linears
        ours = {name.removesuffix(".weight"): one for name in shards.names for one in linears if _is(name, one)}
        _whole_layers(folder, shards, ours)
        return {
            name: _Matrix(structured(pattern, f"{folder}: {name}"), None, linear.transposed)
            for name, linear in ours.items()
        }
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
        found[name] = _Matrix(structured(asked, f"{folder}: {name}"), order, matrix.get("transposed", False))
    _whole_layers(folder, shards, found)
    return found


def _check_names(folder: Path, shards: Shards) -> None:
    """Refuse tensors that are no weights, or others than the record has: a header may be damaged."""
    shards.check_floats()
    if not (folder / MANIFEST).exists():
        return
    record = read_manifest(folder)
    if "untouched" in record:
        pruned = {f"{matrix['name']}.weight" for matrix in record["matrices"]}
        if odd := sorted({*record["untouched"], *record.get("tuned", ()), *pruned} ^ set(shards.names)):
            raise CheckpointError(f"{folder}: {odd[0]} is in {MANIFEST} or in the files, but not in both")


def _is(tensor: str, linear: Linear) -> bool:
    return tensor.endswith(f".{linear.path}.weight")


def _whole_layers(folder: Path, shards: Shards, matrices: Collection[str]) -> None:
    """Refuse layers of which only some experts' matrices are packed: transformers would fuse the others."""
    layers = {name.partition(".experts.")[0] for name in matrices if ".experts." in name}
    for tensor in shards.names:
        name = tensor.removesuffix(".weight")
        if name.partition(".experts.")[0] in layers and ".experts." in name and name not in matrices:
            raise CheckpointError(
                f"{folder}: {name} is not pruned, but other experts of its layer are; prune all or none"
            )


def _sizes(dense: Shards, packed: Unpacked) -> tuple[int, int, int]:
    """Number of packed matrices, and their bytes dense and packed."""
    names = list(packed.contents.matrices)
    stored = Shards(packed.folder)
    small = sum(stored.bytes(tensor) for name in names for tensor in packed.contents.tensors(name))
    return len(names), sum(dense.bytes(f"{name}.weight") for name in names), small
