"""Writes a folder with folded permutations in the channel order of the model that it was pruned from."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from eggs_ptp.checkpoint.card import update_card_format, update_card_permutation
from eggs_ptp.checkpoint.recorded_fold import read_fold
from eggs_ptp.checkpoint.staging import CARD, MANIFEST, ORDERS, StagingFolder, check_apart, check_space
from eggs_ptp.checkpoint.unpacked import is_packed, open_reader
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.reader import CheckpointReader, save_tensors
from eggs_ptp.engine.tensors.writer import SafetensorsWriter, TensorSpec
from eggs_ptp.errors import CheckpointError, MethodError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.folder import read_config


@dataclass(frozen=True)
class BaseExport:
    """What an export to the source's channel order has written.

    Attributes:
        output: The folder written.
        source: The model whose channel order it has.
        matrices: Number of pruned matrices.
        permuted: How many of them are N:M only in a permutation of their inputs.
    """

    output: str
    source: str
    matrices: int
    permuted: int


def export_base(folder: Path, output: Path, *, overwrite: bool = False) -> BaseExport:
    """Undo the folded permutations of a pruned folder; the model computes the same, up to rounding.

    The output is dense, in the channel order of the model that the folder was pruned from, so that adapters and
    merges made for that model fit. Its record is that of a folder whose permutations were never folded: a matrix is N:M
    in the permutation that `eggs/orders.safetensors` has for it, not as stored.

    Args:
        folder: The pruned folder, dense or packed.
        output: The folder to write.
        overwrite: Replace a model folder at `output`.

    Returns:
        What was written.

    Raises:
        CheckpointError: No permutation is folded into the folder, its record is damaged, or the output cannot be
            written.
        ModelError: The folder is not a model.
    """
    check_apart(output, folder)
    config = read_config(folder, packed=True)
    record = read_manifest(folder)
    source = str(record["source"]["model"])
    fold = read_fold(folder)
    if fold is None:
        raise CheckpointError(
            f"{folder}: expected folded permutations to undo, got weights that are in the channel order of {source} "
            "already; use the folder as it is"
        )
    reader = open_reader(folder)
    reader.check_floats()
    permutations = _matrix_permutations(folder, reader, fold, record["matrices"])
    with StagingFolder(output, overwrite=overwrite) as staging:
        check_space(output, reader)
        _write_tensors(folder, reader, fold.inverse(), staging.folder)
        staging.copy_files(folder)
        if is_packed(folder):
            config.pop("quantization_config")
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (staging.folder / "config.json").write_text(text, encoding="utf-8")
        (staging.folder / ORDERS).parent.mkdir()
        save_tensors(permutations, staging.folder / ORDERS)
        _write_records(folder, staging.folder, config, record, permutations)
        staging.publish()
    return BaseExport(str(output), source, len(record["matrices"]), len(permutations))


def _matrix_permutations(
    folder: Path, reader: CheckpointReader, fold: Fold, matrices: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return the permutation of the inputs of every pruned matrix that has one, by the names of the matrices."""
    permutations = {}
    for matrix in matrices:
        name = str(matrix["name"])
        if f"{name}.weight" not in reader:
            raise CheckpointError(
                f"{folder}: {name} is in {MANIFEST}, but its weight is in none of the files; restore the folder"
            )
        is_nm = isinstance(parse_pattern(str(matrix["pattern"])), Pattern)
        permutation = fold.of_inputs(name) if is_nm or matrix["permuted"] else None
        if permutation is not None:
            permutations[name] = permutation.int()
        elif matrix["permuted"]:
            raise CheckpointError(
                f"{folder}: {ORDERS} does not have the permutation folded into {name}; restore the folder"
            )
    return permutations


def _write_tensors(folder: Path, reader: CheckpointReader, inverse: Fold, target: Path) -> None:
    """Write all tensors with the permutations undone, a block at a time, and the others a few rows at a time."""
    stored = reader.as_stored
    specs = {name: TensorSpec(stored.dtype(name), stored.shape(name)) for name in stored.names}
    try:
        with SafetensorsWriter(target, specs) as writer:
            for block, names in _by_block(reader.names, inverse.family.blocks):
                if block is None:
                    for name in names:
                        writer.put_rows(name, inverse.pieces(name, reader.pieces(name)))
                    continue
                tensors = {name: inverse.apply(name, reader.read(name)) for name in names}
                for name, tensor in reader.to_stored(tensors).items():
                    writer.put(name, tensor)
    except MethodError as error:
        raise CheckpointError(f"{folder}: {ORDERS}: {error}; restore the folder") from error


def _by_block(names: Iterable[str], blocks: str) -> Iterator[tuple[str | None, list[str]]]:
    """Yield the names of each block's tensors, and those outside of blocks under None."""

    def block_of(name: str) -> str | None:
        return name.removeprefix(f"{blocks}.").partition(".")[0] if name.startswith(f"{blocks}.") else None

    for block, members in groupby(sorted(names, key=lambda name: block_of(name) or ""), key=block_of):
        yield block, list(members)


def _write_records(
    folder: Path, target: Path, config: dict[str, Any], record: dict[str, Any], permutations: Mapping[str, Tensor]
) -> None:
    """Write `eggs.json` and the card, which say in which order the matrices are N:M."""
    for matrix in record["matrices"]:
        if matrix["name"] in permutations:
            matrix.update(permuted=True, in_order=False)
    record["orders"] = "gather"
    record["exported"] = {"permutation": "base"}
    written = open_dense(target)
    record["untouched"] = {name: written.sha256(name) for name in record.get("untouched", {})}
    (target / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if (folder / CARD).exists():
        # surrogateescape: bytes that are not UTF-8 are written back as they are
        card = (folder / CARD).read_text(encoding="utf-8", errors="surrogateescape")
        card = update_card_permutation(update_card_format(card, config, None), len(permutations))
        (target / CARD).write_text(card, encoding="utf-8", errors="surrogateescape")
