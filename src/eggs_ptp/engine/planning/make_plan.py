"""Makes the plan of a run from a model, its checkpoint and a recipe, before any weight is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.calibration.windows import is_token_file, token_file_shape
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.engine.planning.checks import check_coverage, check_folding, check_tuning, shape_of
from eggs_ptp.engine.planning.memory_budget import fit_budget, memory_needs
from eggs_ptp.engine.planning.plan import MatrixPlan, Plan
from eggs_ptp.engine.planning.time_estimate import estimate_time
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CalibrationError, RecipeError
from eggs_ptp.models.family import PermutationScope
from eggs_ptp.models.load import Skeleton
from eggs_ptp.recipe.recipe import Recipe
from eggs_ptp.recipe.targets import Resolved, Skipped, resolve


def make_plan(
    skeleton: Skeleton,
    reader: CheckpointReader,
    recipe: Recipe,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory: int | None = None,
) -> Plan:
    """Decide what happens to every matrix, and how the run fits into memory.

    Args:
        skeleton: The model without weights.
        reader: Its checkpoint, of which only the headers are read.
        recipe: What to do.
        device: Where to compute.
        dtype: Type in which blocks are computed.
        memory: Bytes that the process may take; None for no limit.

    Returns:
        The plan. Its `memory_bytes` is what the fastest run adds to the process, see `memory_budget.memory_needs`; its
        `seconds` and `processor_seconds` are those of `time_estimate.estimate_time`.

    Raises:
        ModelError: A block has a linear that the family does not know, or tensors do not fit the config.
        RecipeError: The rules leave nothing to prune, or it does not fit into `memory`.
        CalibrationError: A file of windows that has none, or windows longer than the model's context.
        PatternError: A pattern that does not fit a matrix, its method, or the heads inside which it is permuted.
    """
    check_coverage(skeleton, reader)
    matrices = _plan_matrices(skeleton, reader, recipe)
    plan = Plan(
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
        permutation=_permutation(skeleton, recipe) if any(matrix.permutes for matrix in matrices) else None,
        memory_bytes=0,
        seconds=0.0,
    )
    plan = _with_windows(plan, skeleton, recipe)
    check_tuning(plan)
    check_folding(plan, skeleton, reader)
    estimate = estimate_time(plan, device)
    costs: dict[str, Any] = {
        "memory_bytes": memory_needs(plan, skeleton).total,
        "processor_seconds": estimate.processor_seconds,
        "seconds": estimate.seconds,
    }
    return replace(plan, budget=fit_budget(plan, skeleton, memory), **costs)


def _plan_matrices(skeleton: Skeleton, reader: CheckpointReader, recipe: Recipe) -> tuple[MatrixPlan, ...]:
    """Apply the recipe's rules to every matrix."""
    linears = {
        f"{skeleton.block_name(index)}.{linear.path}": (index, linear)
        for index in range(len(skeleton.blocks))
        for linear in skeleton.of_block(index).linears
    }
    decisions = resolve(recipe, list(linears))
    matrices = []
    for name, (block, linear) in linears.items():
        rows, columns = shape_of(skeleton, reader, name, linear.transposed)
        decision = decisions[name]
        if isinstance(decision, Resolved):
            decision.pattern.check_width(columns, name)
        space = skeleton.family.spaces[linear.input_activation]
        matrices.append(
            MatrixPlan(
                name=name,
                block=block,
                path=linear.path,
                role=linear.role,
                rows=rows,
                columns=columns,
                input_activation=linear.input_activation,
                space=space,
                scope=_scope(skeleton, recipe, space, decision),
                transposed=linear.transposed,
                routed=linear.routed,
                resolved=decision if isinstance(decision, Resolved) else None,
                skipped=None if isinstance(decision, Resolved) else decision.reason,
            )
        )
    if not any(matrix.resolved for matrix in matrices):
        raise RecipeError("the rules skip every matrix, so nothing would be pruned; check --include and --exclude")
    return tuple(matrices)


def _scope(skeleton: Skeleton, recipe: Recipe, space: str, decision: Resolved | Skipped) -> PermutationScope:
    """Return how far a permutation of a matrix's inputs reaches: heads that are no whole groups stay as they are."""
    scope = skeleton.family.scope[space]
    if scope != "head" or _permutation(skeleton, recipe) != "fold" or not isinstance(decision, Resolved):
        return scope
    pattern = decision.pattern
    return "fixed" if isinstance(pattern, Pattern) and skeleton.heads.width % pattern.group else scope


def _with_windows(plan: Plan, skeleton: Skeleton, recipe: Recipe) -> Plan:
    """Take number and length of the windows from a file of windows, and check that they fit the model and recipe."""
    text, context = plan.calibration, skeleton.context
    if plan.needs_calibration and is_token_file(text):
        nsamples, seqlen = token_file_shape(Path(text))
        if seqlen > context:
            raise CalibrationError(
                f"{text}: windows of {seqlen} tokens are longer than the model's context of {context}"
            )
        plan = replace(plan, nsamples=nsamples, seqlen=seqlen)
    elif plan.seqlen > context:
        raise RecipeError(f"seqlen {plan.seqlen} is longer than the model's context of {context} tokens")
    if recipe.calibration.skip_first >= plan.seqlen:
        raise RecipeError(
            f"calibration.skip_first = {recipe.calibration.skip_first} leaves nothing of windows of "
            f"{plan.seqlen} tokens"
        )
    return plan


def _permutation(skeleton: Skeleton, recipe: Recipe) -> str:
    """What becomes of permutations: as requested, but kept beside the weights where no family can fold them."""
    return recipe.permutation if skeleton.family.folds or recipe.permutation != "fold" else "gather"
