"""Verification: reopens a folder and checks it tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.checkpoint.compressed_tensors import CompressedTensorsReader, is_compressed_tensors
from eggs_ptp.checkpoint.run_record import find_record_fault
from eggs_ptp.checkpoint.staging import MANIFEST, ORDERS
from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.core.finite import is_finite
from eggs_ptp.core.json_file import read_json
from eggs_ptp.core.mask import count_nonzeros
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError, MethodError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.load import load_family

AFTER_QUANTISING = "pattern after quantising"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: The matrix, or what was checked of the whole folder.
        ok: Whether it passed.
        detail: What was found.
    """

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """The results of all checks of a folder."""

    folder: str
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.ok]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the results as plain data."""
        return {"folder": self.folder, "ok": self.ok, "checks": [check.__dict__ for check in self.checks]}


def verify_folder(folder: Path, against: Path | None = None, pattern: str | None = None) -> Verification:
    """Check patterns, densities, finite values and ties, and that everything else is unchanged.

    Tensors that were neither pruned nor tuned are compared with the hashes in `eggs.json`. With `against`, all tensors
    are compared with the source too, after folded permutations are undone; this also shows whether kept weights are
    those of the source.

    A folder that was quantised after pruning, in a format of compressed-tensors, is dequantised. Its first check says
    how many groups no longer hold their pattern. Kept weights and other tensors are not compared with anything, as
    quantising changes them.

    Args:
        folder: The pruned folder, dense, packed or quantised.
        against: The model that it was pruned from.
        pattern: Pattern to check instead of the recorded ones. A folder without `eggs.json`, made by another tool,
            needs one: it is checked for all linears in blocks.

    Returns:
        The results.

    Raises:
        CheckpointError: No record says what to expect, or the record is broken; a quantised folder is to be compared
            with its source.
        ModelError: The folder is not a model.
    """
    config = read_config(folder, packed=True, quantised=True)
    if is_compressed_tensors(config):
        return _verify_quantised(folder, config, against, pattern)
    reader = open_reader(folder)
    matrices = _expected_matrices(folder, reader, pattern)
    if not matrices:
        raise CheckpointError(f"{folder}: no matrix is recorded or recognised as pruned, so there is nothing to check")
    permutations = CheckpointReader.of_file(folder / ORDERS) if (folder / ORDERS).exists() else None
    record = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    tuned = set(record.get("tuned", ()))
    pruned = {f"{matrix['name']}.weight": matrix for matrix in matrices}
    checks = [
        *(_check_matrix(matrix, weight) for matrix, weight in _pruned_weights(reader, matrices, permutations)),
        _check_finite(reader),
        _check_ties(config, reader),
        _check_untouched(folder, reader, tuned | pruned.keys()),
    ]
    fold = None
    if record.get("orders") == "fold":
        fold = _recorded_fold(folder, matrices, permutations)
    if isinstance(fold, Check):
        checks.append(fold)
    elif against is not None:
        checks += _compare_with_source(reader, open_dense(against), pruned, fold, tuned)
    return Verification(str(folder), tuple(checks))


def _verify_quantised(folder: Path, config: dict[str, Any], against: Path | None, pattern: str | None) -> Verification:
    """Check the patterns of a folder that was quantised after pruning, as of `verify_folder`."""
    if against is not None:
        raise CheckpointError(
            f"{folder}: expected a folder that was not quantised to compare with {against}, got compressed-tensors, "
            "which changes every weight; verify the pruned folder --against its source, and this one without"
        )
    reader = CompressedTensorsReader(folder)
    matrices = [{**matrix, "nonzero": None} for matrix in _expected_matrices(folder, reader, pattern)]
    if not matrices:
        raise CheckpointError(f"{folder}: no matrix is recorded or recognised as pruned, so there is nothing to check")
    permutations = CheckpointReader.of_file(folder / ORDERS) if (folder / ORDERS).exists() else None
    checks = []
    losses = []
    for matrix, weight in _pruned_weights(reader, matrices, permutations):
        checks.append(_check_matrix(matrix, weight))
        if isinstance(weight, Tensor):
            losses.append(_count_returned(weight, parse_pattern(str(matrix["pattern"])), matrix["density"]))
    checks.insert(0, _check_after_quantising(reader.format, losses))
    unchecked = "not compared, as the folder was quantised after pruning"
    checks += [_check_finite(reader), _check_ties(config, reader), Check("untouched tensors", True, unchecked)]
    return Verification(str(folder), tuple(checks))


def source_model(folder: Path) -> str | None:
    """Return the name of the model that a folder was pruned from; None for a folder without `eggs.json`."""
    return str(read_manifest(folder)["source"]["model"]) if (folder / MANIFEST).exists() else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the record of a pruned folder, `eggs.json`.

    Raises:
        CheckpointError: The folder has none, or this version cannot read it.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{folder}: no {MANIFEST}, so eggs has not pruned this folder; pass one that it has")
    record: dict[str, Any] = read_json(path, CheckpointError)
    if fault := find_record_fault(record):
        raise CheckpointError(f"{path}: not a record that this version can read ({fault})")
    for matrix in record["matrices"]:
        matrix.setdefault("in_order", not matrix["permuted"])  # format 1, which never folded
    return record


def _percent(count: int, total: int) -> str:
    """Return a share as text, with more digits where it is small."""
    share = count / max(1, total)
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.2g}%"


@dataclass(frozen=True)
class _Returned:
    """What quantising has done to a pruned matrix.

    Attributes:
        broken: Groups that keep more weights than their pattern allows.
        groups: All groups; 0 for a pattern without groups.
        returned: Weights above what the pattern allows, so pruned ones that are not zero any more, at least.
        pruned: Weights that the pattern prunes, at least.
    """

    broken: int
    groups: int
    returned: int
    pruned: int


def _count_returned(weight: Tensor, pattern: AnyPattern, density: float | None) -> _Returned:
    """Count the groups of a quantised weight (out, in) that no longer hold, and the pruned weights that came back."""
    if isinstance(pattern, Pattern) and not weight.shape[1] % pattern.group:
        excess = ((weight != 0).view(weight.shape[0], -1, pattern.group).sum(-1) - pattern.keep).clamp_min(0)
        pruned = excess.numel() * (pattern.group - pattern.keep)
        return _Returned(int((excess > 0).sum()), excess.numel(), int(excess.sum()), pruned)
    kept = round((pattern.density if density is None else density) * weight.numel())
    return _Returned(0, 0, max(0, count_nonzeros(weight) - kept), weight.numel() - kept)


def _check_after_quantising(quantised_format: str, losses: list[_Returned]) -> Check:
    """Say in words what quantising has done to the pattern of a whole folder."""
    total = _Returned(*(sum(getattr(loss, field) for loss in losses) for field in _Returned.__annotations__))
    what = f"quantised by compressed-tensors ({quantised_format})"
    if not total.returned:
        return Check(AFTER_QUANTISING, True, f"{what}; all {len(losses)} pruned matrices still hold their pattern")
    groups = ""
    if total.groups:
        share = _percent(total.broken, total.groups)
        groups = f"{total.broken} of {total.groups} groups ({share}) no longer hold their pattern; "
    returned = f"at least {_percent(total.returned, total.pruned)} of the pruned weights came back"
    advice = "quantise the pruned folder again with a method that keeps zeros, such as round to nearest"
    return Check(AFTER_QUANTISING, False, f"{what}; {groups}{returned}; {advice}")


def _expected_matrices(folder: Path, reader: CheckpointReader, pattern: str | None) -> list[dict[str, Any]]:
    """Return the records of the matrices to check: those of `eggs.json`, or of all linears in blocks."""
    if (folder / MANIFEST).exists():
        recorded = read_manifest(folder)["matrices"]
        return [{**matrix, "pattern": pattern or matrix["pattern"]} for matrix in recorded]
    if pattern is None:
        raise CheckpointError(f"{folder}: no {MANIFEST} says what to expect; pass --pattern, such as --pattern 2:4")
    linears = {f".{linear.path}.weight": linear for linear in load_family(folder, quantised=True)[0].linears}
    return [
        {
            "name": name.removesuffix(".weight"),
            "pattern": pattern,
            "density": None,
            "permuted": False,
            "in_order": True,
            "updated": True,
            "transposed": linear.transposed,
        }
        for name in reader.names
        for suffix, linear in linears.items()
        if name.endswith(suffix)
    ]


def _pruned_weights(
    reader: CheckpointReader, matrices: list[dict[str, Any]], permutations: CheckpointReader | None
) -> Iterator[tuple[dict[str, Any], Tensor | str]]:
    """Read every pruned matrix in the column order of its groups.

    Yields:
        The record of the matrix, and its weight (out, in) or what is wrong with it.
    """
    for matrix in matrices:
        name = str(matrix["name"])
        if f"{name}.weight" not in reader:
            yield matrix, "recorded as pruned, but the folder does not have it"
            continue
        weight = reader.read(f"{name}.weight")
        if weight.ndim != 2 or not weight.numel():
            yield matrix, f"recorded as a matrix, but its shape is {tuple(weight.shape)}"
            continue
        weight = weight.T if matrix.get("transposed") else weight
        if matrix["permuted"] and not matrix["in_order"]:
            if permutations is None or name not in permutations:
                yield matrix, f"recorded as permuted, but {ORDERS} does not have its permutation"
                continue
            permutation = permutations.read(name).long()
            channels = weight.shape[1]
            if permutation.ndim != 1 or sorted(permutation.tolist()) != list(range(channels)):
                yield matrix, f"its entry in {ORDERS} is not a permutation of {channels} channels"
                continue
            weight = weight[:, permutation]
        yield matrix, weight


def _check_matrix(matrix: dict[str, Any], weight: Tensor | str) -> Check:
    """Check pattern, density and number of non-zeros of a pruned matrix; its weight may be why it cannot be read."""
    name = str(matrix["name"])
    if isinstance(weight, str):
        return Check(name, False, weight)
    check = _check_pattern(name, weight, parse_pattern(str(matrix["pattern"])), matrix["density"])
    expected = matrix.get("nonzero")
    nonzeros = count_nonzeros(weight)
    if check.ok and expected is not None and nonzeros != expected:
        return Check(name, False, f"{nonzeros} weights are not zero, recorded were {expected}")
    return check


def _check_pattern(name: str, weight: Tensor, pattern: AnyPattern, density: float | None) -> Check:
    """Check that no group keeps too many weights, and that the density is at most the recorded or the pattern's."""
    nonzero = weight != 0
    share = float(nonzero.float().mean(dtype=torch.float64))
    if isinstance(pattern, Pattern):
        if weight.shape[1] % pattern.group:
            return Check(name, False, f"{weight.shape[1]} inputs cannot be cut into groups of {pattern.group}")
        per_group = nonzero.view(weight.shape[0], -1, pattern.group).sum(-1)
        violations = int((per_group > pattern.keep).sum())
        if violations:
            return Check(name, False, f"{violations} of {per_group.numel()} groups keep more than {pattern}")
    limit = pattern.density if density is None else density
    if share > limit + 1.0 / weight.numel():
        return Check(name, False, f"{share:.6f} of the weights are non-zero, expected at most {limit:.6f}")
    return Check(name, True, f"{pattern}, {share:.4f} non-zero")


def _check_untouched(folder: Path, reader: CheckpointReader, changed: set[str]) -> Check:
    """Compare all tensors but those that were pruned or tuned with their recorded hashes."""
    name = "untouched tensors"
    if not (folder / MANIFEST).exists():
        return Check(name, True, "not recorded; --against compares them with the source")
    recorded: dict[str, str] = read_manifest(folder).get("untouched", {})
    if unmatched := set(reader.names) - changed ^ recorded.keys():
        return Check(name, False, f"only in the record or only in the folder: {', '.join(sorted(unmatched))}")
    different = [tensor for tensor, digest in sorted(recorded.items()) if reader.sha256(tensor) != digest]
    if different:
        return Check(name, False, f"changed: {', '.join(different)}")
    return Check(name, True, f"{len(recorded)} as recorded")


def _check_finite(reader: CheckpointReader) -> Check:
    """Check that no tensor holds NaN or infinity, except causal masks, which may."""
    name = "finite values"
    floats = [tensor for tensor in reader.names if reader.dtype(tensor).is_floating_point]
    broken = [tensor for tensor in floats if not reader.is_causal_mask(tensor) and not is_finite(reader.read(tensor))]
    if broken:
        return Check(name, False, f"NaN or infinity in {', '.join(broken)}")
    return Check(name, True, f"{len(reader.names)} tensors")


def _check_ties(config: dict[str, Any], reader: CheckpointReader) -> Check:
    """Check that head and embeddings are equal if the config ties them."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not config.get("tie_word_embeddings", False):
        return Check("ties", True, "the config ties nothing")
    if head not in reader or embedding not in reader:
        return Check("ties", True, "head and embeddings are stored as one tensor")
    if _identical(reader.read(head), reader.read(embedding)):
        return Check("ties", True, "head and embeddings are equal")
    return Check("ties", False, f"{head} differs from {embedding}")


def _recorded_fold(folder: Path, matrices: list[dict[str, Any]], permutations: CheckpointReader | None) -> Fold | Check:
    """Return the permutations that are folded into the weights; a failed check if the file does not have them all."""
    by_space = {name: permutations.read(name) for name in permutations.names} if permutations else {}
    try:
        fold = Fold(*load_family(folder), by_space)
    except MethodError as error:
        return Check("permutations", False, f"{ORDERS}: {error}")
    for matrix in matrices:
        if matrix["permuted"] and fold.of_inputs(matrix["name"]) is None:
            return Check("permutations", False, f"{ORDERS} does not have the permutation folded into {matrix['name']}")
    return fold


def _compare_with_source(
    reader: CheckpointReader,
    source: CheckpointReader,
    pruned: dict[str, dict[str, Any]],
    fold: Fold | None,
    tuned: set[str],
) -> Iterator[Check]:
    """Compare all tensors but tuned ones with the source's.

    Args:
        reader: The pruned folder.
        source: The source model.
        pruned: Records of the pruned matrices, by the names of their weights.
        fold: Permutations to undo before comparing.
        tuned: Names of tensors that were tuned.
    """
    unmatched = set(reader.names) ^ set(source.names)
    detail = f"only in one of the two: {', '.join(sorted(unmatched))}" if unmatched else "the same"
    yield Check("tensor names", not unmatched, detail)
    changed_unpruned = []
    changed_pruned = []
    for name in sorted((set(reader.names) & set(source.names)) - tuned):
        tensor = reader.read(name)
        original = source.read(name)
        if fold is not None and tensor.shape == original.shape:
            tensor = fold.undo(name, tensor)
        if name not in pruned:
            if not _identical(tensor, original):
                changed_unpruned.append(name)
        elif not _is_pruned_version(tensor, original, pruned[name]):
            changed_pruned.append(name)
    detail = f"changed: {', '.join(changed_unpruned)}" if changed_unpruned else "identical, bit by bit"
    yield Check("unpruned tensors", not changed_unpruned, detail)
    detail = f"changed: {', '.join(changed_pruned)}" if changed_pruned else "unchanged, unless a step updates them"
    yield Check("kept weights", not changed_pruned, detail)


def _is_pruned_version(weight: Tensor, original: Tensor, matrix: dict[str, Any]) -> bool:
    """Whether a weight can result from pruning the original one.

    Every weight is the original's, unless a step updates weights, or a zero. Pruned weights are +0.0, and there are no
    more of them than the recorded density allows.
    """
    if weight.dtype != original.dtype or weight.shape != original.shape:
        return False
    zero = weight == 0
    pruned = zero & (original != 0)
    if torch.signbit(weight[pruned]).any():
        return False
    if matrix["updated"]:
        return True
    density = 0.0 if matrix["density"] is None else float(matrix["density"])
    most_pruned = round((1.0 - density) * weight.numel())
    return bool(((weight == original) | zero).all()) and int(pruned.sum()) <= most_pruned


def _identical(first: Tensor, second: Tensor) -> bool:
    """Whether type, shape and bits are equal: NaN equals itself, and -0.0 differs from 0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool(torch.equal(_as_bytes(first), _as_bytes(second)))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
