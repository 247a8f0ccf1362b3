"""Whether a checkpoint, its config, a family and a plan fit together."""

from typing import TYPE_CHECKING

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import ModelError, PatternError, RecipeError
from eggs_ptp.models.discover import is_linear
from eggs_ptp.models.fold import check_names
from eggs_ptp.models.load import Skeleton

if TYPE_CHECKING:
    from eggs_ptp.engine.plan import Plan


def check_coverage(skeleton: Skeleton, shards: Shards) -> None:
    """Refuse blocks that the config does not make, and linears that the family does not know or that a block lacks."""
    shards.check_floats()
    stored = {
        int(name.removeprefix(f"{skeleton.family.blocks}.").split(".")[0]) for name in _of_blocks(skeleton, shards)
    }
    if beyond := stored - set(range(len(skeleton.blocks))):
        raise ModelError(
            f"{skeleton.folder}: the checkpoint has {skeleton.block_name(min(beyond))}, but its config.json makes only "
            f"{len(skeleton.blocks)} blocks"
        )
    linears = skeleton.family.linears
    for index, block in enumerate(skeleton.blocks):
        found = {
            path
            for path, module in block.named_modules()
            if is_linear(module) and f"{path}.weight" not in skeleton.family.inside
        }
        if odds := sorted(
            (found - {linear.path for linear in linears}) | {one.path for one in linears if not one.optional} - found
        ):
            odd = odds[0]
            raise ModelError(
                f"{skeleton.block_name(index)}.{odd}: the {skeleton.family.model_type} family "
                f"{'does not know this linear' if odd in found else 'expects this linear, but the block lacks it'}"
            )


def check_tuning(plan: "Plan") -> None:
    """Refuse different tune steps in one block."""
    for block in range(plan.blocks):
        steps = {repr(matrix.tune.to_dict()): matrix for matrix in plan.of_block(block) if matrix.tune}
        if len(steps) > 1:
            first, other = list(steps.values())[:2]
            raise RecipeError(
                f"{other.name}: its tune step differs from that of {first.name}, and a block is tuned as a whole; give "
                "all matrices of a block the same steps.tune"
            )


def check_folding(plan: "Plan", skeleton: Skeleton, shards: Shards) -> None:
    """Refuse orders that cannot be folded."""
    if plan.folds:
        check_names(skeleton.family, shards.names)
    for matrix in plan.folding("head"):
        pattern = matrix.resolved.pattern if matrix.resolved else None
        if isinstance(pattern, Pattern) and skeleton.heads.width % pattern.group:
            raise PatternError(
                f"{matrix.name}: heads of {skeleton.heads.width} channels cannot be cut into groups of {pattern.group} "
                f"for pattern {pattern}, and a folded order stays inside heads; give it another pattern, or keep the "
                'orders apart with --orders gather (orders = "gather")'
            )


def _of_blocks(skeleton: Skeleton, shards: Shards) -> list[str]:
    return [name for name in shards.names if name.startswith(f"{skeleton.family.blocks}.")]


def shape_of(skeleton: Skeleton, shards: Shards, name: str, transposed: bool) -> tuple[int, int]:
    """The rows (out) and columns (in) of a matrix, which the checkpoint must have as the config makes it."""
    expected = tuple(skeleton.root.get_submodule(name).weight.shape)  # type: ignore[arg-type]
    stored = shards.shape(f"{name}.weight")
    if stored != expected:
        raise ModelError(f"{name}.weight: the config makes it {list(expected)}, the checkpoint has {list(stored)}")
    return (stored[1], stored[0]) if transposed else (stored[0], stored[1])
