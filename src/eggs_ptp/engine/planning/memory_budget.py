"""How much memory a run needs, and how it fits into a given budget."""

from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import nn

from eggs_ptp.calibration.windows import tokenisation_bytes
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.planning.plan import BATCH_TOKENS, Budget, MatrixPlan, Plan, matrices_by_activation
from eggs_ptp.engine.resources import anonymous_memory
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.models.load import Skeleton

PERMUTATION_ROWS = 8192  # rows of all consumers together from which the model's permutation is found
_LEAST_BATCH_TOKENS = 256  # smaller batches save nothing beside a block
_TUNING_TOKENS = 4096  # tokens of a tune step's forward and backward pass at most, or one window
_LOGITS_TOKENS = 512  # tokens whose logits a tune step holds at once
_LOGITS_COPIES = 5.5  # copies of the logits: both models', and the terms of their divergence
_BACKWARD_COPIES = 2.5  # what a token needs for the backward pass, over what it needs in a forward pass
_PERMUTATION_COPIES = 7  # copies of the scores: parts, stacked, transposed, in float64, and those of the current groups
_SCRATCH = 48 << 20  # bytes of what steps process in pieces, whatever the size of a matrix, and of their imports
_SUM_COPIES = 2  # held while statistics are collected: the sums so far, and those of a reduction chunk
_MIB = 1 << 20


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a run needs beside the libraries.

    Args:
        work: The most at any time, without activations.
        activations: The activations of all windows, any part of which may be in files.
        drawing: What drawing the windows takes, before there is any of the other two.
    """

    work: int
    activations: int
    drawing: int = 0

    @property
    def total(self) -> int:
        """The most at any time if nothing is in a file."""
        return max(self.work + self.activations, self.drawing)


def fit_budget(plan: Plan, skeleton: Skeleton, memory: int | None) -> Budget:
    """Fit a run into `memory` bytes for the process, libraries included; None for the fastest run.

    Raises:
        RecipeError: It does not fit; says how much would do.
    """
    if memory is None:
        return Budget()
    used = anonymous_memory()
    tokens = BATCH_TOKENS
    least_tokens = max(_LEAST_BATCH_TOKENS, plan.seqlen)
    while (needs := memory_needs(plan, skeleton, tokens)).work > memory - used and tokens > least_tokens:
        tokens //= 2
    if (most := max(needs.work, needs.drawing)) > memory - used:
        least = -(-(most + used) // _MIB)
        raise RecipeError(
            f"--memory: expected at least {least} MiB for {plan.model} with this recipe ({used // _MIB} MiB of it "
            f"libraries), got {memory // _MIB} MiB; raise it, or take a method without Gram matrices, shorter windows, "
            "or a shorter text"
        )
    return Budget(tokens, memory - used - needs.work)


def memory_needs(plan: Plan, skeleton: Skeleton, batch_tokens: int = BATCH_TOKENS) -> MemoryNeeds:
    """Estimate what a run needs with batches of `batch_tokens` tokens."""
    itemsize = {"float32": 4}.get(plan.dtype, 2)
    token_bytes = 0
    batch_bytes = 0
    if plan.needs_calibration:
        widest = max(max(parameter.shape, default=1) for parameter in skeleton.blocks[0].parameters())
        token_bytes = itemsize * (4 * widest + 8 * skeleton.hidden_size) + _attention_bytes(skeleton, plan.seqlen)
        batch_bytes = token_bytes * max(batch_tokens, plan.seqlen)
    blocks = [
        _block_bytes(
            plan.of_block(index),
            block,
            itemsize,
            batch_bytes,
            refreshes=plan.compares,
            tuning_bytes=_tuning_bytes(plan, index, skeleton, itemsize, token_bytes),
        )
        for index, block in enumerate(skeleton.blocks)
    ]
    embeddings = max((p.numel() * p.element_size() for p in skeleton.model.parameters()), default=0)
    work = _SCRATCH + max(*blocks, _permutation_bytes(plan, skeleton, itemsize, batch_bytes), embeddings)
    if not plan.needs_calibration:
        return MemoryNeeds(work, 0)
    # The pruned model's hidden states, the dense model's, its activations where they are compared, and, where
    # statistics are collected again, the cached inputs of the last linears of attention and MLP.
    compared = {matrix.input_activation for matrix in plan.matrices if matrix.compares}
    streams = 1 + plan.needs_dense + len(compared) + 2 * plan.compares
    activations = streams * plan.nsamples * plan.seqlen * skeleton.hidden_size * itemsize
    return MemoryNeeds(work, activations, tokenisation_bytes(plan.calibration))


def _attention_bytes(skeleton: Skeleton, seqlen: int) -> int:
    """Bytes per token of the attention scores and their softmax in float32, where attention materialises them."""
    config: Any = skeleton.model.config
    is_eager = getattr(config, "_attn_implementation", None) == "eager"
    return 3 * 4 * int(getattr(config, "num_attention_heads", 1)) * seqlen if is_eager else 0


def _permutation_bytes(plan: Plan, skeleton: Skeleton, itemsize: int, batch_bytes: int) -> int:
    """The search of the model's permutation: scores kept while blocks pass, and what the search makes of them."""
    consumers = plan.folding("model")
    if not consumers:
        return 0
    scores = 4 * min(PERMUTATION_ROWS, sum(matrix.rows for matrix in consumers)) * skeleton.hidden_size
    block = itemsize * max(sum(parameter.numel() for parameter in block.parameters()) for block in skeleton.blocks)
    largest = 4 * max(matrix.rows * matrix.columns for matrix in consumers)
    return int(max(scores + block + batch_bytes + 4 * largest, _PERMUTATION_COPIES * scores + 3 * largest))


def _tuning_bytes(plan: Plan, index: int, skeleton: Skeleton, itemsize: int, token_bytes: int) -> int:
    """A tune step on a block: moments of its weights, a backward pass, and after the last block head and logits."""
    step = plan.tune(index)
    if step is None:
        return 0
    forward_windows = min(plan.nsamples, max(1, _TUNING_TOKENS // plan.seqlen))
    backward_windows = min(forward_windows, int(step.options.get("batch", forward_windows)))
    sizes = [matrix.rows * matrix.columns for matrix in plan.of_block(index) if matrix.tune]
    head = 0.0
    if index + 1 == plan.blocks and "logits" in step.data:
        logits = _LOGITS_COPIES * 4 * min(_LOGITS_TOKENS, forward_windows * plan.seqlen)
        head = skeleton.vocab_size * (itemsize * skeleton.hidden_size + logits)
    windows = max(forward_windows, _BACKWARD_COPIES * backward_windows)
    return int(24 * sum(sizes) + 12 * max(sizes) + token_bytes * plan.seqlen * windows + head)


def _block_bytes(
    matrices: list[MatrixPlan],
    block: nn.Module,
    itemsize: int,
    batch_bytes: int,
    *,
    refreshes: bool,
    tuning_bytes: int,
) -> int:
    """One block, its pruned tensors, and the largest of: a batch with its sums, or the work on a group of matrices."""
    weights = sum(parameter.numel() for parameter in block.parameters())
    stored = sum(parameter.numel() * parameter.element_size() for parameter in block.parameters())
    groups = matrices_by_activation(matrices)
    sums = [_sum_bytes(consumers) for consumers in groups.values()]
    held = max(sums, default=0) if refreshes else sum(sums)  # collected group by group, or for the block at once
    work = [held + _pruning_bytes(consumers) for consumers in groups.values()]
    return int(weights * itemsize + stored + max(*work, _SUM_COPIES * held + batch_bytes, tuning_bytes, stored))


def _sum_bytes(consumers: list[MatrixPlan]) -> int:
    """The sums of an activation."""
    columns = consumers[0].columns
    outputs = sum(matrix.rows for matrix in consumers)
    statistics = {name for matrix in consumers if matrix.resolved for name in matrix.resolved.method.statistics}
    matrices = sum(STATISTICS[name].matrix_elements(columns, outputs) for name in statistics)
    return 4 * matrices + 8 * columns * len(statistics)


def _pruning_bytes(consumers: list[MatrixPlan]) -> int:
    """What pruning the consumers of an activation takes beside its sums."""
    columns = consumers[0].columns
    weights = 4 * sum(matrix.rows * matrix.columns for matrix in consumers)
    largest = 4 * max(matrix.rows for matrix in consumers) * columns
    copies = max((_gram_copies(matrix.resolved.method) for matrix in consumers if matrix.resolved), default=0)
    # Weight, corrected weight and score of each matrix, and the copies that steps make of the current one.
    return 3 * weights + 8 * largest + 4 * copies * columns**2


def _gram_copies(method: BoundMethod) -> int:
    """Copies of a Gram matrix that a method's steps hold at once."""
    if "gram" not in method.statistics:
        return 0
    names = " ".join(step.name for step in method.steps.values())
    return 7 if "alps" in names else 6 if "drift" in names else 3  # eigenvectors; a factor in float64 and a copy of it


def parse_memory(size: int | str | None) -> int | None:
    """Return a size in bytes; None for None.

    Args:
        size: Bytes, or text such as "8GiB".

    Raises:
        RecipeError: It is not a size.
    """
    if size is None:
        return None
    try:
        count = int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        count = 0
    if isinstance(size, bool) or count <= 0:
        raise RecipeError(f"--memory: expected a size such as 8GiB or 800MB, got {size!r}")
    return count
