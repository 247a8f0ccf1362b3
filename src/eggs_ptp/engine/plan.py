"""Plan: what will happen to every matrix, and what it will cost, before any weight is read."""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.calibration.windows import given_shape, is_given
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.engine.budget import Budget, budget_of, needs_of
from eggs_ptp.engine.fit import check_coverage, check_folding, check_tuning, shape_of
from eggs_ptp.engine.ranks import Ranks
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CalibrationError, RecipeError
from eggs_ptp.method.step import Bound
from eggs_ptp.models.family import Reach
from eggs_ptp.models.load import Skeleton
from eggs_ptp.recipe.recipe import Recipe
from eggs_ptp.recipe.targets import Resolved, resolve

_LEAST_ORDER_TOKENS = 2048
ORDER_TOKENS = 8192  # in evenly spaced windows, at least: plenty for the norms that its scores are made of


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
    space: str  # that the activation lives in
    reach: Reach  # of an order of that space
    transposed: bool  # stored as (in, out)
    routed: bool  # sees only the tokens that a router sends it
    resolved: Resolved | None
    skipped: str | None

    @property
    def compares(self) -> bool:
        """Whether its method wants to know what the dense model has there; its router may send other tokens here."""
        return self.resolved is not None and self.resolved.method.compares and not self.routed

    @property
    def tune(self) -> Bound | None:
        """The step that tunes its block, where its method has one."""
        return self.resolved.method.tune if self.resolved else None

    @property
    def permutes(self) -> bool:
        """Whether its method looks for an order of its inputs that an N:M pattern can gain from."""
        found = self.resolved
        return found is not None and isinstance(found.pattern, Pattern) and "permute" in found.method.steps

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
    discovered: bool  # no family knows the model type: blocks and linears were found in the module tree
    device: str
    dtype: str
    blocks: int
    matrices: tuple[MatrixPlan, ...]
    nsamples: int
    seqlen: int
    calibration: str
    orders: str | None  # what becomes of the orders that are found; None where no matrix permutes
    memory_bytes: int
    seconds: float
    budget: Budget = field(default_factory=Budget)

    @property
    def needs_calibration(self) -> bool:
        """Whether any method asks for activations."""
        return self.needs_dense or any(matrix.resolved.method.statistics for matrix in self.matrices if matrix.resolved)

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model has to run beside the pruned one."""
        return any(matrix.compares or matrix.tune for matrix in self.matrices)

    @property
    def compares(self) -> bool:
        """Whether any method compares activations with the dense model's."""
        return any(matrix.compares for matrix in self.matrices)

    def tune(self, block: int) -> Bound | None:
        """The step that tunes a block, if any: that of its matrices."""
        return next((matrix.tune for matrix in self.of_block(block) if matrix.tune), None)

    @property
    def folds(self) -> bool:
        """Whether orders go into the weights."""
        return self.orders == "fold"

    @property
    def orders_first(self) -> bool:
        """Whether an order has to be found from activations of the dense model before the first block is pruned."""
        return any(
            matrix.resolved.method.steps["score"].statistics for matrix in self.folding("model") if matrix.resolved
        )

    def folding(self, reach: Reach) -> list[MatrixPlan]:
        """The matrices that permute a space of that reach, where orders go into the weights."""
        return [matrix for matrix in self.matrices if self.folds and matrix.permutes and matrix.reach == reach]

    def of_block(self, block: int) -> list[MatrixPlan]:
        """The matrices of one block, in the order they run."""
        return [matrix for matrix in self.matrices if matrix.block == block]

    def in_batches(self, tokens: int) -> "Plan":
        """The same with batches of so many tokens."""
        return replace(self, budget=replace(self.budget, batch_tokens=tokens))

    def computing(self, ranks: Ranks) -> dict[str, Any]:
        """What its numbers depend on beside the recipe, as a record has it."""
        where = self.device if ranks.count == 1 else torch.device(self.device).type  # each has one of its own
        return {"device": where, "dtype": self.dtype, "orders": self.orders, "batch_tokens": self.budget.batch_tokens}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.model,
            "model_type": self.model_type,
            "discovered": self.discovered,
            "device": self.device,
            "dtype": self.dtype,
            "blocks": self.blocks,
            "calibration": self.calibration,
            "orders": self.orders,
            "nsamples": self.nsamples if self.needs_calibration else 0,
            "seqlen": self.seqlen if self.needs_calibration else 0,
            "memory_bytes": self.memory_bytes,
            "batch_tokens": self.budget.batch_tokens,
            "activations_in_memory": self.budget.allowance,
            "seconds": self.seconds,
            "matrices": [matrix.to_dict() for matrix in self.matrices],
        }


def plan_run(
    skeleton: Skeleton,
    shards: Shards,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory: int | None = None,
) -> Plan:
    """Decide about every matrix, and how the run fits into `memory` bytes.

    `memory_bytes` is what the run adds to the process where it is fastest, see `engine.budget.needs_of`.
    `seconds` is two forward passes over every block at the speed of a matrix product measured now, three where an
    order is folded that spans the model.

    Raises:
        ModelError: a block has a linear that the family does not know, or tensors do not fit the config.
        RecipeError: the rules leave nothing to prune, or it does not fit into `memory`.
        CalibrationError: a file of windows that holds none, or windows longer than the model's context.
        PatternError: a pattern that does not fit a matrix, its method, or the heads inside which it is permuted.
    """
    check_coverage(skeleton, shards)
    matrices = _decided(skeleton, shards, recipe)
    draft = Plan(
        model=str(skeleton.folder),
        model_type=skeleton.family.model_type,
        discovered=not skeleton.family.known,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        blocks=len(skeleton.blocks),
        matrices=matrices,
        nsamples=recipe.calibration.nsamples,
        seqlen=recipe.calibration.seqlen or min(2048, skeleton.context),
        calibration=recipe.calibration.text or "",
        orders=_orders(skeleton, recipe) if any(matrix.permutes for matrix in matrices) else None,
        memory_bytes=0,
        seconds=0.0,
    )
    draft = _of_windows(draft, skeleton, recipe)
    check_tuning(draft)
    check_folding(draft, skeleton, shards)
    cost: dict[str, Any] = {"memory_bytes": needs_of(draft, skeleton).total, "seconds": _seconds(draft, device)}
    return replace(draft, budget=budget_of(draft, skeleton, memory), **cost)


def _decided(skeleton: Skeleton, shards: Shards, recipe: Recipe) -> tuple[MatrixPlan, ...]:
    """Every matrix, and what the recipe's rules make of it."""
    places = {
        f"{skeleton.block_name(index)}.{linear.path}": (index, linear)
        for index in range(len(skeleton.blocks))
        for linear in skeleton.of_block(index).linears
    }
    decided = resolve(recipe, list(places))
    matrices = []
    for name, (block, linear) in places.items():
        rows, columns = shape_of(skeleton, shards, name, linear.transposed)
        what = decided[name]
        if isinstance(what, Resolved):
            what.pattern.check_width(columns, name)
        fate = (what, None) if isinstance(what, Resolved) else (None, what.reason)
        space = skeleton.family.spaces[linear.reads]
        reach = skeleton.family.reach[space]
        what_it_is = (name, block, linear.path, linear.role, rows, columns, linear.reads, space, reach)
        matrices.append(MatrixPlan(*what_it_is, linear.transposed, linear.routed, *fate))
    if not any(matrix.resolved for matrix in matrices):
        raise RecipeError("the rules skip every matrix, so nothing would be pruned; check --include and --exclude")
    return tuple(matrices)


def _of_windows(draft: Plan, skeleton: Skeleton, recipe: Recipe) -> Plan:
    """The same with the windows of a file of windows, where it is to be read; they must fit model and recipe."""
    asked, text, context = recipe.calibration, draft.calibration, skeleton.context
    if draft.needs_calibration and is_given(text):
        nsamples, seqlen = given_shape(Path(text))
        if seqlen > context:
            raise CalibrationError(
                f"{text}: windows of {seqlen} tokens are longer than the model's context of {context}"
            )
        draft = replace(draft, nsamples=nsamples, seqlen=seqlen)
    elif draft.seqlen > context:
        raise RecipeError(f"seqlen {draft.seqlen} is longer than the model's context of {context} tokens")
    if asked.skip_first >= draft.seqlen:
        raise RecipeError(
            f"calibration.skip_first = {asked.skip_first} leaves nothing of windows of {draft.seqlen} tokens"
        )
    return draft


def _orders(skeleton: Skeleton, recipe: Recipe) -> str:
    """What becomes of orders: what was asked for, but what no family knows how to fold is kept beside the weights."""
    return recipe.orders if skeleton.family.folds or recipe.orders != "fold" else "gather"


def _seconds(plan: Plan, device: torch.device) -> float:
    if not plan.needs_calibration:
        return 0.0
    weights = sum(matrix.rows * matrix.columns for matrix in plan.matrices)
    # Observing and going on; an order found first; the dense model beside; each group of readers observed by itself.
    passes = 2.0 + plan.orders_first / order_stride(plan.nsamples, plan.seqlen) + plan.needs_dense + 0.5 * plan.compares
    flops = 2 * passes * plan.nsamples * plan.seqlen * weights
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


def order_stride(windows: int, seqlen: int) -> int:
    """Of so many windows one is looked at to find an order of the model: a quarter of few, 8192 tokens of many."""
    tokens = windows * seqlen
    return max(1, tokens // min(ORDER_TOKENS, max(tokens // 4, _LEAST_ORDER_TOKENS)))


def matrices_by_activation(matrices: list[MatrixPlan]) -> Mapping[str, list[MatrixPlan]]:
    """Group the matrices of a block that will be pruned by the activation they read, in order."""
    groups: dict[str, list[MatrixPlan]] = {}
    for matrix in matrices:
        if matrix.resolved:
            groups.setdefault(matrix.reads, []).append(matrix)
    return groups


def in_turn(groups: Mapping[str, list[MatrixPlan]]) -> list[dict[str, list[MatrixPlan]]]:
    """The groups one by one, but those of a layer's experts, which see nothing of each other, together."""
    turns: dict[str, dict[str, list[MatrixPlan]]] = {}
    for reads, matrices in groups.items():
        turns.setdefault(reads.partition("[")[0], {})[reads] = matrices
    return list(turns.values())
