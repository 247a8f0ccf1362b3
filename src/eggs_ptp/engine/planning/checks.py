"""Checks that checkpoint, config, family and plan agree."""

from eggs_ptp.engine.planning.plan import Plan
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import ModelError, RecipeError
from eggs_ptp.models.discover import is_linear
from eggs_ptp.models.fold import check_names
from eggs_ptp.models.load import Skeleton


def check_coverage(skeleton: Skeleton, reader: CheckpointReader) -> None:
    """Check that the checkpoint has the blocks of the config, and every block the linears of the family.

    Raises:
        ModelError: Names the block or linear.
    """
    reader.check_floats()
    prefix = f"{skeleton.family.blocks}."
    stored_blocks = {int(name.removeprefix(prefix).split(".")[0]) for name in reader.names if name.startswith(prefix)}
    if extra := stored_blocks - set(range(len(skeleton.blocks))):
        raise ModelError(
            f"{skeleton.folder}: the checkpoint has {skeleton.block_name(min(extra))}, but its config.json defines "
            f"only {len(skeleton.blocks)} blocks"
        )
    family = skeleton.family
    known = {linear.path for linear in family.linears}
    required = {linear.path for linear in family.linears if not linear.optional}
    for index, block in enumerate(skeleton.blocks):
        linears = {
            path
            for path, module in block.named_modules()
            if is_linear(module) and f"{path}.weight" not in family.inside
        }
        if differing := sorted((linears - known) | (required - linears)):
            path = differing[0]
            problem = "does not know this linear" if path in linears else "expects this linear, but the block lacks it"
            raise ModelError(f"{skeleton.block_name(index)}.{path}: the {family.model_type} family {problem}")


def check_tuning(plan: Plan) -> None:
    """Check that the matrices of a block have the same tune step.

    Raises:
        RecipeError: Names two matrices that differ.
    """
    for block in range(plan.blocks):
        steps = {repr(matrix.tune.to_dict()): matrix for matrix in plan.of_block(block) if matrix.tune}
        if len(steps) > 1:
            first, second = list(steps.values())[:2]
            raise RecipeError(
                f"{second.name}: its tune step differs from that of {first.name}, and a block is tuned as a whole; "
                "give all matrices of a block the same steps.tune"
            )


def check_folding(plan: Plan, skeleton: Skeleton, reader: CheckpointReader) -> None:
    """Check that permutations can be folded, if they are to be.

    Raises:
        ModelError: The checkpoint has a tensor that the family does not know.
    """
    if plan.folds:
        check_names(skeleton.family, reader.names)


def shape_of(skeleton: Skeleton, reader: CheckpointReader, name: str, transposed: bool) -> tuple[int, int]:
    """Return rows (out) and columns (in) of a matrix.

    Raises:
        ModelError: The checkpoint has another shape than the config defines.
    """
    expected = tuple(skeleton.root.get_submodule(name).weight.shape)  # type: ignore[arg-type]
    stored = reader.shape(f"{name}.weight")
    if stored != expected:
        raise ModelError(f"{name}.weight: the config defines {list(expected)}, the checkpoint has {list(stored)}")
    return (stored[1], stored[0]) if transposed else (stored[0], stored[1])
