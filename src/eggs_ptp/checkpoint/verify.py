"""Proof after the run: a folder is reopened and checked tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import MANIFEST, ORDERS
from eggs_ptp.checkpoint.record import fault_of
from eggs_ptp.checkpoint.unpacked import open_shards
from eggs_ptp.core.finite import finite
from eggs_ptp.core.mask import nonzeros
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.engine.fused import open_dense
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, MethodError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.json_file import read_json
from eggs_ptp.models.load import load_family


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks of a folder."""

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
        """Plain data."""
        return {"folder": self.folder, "ok": self.ok, "checks": [check.__dict__ for check in self.checks]}


def verify_folder(folder: Path, against: Path | None = None, pattern: str | None = None) -> Verification:
    """Check every group, the densities, ties, finite values, and every tensor that had to stay.

    These are compared with the hashes that the record has of them, and with `against` the source itself, after
    folded orders have been undone, which shows too whether kept weights are what they were.

    A folder without `eggs.json` (made by another tool) can be checked for a `pattern` in its block linears.

    Raises:
        CheckpointError: no record of what to expect, or a broken one.
        ModelError: the folder is no model.
    """
    config = read_config(folder, packed=True)
    shards = open_shards(folder)
    matrices = _expected(folder, shards, pattern)
    if not matrices:
        raise CheckpointError(f"{folder}: no matrix is recorded or recognised as pruned, so there is nothing to check")
    orders = Shards.of_file(folder / ORDERS) if (folder / ORDERS).exists() else None
    checks = [*_matrix_checks(shards, matrices, orders), _finite(shards), _ties(config, shards)]
    record = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    tuned = set(record.get("tuned", ()))
    checks.append(_untouched(folder, shards, tuned | {f"{matrix['name']}.weight" for matrix in matrices}))
    folded = record.get("orders") == "fold"
    undo, broken = _undoing(folder, matrices, orders) if folded else (None, None)
    if broken is not None:
        checks.append(broken)
    elif against is not None:
        of = {f"{matrix['name']}.weight": matrix for matrix in matrices}
        checks += _unchanged(shards, open_dense(against), of, undo, tuned)
    return Verification(str(folder), tuple(checks))


def made_from(folder: Path) -> str | None:
    """Name of the model that a folder of ours was pruned from; None for any other folder."""
    return str(read_manifest(folder)["source"]["model"]) if (folder / MANIFEST).exists() else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the record of a folder.

    Raises:
        CheckpointError: there is none, or this version cannot read it.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{folder}: no {MANIFEST}, so not a folder that eggs has pruned")
    found: dict[str, Any] = read_json(path, CheckpointError)
    if fault := fault_of(found):
        raise CheckpointError(f"{path}: not a record that this version can read ({fault})")
    for matrix in found["matrices"]:
        matrix.setdefault("in_order", not matrix["permuted"])  # format 1, which never folded
    return found


def _expected(folder: Path, shards: Shards, pattern: str | None) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    if path.exists():
        return [{**matrix, "pattern": pattern or matrix["pattern"]} for matrix in read_manifest(folder)["matrices"]]
    if pattern is None:
        raise CheckpointError(f"{folder}: no {MANIFEST} says what to expect; pass --pattern, such as --pattern 2:4")
    linears = {f".{linear.path}.weight": linear for linear in load_family(folder)[0].linears}
    return [
        {
            "name": name.removesuffix(".weight"),
            "pattern": pattern,
            "density": None,
            "permuted": False,
            "in_order": True,
            "updated": True,
            "transposed": linears[ending].transposed,
        }
        for name in shards.names
        for ending in linears
        if name.endswith(ending)
    ]


def _matrix_checks(shards: Shards, matrices: list[dict[str, Any]], orders: Shards | None) -> Iterator[Check]:
    for matrix in matrices:
        name = str(matrix["name"])
        if f"{name}.weight" not in shards:
            yield Check(name, False, "recorded as pruned, but the folder does not have it")
            continue
        weight = shards.read(f"{name}.weight")
        if weight.ndim != 2 or not weight.numel():
            yield Check(name, False, f"recorded as a matrix, but its shape is {tuple(weight.shape)}")
            continue
        weight = weight.T if matrix.get("transposed") else weight
        if matrix["permuted"] and not matrix["in_order"]:
            if orders is None or name not in orders:
                yield Check(name, False, f"recorded as permuted, but {ORDERS} does not have its order")
                continue
            order = orders.read(name).long()
            if order.ndim != 1 or sorted(order.tolist()) != list(range(weight.shape[1])):
                yield Check(name, False, f"its order in {ORDERS} is not a permutation of {weight.shape[1]} channels")
                continue
            weight = weight[:, order]
        check = _pattern_check(name, weight, parse_pattern(str(matrix["pattern"])), matrix["density"])
        expected, found = matrix.get("nonzero"), nonzeros(weight)
        if check.ok and expected is not None and found != expected:
            check = Check(name, False, f"{found} weights are not zero, recorded were {expected}")
        yield check


def _pattern_check(name: str, weight: Tensor, pattern: AnyPattern, density: float | None) -> Check:
    kept = weight != 0
    share = float(kept.float().mean(dtype=torch.float64))
    if isinstance(pattern, Pattern):
        if weight.shape[1] % pattern.group:
            return Check(name, False, f"{weight.shape[1]} inputs cannot be cut into groups of {pattern.group}")
        per_group = kept.view(weight.shape[0], -1, pattern.group).sum(-1)
        bad = int((per_group > pattern.keep).sum())
        if bad:
            return Check(name, False, f"{bad} of {per_group.numel()} groups keep more than {pattern}")
    limit = pattern.density if density is None else density
    if share > limit + 1.0 / weight.numel():
        return Check(name, False, f"{share:.6f} of the weights are non-zero, expected at most {limit:.6f}")
    return Check(name, True, f"{pattern}, {share:.4f} non-zero")


def _untouched(folder: Path, shards: Shards, pruned: set[str]) -> Check:
    """Head, embeddings, norms and whatever else was not pruned, against their recorded hashes."""
    name = "untouched tensors"
    if not (folder / MANIFEST).exists():
        return Check(name, True, "not recorded; --against compares them with the source")
    recorded: dict[str, str] = read_manifest(folder).get("untouched", {})
    if names := set(shards.names) - pruned ^ recorded.keys():
        return Check(name, False, f"only in the record or only in the folder: {', '.join(sorted(names))}")
    changed = [tensor for tensor, digest in sorted(recorded.items()) if shards.sha256(tensor) != digest]
    return Check(name, not changed, f"changed: {', '.join(changed)}" if changed else f"{len(recorded)} as recorded")


def _finite(shards: Shards) -> Check:
    floats = (name for name in shards.names if shards.dtype(name).is_floating_point)
    bad = [name for name in floats if not shards.is_causal_mask(name) and not finite(shards.read(name))]
    return Check(
        "finite values", not bad, f"NaN or infinity in {', '.join(bad)}" if bad else f"{len(shards.names)} tensors"
    )


def _ties(config: dict[str, Any], shards: Shards) -> Check:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not config.get("tie_word_embeddings", False):
        return Check("ties", True, "the config ties nothing")
    if head not in shards or embedding not in shards:
        return Check("ties", True, "head and embeddings are one tensor")
    same = _same(shards.read(head), shards.read(embedding))
    return Check("ties", same, "head and embeddings are equal" if same else f"{head} differs from {embedding}")


def _undoing(folder: Path, matrices: list[dict[str, Any]], orders: Shards | None) -> tuple[Fold | None, Check | None]:
    """The fold that the folder's weights are in, or what is wrong with its record."""
    try:
        fold = Fold(*load_family(folder), {name: orders.read(name) for name in orders.names} if orders else {})
    except MethodError as error:
        return None, Check("orders", False, f"{ORDERS}: {error}")
    for matrix in matrices:
        if matrix["permuted"] and fold.of_inputs(matrix["name"]) is None:
            return None, Check("orders", False, f"{ORDERS} does not have the order folded into {matrix['name']}")
    return fold, None


def _unchanged(
    shards: Shards, source: Shards, pruned: dict[str, dict[str, Any]], fold: Fold | None, tuned: set[str]
) -> Iterator[Check]:
    names = set(shards.names) ^ set(source.names)
    yield Check(
        "tensor names", not names, f"only in one of the two: {', '.join(sorted(names))}" if names else "the same"
    )
    moved, altered = [], []
    for name in sorted((set(shards.names) & set(source.names)) - tuned):
        mine, theirs = shards.read(name), source.read(name)
        if fold is not None and mine.shape == theirs.shape:
            mine = fold.undo(name, mine)
        if name not in pruned:
            if not _same(mine, theirs):
                moved.append(name)
        elif mine.dtype != theirs.dtype or mine.shape != theirs.shape or not _may_be(mine, theirs, pruned[name]):
            altered.append(name)
    yield Check("unpruned tensors", not moved, f"changed: {', '.join(moved)}" if moved else "identical, bit by bit")
    yield Check(
        "kept weights",
        not altered,
        f"changed: {', '.join(altered)}" if altered else "as they were, where no step updates",
    )


def _may_be(mine: Tensor, theirs: Tensor, matrix: dict[str, Any]) -> bool:
    """Every weight is the source's (unless a step updates), or one of the zeros put there, which are +0.0."""
    zero = mine == 0
    put_there = zero & (theirs != 0)
    if torch.signbit(mine[put_there]).any():
        return False
    if matrix["updated"]:
        return True
    density = 0.0 if matrix["density"] is None else float(matrix["density"])
    return bool(((mine == theirs) | zero).all()) and int(put_there.sum()) <= round((1.0 - density) * mine.numel())


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal type, shape and bits (so that NaN equals itself and -0.0 differs from 0.0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)))
