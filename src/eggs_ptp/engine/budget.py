"""Budget: what a run needs at once, and how it fits into so much memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eggs_ptp.calibration.windows import drawing_bytes
from eggs_ptp.engine.usage import anonymous_memory
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.models.load import Skeleton

if TYPE_CHECKING:
    from eggs_ptp.engine.plan import MatrixPlan, Plan

BATCH_TOKENS = 2048  # tokens that run through a block at once
ORDER_ROWS = 8192  # of all readers together, from which an order that spans the model is found
_LEAST_TOKENS = 256  # smaller batches save nothing beside a block
_TRAINED = 4096  # tokens of a tune step's forward and backward pass at most, or a window
_LOGITS = 512  # tokens whose logits a tune step has at once
_LOGITS_HELD = 5.5  # times: of both models, and what their divergence is made of
_KEPT = 2.5  # times what a token takes on its way through a block: for the way back
_ORDERED = 7  # times the scores: parts, stacked, turned, in float64, and those of the groups in hand
_SCRATCH = 48 << 20  # bytes of what steps take piece by piece, whatever the size of a matrix, and of what they import
_SUMS = 2  # that stand at once while they are taken: the whole ones so far, and those of a leaf
_MIB = 1 << 20


@dataclass(frozen=True)
class Needs:
    """Bytes beside the libraries: `work` at most at any time, and the `activations` of all windows.

    Of the activations, any part may be in files. `drawing` is what the windows take before there is any of both.
    """

    work: int
    activations: int
    drawing: int = 0

    @property
    def total(self) -> int:
        """Where nothing is in a file."""
        return max(self.work + self.activations, self.drawing)


@dataclass(frozen=True)
class Budget:
    """Tokens of a batch, and how many bytes of activations are in memory; None: all."""

    batch_tokens: int = BATCH_TOKENS
    allowance: int | None = None


def budget_of(plan: "Plan", skeleton: Skeleton, memory: int | None) -> Budget:
    """How the run fits into `memory` bytes for the process, libraries and all; None: as it is fastest.

    What does not fit of the activations goes to files; where a batch of activations does not, batches are smaller.

    Raises:
        RecipeError: not even the smallest batch fits; says how much would.
    """
    if memory is None:
        return Budget()
    here = anonymous_memory()
    tokens = BATCH_TOKENS
    while (needs := needs_of(plan, skeleton, tokens)).work > memory - here and tokens > max(_LEAST_TOKENS, plan.seqlen):
        tokens //= 2
    if (most := max(needs.work, needs.drawing)) > memory - here:
        least = -(-(most + here) // _MIB)
        raise RecipeError(
            f"--memory: expected at least {least} MiB for {plan.model} with this recipe ({here // _MIB} MiB of it "
            f"libraries), came {memory // _MIB} MiB; raise it, or take a method without Gram "
            "matrices, shorter windows, or a shorter text"
        )
    return Budget(tokens, memory - here - needs.work)


def needs_of(plan: "Plan", skeleton: Skeleton, batch_tokens: int = BATCH_TOKENS) -> Needs:
    """What the run needs, with batches of so many tokens."""
    size = {"float32": 4}.get(plan.dtype, 2)
    token = batch = 0
    if plan.needs_calibration:
        widest = max(max(parameter.shape, default=1) for parameter in skeleton.blocks[0].parameters())
        token = size * (4 * widest + 8 * skeleton.hidden_size) + _scores(skeleton, plan.seqlen)
        batch = token * max(batch_tokens, plan.seqlen)
    blocks = [
        _of_block(plan.of_block(index), block, size, batch, plan.compares, _tuned(plan, index, skeleton, size, token))
        for index, block in enumerate(skeleton.blocks)
    ]
    outside = max((p.numel() * p.element_size() for p in skeleton.model.parameters()), default=0)  # embeddings
    work = _SCRATCH + max(*blocks, _order(plan, skeleton, size, batch), outside)
    if not plan.needs_calibration:
        return Needs(work, 0)
    # The dense model's hidden states, what it has at each activation that is compared, and, where statistics are
    # taken anew, what reaches the linears that attention and MLP are once they stand.
    compared = {matrix.reads for matrix in plan.matrices if matrix.compares}
    streams = 1 + plan.needs_dense + len(compared) + 2 * plan.compares
    return Needs(
        work, streams * plan.nsamples * plan.seqlen * skeleton.hidden_size * size, drawing_bytes(plan.calibration)
    )


def _scores(skeleton: Skeleton, seqlen: int) -> int:
    """Bytes a token of every query with every key, and its softmax in float32, where attention makes them."""
    config: Any = skeleton.model.config
    eager = getattr(config, "_attn_implementation", None) == "eager"
    return 3 * 4 * int(getattr(config, "num_attention_heads", 1)) * seqlen if eager else 0


def _order(plan: "Plan", skeleton: Skeleton, size: int, batch: int) -> int:
    """The search for an order that spans the model: scores, kept while blocks pass, and what is made of them."""
    readers = plan.folding("model")
    if not readers:
        return 0
    scores = 4 * min(ORDER_ROWS, sum(matrix.rows for matrix in readers)) * skeleton.hidden_size
    block = size * max(sum(parameter.numel() for parameter in block.parameters()) for block in skeleton.blocks)
    largest = 4 * max(matrix.rows * matrix.columns for matrix in readers)
    return int(max(scores + block + batch + 4 * largest, _ORDERED * scores + 3 * largest))


def _tuned(plan: "Plan", index: int, skeleton: Skeleton, size: int, token: int) -> int:
    """A tune step on a block: its weights on their way down, a pass, and behind the last block head and logits.

    `token` is what a token takes on its way through the block alone.
    """
    step = plan.tune(index)
    if step is None:
        return 0
    windows = min(plan.nsamples, max(1, _TRAINED // plan.seqlen))  # of a pass forwards
    trained = min(windows, int(step.options.get("batch", windows)))
    sizes = [matrix.rows * matrix.columns for matrix in plan.of_block(index) if matrix.tune]
    head = 0.0
    if index + 1 == plan.blocks and "logits" in step.data:
        logits = _LOGITS_HELD * 4 * min(_LOGITS, windows * plan.seqlen)
        head = skeleton.vocab_size * (size * skeleton.hidden_size + logits)
    return int(24 * sum(sizes) + 12 * max(sizes) + token * plan.seqlen * max(windows, _KEPT * trained) + head)


def _of_block(matrices: "list[MatrixPlan]", block: Any, size: int, batch: int, anew: bool, tuned: int) -> int:
    """One block and what it becomes, and either a batch with sums on their way, or work on a group of matrices."""
    weights = sum(parameter.numel() for parameter in block.parameters())
    stored = sum(parameter.numel() * parameter.element_size() for parameter in block.parameters())
    groups: dict[str, list[MatrixPlan]] = {}
    for matrix in matrices:
        if matrix.resolved:
            groups.setdefault(matrix.reads, []).append(matrix)
    sums = [_sums(readers) for readers in groups.values()]
    kept = max(sums, default=0) if anew else sum(sums)  # taken group by group, or for the whole block at once
    work = [kept + _work(readers) for readers in groups.values()]
    return int(weights * size + stored + max(*work, _SUMS * kept + batch, tuned, stored))


def _sums(readers: "list[MatrixPlan]") -> int:
    """Bytes of an activation's sums."""
    columns = readers[0].columns
    wanted = {name for matrix in readers if matrix.resolved for name in matrix.resolved.method.statistics}
    cross = sum(matrix.rows for matrix in readers) if "cross" in wanted else 0
    return 4 * columns * (columns * ("gram" in wanted) + cross) + 8 * columns * len(wanted)


def _work(readers: "list[MatrixPlan]") -> int:
    """Bytes that pruning the readers of an activation takes beside its sums."""
    columns = readers[0].columns
    each = 4 * sum(matrix.rows * matrix.columns for matrix in readers)
    largest = 4 * max(matrix.rows for matrix in readers) * columns
    copies = max((_grams(matrix.resolved.method) for matrix in readers if matrix.resolved), default=0)
    # Weight, corrected weight and score of each, and all steps' copies of the one in hand.
    return 3 * each + 8 * largest + 4 * copies * columns**2


def _grams(method: BoundMethod) -> int:
    """Copies of a Gram matrix that its steps hold at once."""
    if "gram" not in method.statistics:
        return 0
    names = " ".join(step.name for step in method.steps.values())
    return 7 if "alps" in names else 6 if "drift" in names else 3  # eigenvectors; a factor in float64 and a copy of it
