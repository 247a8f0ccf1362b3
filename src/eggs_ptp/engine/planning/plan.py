"""The plan of a run: what will happen to every matrix, and what it will cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.method.step import BoundStep
from eggs_ptp.models.family import PermutationScope
from eggs_ptp.recipe.targets import Resolved

BATCH_TOKENS = 2048  # tokens that run through a block at once
_LEAST_PERMUTATION_TOKENS = 2048
PERMUTATION_TOKENS = 8192  # in evenly spaced windows, at least: plenty for the norms that the scores are made of


@dataclass(frozen=True)
class MatrixPlan:
    """One prunable matrix and what happens to it.

    Args:
        name: Of its module in the checkpoint.
        block: Index of its decoder block.
        path: Module path inside the block.
        role: "attention" or "mlp".
        rows: Outputs.
        columns: Inputs.
        input_activation: Name of the activation it reads; linears that share one share statistics.
        space: Channel space of that activation.
        scope: How far a permutation of that space reaches: the model, a head, a block; "fixed" if it is not permuted.
        transposed: Whether it is stored as (in, out).
        routed: Whether it sees only the tokens that a router sends it.
        resolved: Its method and pattern; None if it is skipped.
        skipped: Why nothing happens to it.
    """

    name: str
    block: int
    path: str
    role: str
    rows: int
    columns: int
    input_activation: str
    space: str
    scope: PermutationScope
    transposed: bool
    routed: bool
    resolved: Resolved | None
    skipped: str | None

    @property
    def compares(self) -> bool:
        """Whether its method needs the dense model's activation; a router may send other tokens than in that model."""
        return self.resolved is not None and self.resolved.method.compares and not self.routed

    @property
    def tune(self) -> BoundStep | None:
        """The step that tunes its block, if its method has one."""
        return self.resolved.method.tune if self.resolved else None

    @property
    def permutes(self) -> bool:
        """Whether its method searches a permutation of its inputs that an N:M pattern can profit from."""
        resolved = self.resolved
        return resolved is not None and isinstance(resolved.pattern, Pattern) and "permute" in resolved.method.steps

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        resolved = self.resolved
        return {
            "name": self.name,
            "shape": [self.rows, self.columns],
            "input_activation": self.input_activation,
            "pattern": str(resolved.pattern) if resolved else None,
            "method": resolved.method.method.name if resolved else None,
            "statistics": sorted(resolved.method.statistics) if resolved else [],
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Budget:
    """How a run fits into memory.

    Args:
        batch_tokens: Tokens that run through a block at once.
        allowance: Bytes of activations kept in memory, the others in files; None for all in memory.
    """

    batch_tokens: int = BATCH_TOKENS
    allowance: int | None = None


@dataclass(frozen=True)
class Plan:
    """The whole run.

    Args:
        model: Folder of the model.
        model_type: As its config names it.
        discovered: Whether no family knows the model type, so that blocks and linears were found in the module tree.
        device: Where it is computed.
        dtype: Type in which blocks are computed.
        blocks: Number of decoder blocks.
        matrices: All prunable matrices, in the order in which they run.
        nsamples: Calibration windows.
        seqlen: Tokens in each.
        calibration: The calibration text.
        permutation: What becomes of channel permutations: "fold", "gather" or "mask"; None if no matrix permutes.
        memory_bytes: Estimate of the memory that the fastest run adds to the process.
        seconds: Estimate of its time on an idle machine.
        processor_seconds: Estimate of the time of all processors together.
        budget: How it fits into the memory it may take.
        begin: Tokens that every calibration window begins with; empty where windows begin in mid-text.
    """

    model: str
    model_type: str
    discovered: bool
    device: str
    dtype: str
    blocks: int
    matrices: tuple[MatrixPlan, ...]
    nsamples: int
    seqlen: int
    calibration: str
    permutation: str | None
    memory_bytes: int
    seconds: float
    processor_seconds: float = 0.0
    budget: Budget = field(default_factory=Budget)
    begin: tuple[int, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        """Whether any method needs activations."""
        return self.needs_dense or any(matrix.resolved.method.statistics for matrix in self.matrices if matrix.resolved)

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model has to run beside the pruned one."""
        return any(matrix.compares or matrix.tune for matrix in self.matrices)

    @property
    def compares(self) -> bool:
        """Whether any method compares activations with the dense model's."""
        return any(matrix.compares for matrix in self.matrices)

    def tune(self, block: int) -> BoundStep | None:
        """Return the step that tunes a block, if its matrices have one."""
        return next((matrix.tune for matrix in self.of_block(block) if matrix.tune), None)

    @property
    def folds(self) -> bool:
        """Whether permutations are folded into the weights."""
        return self.permutation == "fold"

    @property
    def permutes_model_first(self) -> bool:
        """Whether a permutation has to be found from the dense model's activations before the first block is pruned."""
        return any(
            matrix.resolved.method.steps["score"].statistics for matrix in self.folding("model") if matrix.resolved
        )

    def folding(self, scope: PermutationScope) -> list[MatrixPlan]:
        """Return the matrices that permute a space of this scope, if permutations are folded."""
        return [matrix for matrix in self.matrices if self.folds and matrix.permutes and matrix.scope == scope]

    @property
    def unpermuted(self) -> list[MatrixPlan]:
        """Matrices that would permute their inputs, but whose heads cannot be divided into groups of their pattern."""
        return self.folding("fixed")

    def of_block(self, block: int) -> list[MatrixPlan]:
        """Return the matrices of one block, in the order in which they run."""
        return [matrix for matrix in self.matrices if matrix.block == block]

    def with_batch_tokens(self, tokens: int) -> "Plan":
        """Return the same plan with batches of `tokens` tokens."""
        return replace(self, budget=replace(self.budget, batch_tokens=tokens))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "model": self.model,
            "model_type": self.model_type,
            "discovered": self.discovered,
            "device": self.device,
            "dtype": self.dtype,
            "blocks": self.blocks,
            "calibration": self.calibration,
            "permutation": self.permutation,
            "unpermuted": [matrix.name for matrix in self.unpermuted],
            "nsamples": self.nsamples if self.needs_calibration else 0,
            "seqlen": self.seqlen if self.needs_calibration else 0,
            "begin_tokens": list(self.begin),
            "memory_bytes": self.memory_bytes,
            "batch_tokens": self.budget.batch_tokens,
            "activations_in_memory": self.budget.allowance,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "matrices": [matrix.to_dict() for matrix in self.matrices],
        }


def permutation_stride(windows: int, seqlen: int) -> int:
    """Every how many windows one is used to find the model's permutation: a quarter of few, 8192 tokens of many."""
    tokens = windows * seqlen
    return max(1, tokens // min(PERMUTATION_TOKENS, max(tokens // 4, _LEAST_PERMUTATION_TOKENS)))


def matrices_by_activation(matrices: list[MatrixPlan]) -> Mapping[str, list[MatrixPlan]]:
    """Group the matrices that will be pruned by their input activation, in the order in which they run."""
    groups: dict[str, list[MatrixPlan]] = {}
    for matrix in matrices:
        if matrix.resolved:
            groups.setdefault(matrix.input_activation, []).append(matrix)
    return groups


def refresh_rounds(groups: Mapping[str, list[MatrixPlan]]) -> list[dict[str, list[MatrixPlan]]]:
    """Split the groups into rounds, before each of which statistics are collected again.

    A round is one group, but the experts of a layer, whose inputs do not depend on each other, are one round.
    """
    rounds: dict[str, dict[str, list[MatrixPlan]]] = {}
    for activation, matrices in groups.items():
        rounds.setdefault(activation.partition("[")[0], {})[activation] = matrices
    return list(rounds.values())
