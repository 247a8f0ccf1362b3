"""Converts pruned folders between the dense and the packed format, one matrix at a time.

docs/format.md describes the packed format.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.checkpoint.card import update_card_format
from eggs_ptp.checkpoint.staging import CARD, MANIFEST, ORDERS, StagingFolder, check_apart
from eggs_ptp.checkpoint.unpacked import UnpackedReader, is_packed
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.layout import packed_layout
from eggs_ptp.core.mask import count_nonzeros
from eggs_ptp.core.pack import Packed, kept_values, pack, quantise, require_nm
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.engine.tensors.writer import SafetensorsWriter, TensorSpec
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.load import load_family
from eggs_ptp.sparse.packed_config import PackedConfig

Form = Literal["dense", "packed"]


@dataclass(frozen=True)
class ExportResult:
    """What an export has written.

    Attributes:
        output: The folder written.
        form: Its format, "dense" or "packed".
        matrices: Number of packed matrices, or of matrices that were packed.
        dense_bytes: Their size in the dense format.
        packed_bytes: Their size in the packed format.
        rounded: Number of matrices whose values changed: they were quantised, and not on the quantisation grid before.
    """

    output: str
    form: str
    matrices: int
    dense_bytes: int
    packed_bytes: int
    rounded: int


class _Matrix(NamedTuple):
    """A pruned matrix to be packed.

    `order` is its channel permutation if it is N:M only in another column order than it is stored in; `transposed` says
    that it is stored as (in, out).
    """

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
) -> ExportResult:
    """Write a pruned folder in the other format; everything except the pruned matrices is copied.

    `eggs.json` says which matrices are pruned, to which patterns, and which are permuted. The output appears once it is
    complete.

    Args:
        folder: The folder to convert.
        output: The folder to write.
        form: Format to write, "packed" or "dense".
        pattern: Pattern of all linears in blocks, for a folder without `eggs.json`; otherwise it replaces the recorded
            ones.
        values: "int8" or "int4" rounds the values of packed matrices to the nearest numbers of a quantisation grid;
            None leaves them as they are.
        overwrite: Replace a model folder at `output`.

    Returns:
        What was written.

    Raises:
        CheckpointError: The folder has that format already, does not match its record, or the output cannot be written.
        ModelError: The folder is not a model.
        PatternError: A matrix is not N:M, or unstructured.
    """
    check_apart(output, folder)
    config = read_config(folder, packed=True)
    if is_packed(folder) == (form == "packed"):
        raise CheckpointError(f"{folder}: is {form} already; pass the other --format, or another folder")
    packed_config: PackedConfig | None = None
    rounded: Mapping[str, int] = {}
    with StagingFolder(output, overwrite=overwrite) as staging:
        if form == "dense":
            _write_dense(folder, staging)
        else:
            packed_config, rounded = _write_packed(folder, staging, pattern, values)
        staging.copy_files(folder)
        _write_records(folder, staging, config, packed_config, rounded)
        config.pop("quantization_config", None)
        if packed_config is not None:
            config["quantization_config"] = packed_config.to_dict()
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (staging.folder / "config.json").write_text(text, encoding="utf-8")
        staging.publish()
    dense, packed = (folder, output) if form == "packed" else (output, folder)
    sizes = _sizes(open_dense(dense), UnpackedReader(packed))
    return ExportResult(str(output), form, *sizes, len(rounded))


def _write_records(
    folder: Path,
    staging: StagingFolder,
    config: dict[str, Any],
    packed_config: PackedConfig | None,
    rounded: Mapping[str, int],
) -> None:
    """Copy `eggs.json` and the permutations, and the card with the sentence about its format updated.

    Rounded matrices are updated in `eggs.json`, as `verify` checks the weights against it.
    """
    for name in (MANIFEST, ORDERS):
        if (folder / name).exists():
            (staging.folder / name).parent.mkdir(exist_ok=True)
            (staging.folder / name).write_bytes((folder / name).read_bytes())
    if packed_config is not None and rounded and (folder / MANIFEST).exists():
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for matrix in record["matrices"]:
            name = matrix["name"]
            if name in rounded:
                matrix.update(updated=True, nonzero=rounded[name], rounded=packed_config.values[name])
        (staging.folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if (folder / CARD).exists():
        # surrogateescape: bytes that are not UTF-8 are written back as they are
        card = (folder / CARD).read_text(encoding="utf-8", errors="surrogateescape")
        card = update_card_format(card, config, packed_config)
        (staging.folder / CARD).write_text(card, encoding="utf-8", errors="surrogateescape")


def _write_dense(folder: Path, staging: StagingFolder) -> None:
    """Write the tensors of a packed folder as dense ones."""
    reader = UnpackedReader(folder)
    _check_names(folder, reader)
    specs = {name: TensorSpec(reader.dtype(name), reader.shape(name)) for name in reader.names}
    with SafetensorsWriter(staging.folder, specs) as writer:
        for name in specs:
            writer.put_rows(name, reader.read_rows(name))


def _write_packed(
    folder: Path, staging: StagingFolder, pattern: AnyPattern | None, values: str | None
) -> tuple[PackedConfig, dict[str, int]]:
    """Write the tensors of a dense folder with its pruned matrices packed.

    Returns:
        The description of the packed matrices, and how many non-zeros each rounded matrix has now.
    """
    reader = open_dense(folder)
    _check_names(folder, reader)
    matrices = _pruned_matrices(folder, reader, pattern)
    specs: dict[str, TensorSpec] = {}
    for name, spec in _packed_specs(reader, matrices, values):
        if name in specs:
            raise CheckpointError(
                f"{folder}: the folder has a tensor {name}, which is the name of a part of a packed matrix; rename it"
            )
        specs[name] = spec
    rounded: dict[str, int] = {}
    with SafetensorsWriter(staging.folder, specs) as writer:
        for name in reader.names:
            matrix = name.removesuffix(".weight")
            if not _is_weight_of(name, matrices):
                writer.put(name, reader.read(name))
                continue
            packed, nonzeros = _pack(reader, name, matrices[matrix], values)
            if nonzeros is not None:
                rounded[matrix] = nonzeros
            for part, tensor in packed.tensors().items():
                writer.put(f"{matrix}.{part}", tensor)
    patterns = {name: matrix.pattern for name, matrix in matrices.items()}
    packed_config = PackedConfig(
        matrices=patterns,
        ordered=frozenset(name for name, matrix in matrices.items() if matrix.order is not None),
        values=dict.fromkeys(patterns, values) if values else {},
        transposed=frozenset(name for name, matrix in matrices.items() if matrix.transposed),
    )
    return packed_config, rounded


def _pack(reader: CheckpointReader, name: str, matrix: _Matrix, values: str | None) -> tuple[Packed, int | None]:
    """Pack a matrix, and quantise it if `values` says so.

    Returns:
        The packed matrix, and the number of its non-zeros if quantisation has changed a value.
    """
    where = _where(reader, name)
    weight = reader.read(name)
    packed = pack(weight.T if matrix.transposed else weight, matrix.pattern, matrix.order, name=where)
    original_values = packed.values
    if values is not None:
        packed = quantise(packed, values, where)
    packed_values = kept_values(packed)
    if torch.equal(packed_values, original_values):
        return packed, None
    return packed, count_nonzeros(packed_values)


def _packed_specs(
    reader: CheckpointReader, matrices: Mapping[str, _Matrix], values: str | None
) -> Iterator[tuple[str, TensorSpec]]:
    """Yield name, type and shape of all tensors that a packed folder will have."""
    for name in reader.names:
        dtype = reader.dtype(name)
        shape = reader.shape(name)
        if not _is_weight_of(name, matrices):
            yield name, TensorSpec(dtype, shape)
            continue
        matrix = name.removesuffix(".weight")
        pattern, order, transposed = matrices[matrix]
        if len(shape) != 2:
            raise CheckpointError(f"{_where(reader, name)}: expected a matrix to pack, got shape {shape}")
        shape = shape[::-1] if transposed else shape
        pattern.check_width(shape[1], _where(reader, name))
        for part, spec in packed_layout(shape, dtype, pattern, values, ordered=order is not None).items():
            yield f"{matrix}.{part}", TensorSpec(*spec)


def _pruned_matrices(folder: Path, reader: CheckpointReader, pattern: AnyPattern | None) -> dict[str, _Matrix]:
    """Return the pruned matrices by the names of their linears."""
    if (folder / MANIFEST).exists():
        matrices = _recorded_matrices(folder, reader, pattern)
    elif pattern is None:
        raise CheckpointError(f"{folder}: no {MANIFEST} says what was pruned; pass --pattern, such as --pattern 2:4")
    else:
        linears = load_family(folder)[0].linears
        matrices = {}
        for tensor in reader.names:
            name = tensor.removesuffix(".weight")
            for linear in linears:
                if tensor.endswith(f".{linear.path}.weight"):
                    own_pattern = require_nm(pattern, f"{folder}: {name}")
                    matrices[name] = _Matrix(own_pattern, None, linear.transposed)
    _check_experts(folder, reader, matrices)
    return matrices


def _recorded_matrices(folder: Path, reader: CheckpointReader, pattern: AnyPattern | None) -> dict[str, _Matrix]:
    """Return the matrices that `eggs.json` lists."""
    permutations = CheckpointReader.of_file(folder / ORDERS) if (folder / ORDERS).exists() else None
    matrices = {}
    for record in read_manifest(folder)["matrices"]:
        name = str(record["name"])
        if f"{name}.weight" not in reader:
            raise CheckpointError(f"{folder}: {name} is in {MANIFEST}, but its weight is in none of the files")
        permutation = None
        if not record["in_order"]:
            if permutations is None or name not in permutations:
                raise CheckpointError(f"{folder}: {name} was permuted, but {ORDERS} does not have its permutation")
            permutation = permutations.read(name)
        own_pattern = require_nm(pattern or parse_pattern(str(record["pattern"])), f"{folder}: {name}")
        matrices[name] = _Matrix(own_pattern, permutation, record.get("transposed", False))
    return matrices


def _check_names(folder: Path, reader: CheckpointReader) -> None:
    """Refuse weights that are not floating-point numbers, and tensors that differ from the record's.

    A damaged header can have either.
    """
    reader.check_floats()
    if not (folder / MANIFEST).exists():
        return
    record = read_manifest(folder)
    if "untouched" not in record:
        return
    pruned = {f"{matrix['name']}.weight" for matrix in record["matrices"]}
    recorded = {*record["untouched"], *record.get("tuned", ()), *pruned}
    if different := sorted(recorded ^ set(reader.names)):
        raise CheckpointError(
            f"{folder}: {different[0]} is in {MANIFEST} or in the files, but not in both; restore the folder"
        )


def _check_experts(folder: Path, reader: CheckpointReader, matrices: Collection[str]) -> None:
    """Refuse layers of which only some experts are pruned: transformers would fuse the others."""
    layers = {name.partition(".experts.")[0] for name in matrices if ".experts." in name}
    for tensor in reader.names:
        name = tensor.removesuffix(".weight")
        if ".experts." in name and name.partition(".experts.")[0] in layers and name not in matrices:
            raise CheckpointError(
                f"{folder}: {name} is not pruned, but other experts of its layer are; prune all or none"
            )


def _is_weight_of(tensor: str, matrices: Collection[str]) -> bool:
    return tensor.endswith(".weight") and tensor.removesuffix(".weight") in matrices


def _where(reader: CheckpointReader, weight: str) -> str:
    """Name a matrix and its file, for messages."""
    return f"{reader.where[weight]}: {weight.removesuffix('.weight')}"


def _sizes(dense: CheckpointReader, packed: UnpackedReader) -> tuple[int, int, int]:
    """Return the number of packed matrices, and their bytes in the dense and in the packed format."""
    names = list(packed.packed_config.matrices)
    stored = CheckpointReader(packed.folder)
    packed_bytes = sum(stored.bytes(tensor) for name in names for tensor in packed.packed_config.tensors(name))
    dense_bytes = sum(dense.bytes(f"{name}.weight") for name in names)
    return len(names), dense_bytes, packed_bytes
