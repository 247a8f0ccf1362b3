"""Plan: what will happen to every matrix, and what it will cost, before any weight is read."""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import ModelError, RecipeError
from eggs_ptp.models.load import Skeleton
from eggs_ptp.recipe.recipe import Recipe
from eggs_ptp.recipe.targets import Resolved, resolve

BATCH_TOKENS = 2048  # tokens that run through a block at once


@dataclass(frozen=True)
class MatrixPlan:
    """One prunable matrix: what it is, and what happens to it (`skipped` says why nothing does)."""

    name: str
    block: int
    path: str
    role: str
    rows: int
    columns: int
    reads: str
    resolved: Resolved | None
    skipped: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        resolved = self.resolved
        return {
            "name": self.name,
            "shape": [self.rows, self.columns],
            "reads": self.reads,
            "pattern": str(resolved.pattern) if resolved else None,
            "method": resolved.method.method.name if resolved else None,
            "statistics": sorted(resolved.method.statistics) if resolved else [],
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Plan:
    """The whole run. `memory_bytes` and `seconds` are estimates, see `plan_run`."""

    model: str
    model_type: str
    device: str
    dtype: str
    blocks: int
    matrices: tuple[MatrixPlan, ...]
    nsamples: int
    seqlen: int
    calibration: str
    memory_bytes: int
    seconds: float

    @property
    def needs_calibration(self) -> bool:
        """Whether any method asks for activation statistics."""
        return any(matrix.resolved.method.statistics for matrix in self.matrices if matrix.resolved)

    def of_block(self, block: int) -> list[MatrixPlan]:
        """The matrices of one block, in the order they run."""
        return [matrix for matrix in self.matrices if matrix.block == block]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "model_type": self.model_type,
            "device": self.device,
            "dtype": self.dtype,
            "blocks": self.blocks,
            "calibration": self.calibration,
            "nsamples": self.nsamples if self.needs_calibration else 0,
            "seqlen": self.seqlen if self.needs_calibration else 0,
            "memory_bytes": self.memory_bytes,
            "seconds": self.seconds,
            "matrices": [matrix.to_dict() for matrix in self.matrices],
        }


def plan_run(skeleton: Skeleton, shards: Shards, recipe: Recipe, *, device: torch.device, dtype: torch.dtype) -> Plan:
    """Decide about every matrix.

    `memory_bytes` is what the run adds to the process: the hidden states of all windows, one block in float32 and
    in its stored type, its statistics, and three copies of its largest group of readers for scores and masks.
    `seconds` is two forward passes over every block at the speed of a matrix product measured now.

    Raises:
        ModelError: a block has a linear that the family does not know, or tensors do not fit the config.
        RecipeError: the rules leave nothing to prune.
        PatternError: a pattern that does not fit a matrix or its method.
    """
    _check_coverage(skeleton, shards)
    places = {
        f"{skeleton.block_name(block)}.{linear.path}": (block, linear)
        for block in range(len(skeleton.blocks))
        for linear in skeleton.family.linears
    }
    decided = resolve(recipe, list(places))
    matrices = []
    for name, (block, linear) in places.items():
        rows, columns = _shape(skeleton, shards, name)
        what = decided[name]
        if isinstance(what, Resolved):
            what.pattern.check_width(columns, name)
        fate = (what, None) if isinstance(what, Resolved) else (None, what.reason)
        matrices.append(MatrixPlan(name, block, linear.path, linear.role, rows, columns, linear.reads, *fate))
    if not any(matrix.resolved for matrix in matrices):
        raise RecipeError("the rules skip every matrix, so nothing would be pruned; check --include and --exclude")
    seqlen = recipe.calibration.seqlen or min(2048, skeleton.context)
    if seqlen > skeleton.context:
        raise RecipeError(f"seqlen {seqlen} is longer than the model's context of {skeleton.context} tokens")
    draft = Plan(
        model=str(skeleton.folder),
        model_type=skeleton.family.model_type,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        blocks=len(skeleton.blocks),
        matrices=tuple(matrices),
        nsamples=recipe.calibration.nsamples,
        seqlen=seqlen,
        calibration=recipe.calibration.text or "",
        memory_bytes=0,
        seconds=0.0,
    )
    cost = {"memory_bytes": _memory(draft, skeleton), "seconds": _seconds(draft, device)}
    return Plan(**{**draft.__dict__, **cost})


def _check_coverage(skeleton: Skeleton, shards: Shards) -> None:
    stored = {
        int(name.removeprefix(f"{skeleton.family.blocks}.").split(".")[0]) for name in _of_blocks(skeleton, shards)
    }
    if beyond := stored - set(range(len(skeleton.blocks))):
        raise ModelError(
            f"{skeleton.folder}: the checkpoint has {skeleton.block_name(min(beyond))}, but its config.json makes only "
            f"{len(skeleton.blocks)} blocks"
        )
    known = {linear.path for linear in skeleton.family.linears}
    for index, block in enumerate(skeleton.blocks):
        found = {path for path, module in block.named_modules() if isinstance(module, nn.Linear)}
        if found != known:
            odd = sorted(found ^ known)[0]
            raise ModelError(
                f"{skeleton.block_name(index)}.{odd}: the {skeleton.family.model_type} family "
                f"{'does not know this linear' if odd in found else 'expects this linear, but the block lacks it'}"
            )


def _of_blocks(skeleton: Skeleton, shards: Shards) -> list[str]:
    return [name for name in shards.names if name.startswith(f"{skeleton.family.blocks}.")]


def _shape(skeleton: Skeleton, shards: Shards, name: str) -> tuple[int, int]:
    expected = tuple(skeleton.model.get_submodule(name).weight.shape)  # type: ignore[arg-type]
    stored = shards.shape(f"{name}.weight")
    if stored != expected:
        raise ModelError(f"{name}.weight: the config makes it {list(expected)}, the checkpoint has {list(stored)}")
    return stored[0], stored[1]


def _memory(plan: Plan, skeleton: Skeleton) -> int:
    block_bytes = max(sum(2 * parameter.numel() * 4 for parameter in block.parameters()) for block in skeleton.blocks)
    readers: dict[tuple[int, str], int] = {}
    sums: dict[tuple[int, str], int] = {}
    for matrix in plan.matrices:
        if matrix.resolved:
            key = (matrix.block, matrix.reads)
            readers[key] = readers.get(key, 0) + matrix.rows * matrix.columns * 4
            wanted = matrix.resolved.method.statistics
            sums[key] = 4 * matrix.columns**2 if "gram" in wanted else 8 * matrix.columns * len(wanted)
    total = block_bytes + 3 * max(readers.values())
    if plan.needs_calibration:
        widest = max(parameter.shape[0] for parameter in skeleton.blocks[0].parameters())
        total += plan.nsamples * plan.seqlen * skeleton.hidden_size * 4
        total += 4 * max(BATCH_TOKENS, plan.seqlen) * widest * 4  # what one batch holds inside a block
        total += max(sum(size for key, size in sums.items() if key[0] == block) for block in {key[0] for key in sums})
    return total


def _seconds(plan: Plan, device: torch.device) -> float:
    if not plan.needs_calibration:
        return 0.0
    weights = sum(matrix.rows * matrix.columns for matrix in plan.matrices)
    flops = 2 * 2 * plan.nsamples * plan.seqlen * weights
    return flops / _speed(device)


@functools.cache  # one measurement a process
def _speed(device: torch.device) -> float:
    """Multiply-adds (counted as two) per second of a product of 1024 x 1024 matrices, best of three."""
    a = torch.ones(1024, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def matrices_by_activation(matrices: list[MatrixPlan]) -> Mapping[str, list[MatrixPlan]]:
    """Group the matrices of a block that will be pruned by the activation they read, in order."""
    groups: dict[str, list[MatrixPlan]] = {}
    for matrix in matrices:
        if matrix.resolved:
            groups.setdefault(matrix.reads, []).append(matrix)
    return groups
