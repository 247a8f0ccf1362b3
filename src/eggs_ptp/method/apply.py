"""Applies methods to the matrices that share an input activation."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from eggs_ptp.core.finite import is_finite
from eggs_ptp.core.mask import apply_mask, count_violations, density, satisfies
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.core.permutation import check_permutation, invert, take_columns
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.core.seed import generator_for
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.core.step_result import Diagnostic, StepResult
from eggs_ptp.core.unscored import rank_unscored
from eggs_ptp.errors import MethodError, NumericsError, PatternError
from eggs_ptp.method.method import BoundMethod


@dataclass(frozen=True)
class Job:
    """A matrix to prune.

    A weight on the meta device has no data: another process prunes the matrix, and shares the score that a common
    permutation is found from.

    Attributes:
        name: Name of the matrix.
        weight: Its weight (out, in), float32.
        pattern: The pattern to satisfy.
        method: How it is pruned.
        role: `"attention"` or `"mlp"`.
        mask: A mask from a file, in place of the method's own choice.
        row_tiles: How work on its rows is divided among processes.
    """

    name: str
    weight: Tensor
    pattern: AnyPattern
    method: BoundMethod
    role: str = "attention"
    mask: Tensor | None = None
    row_tiles: RowTiles = LOCAL_ROW_TILES


# Finds a permutation from a score, given the permute step as a function of scores.
Search = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
# Sends the score of a matrix, by name, from the process that has it to all; called on all processes in the same order.
ShareScore = Callable[[str, Tensor | None], Tensor]


def _local_score(matrix: str, score: Tensor | None) -> Tensor:
    """Return a score that this process has computed itself."""
    assert score is not None, matrix  # noqa: S101 - a single process prunes all matrices
    return score


@dataclass(frozen=True)
class SharedPermutation:
    """One channel permutation for all N:M matrices with the same input activation, whether they permute or not.

    Without a permutation and a search, the matrices are not permuted.

    Attributes:
        given: The permutation (in,), where it is known already.
        search: Finds it from the stacked scores of the matrices that have a permute step. It gets the permute step, for
            the pattern, that applies to most of their weights.
    """

    given: Tensor | None = None
    search: Search | None = None


@dataclass
class Pruned:
    """The result for one matrix, with columns in their original order.

    Attributes:
        weight: The pruned weight (out, in), float32.
        mask: Which weights are kept (out, in).
        permutation: The channel permutation (in,) under which the mask satisfies the pattern; None: the original order.
        diagnostics: What the steps have reported, for the record.
        seconds: Time spent in each slot.
    """

    weight: Tensor
    mask: Tensor
    permutation: Tensor | None
    diagnostics: dict[str, Diagnostic] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def prune_consumers(
    jobs: Sequence[Job],
    statistic: Callable[[str, str], Tensor],
    *,
    seed: int,
    share_permutation: bool = True,
    shared_permutation: SharedPermutation | None = None,
    share_score: ShareScore = _local_score,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
) -> dict[str, Pruned]:
    """Prune the matrices that share an input activation.

    Args:
        jobs: The matrices.
        statistic: Returns an activation statistic; its arguments are the names of the matrix and of the statistic.
        seed: Seed of the run.
        share_permutation: Whether matrices with the same permute step and pattern share a permutation, found from their
            scores stacked along the rows. Otherwise each has its own.
        shared_permutation: One permutation for all N:M matrices, in place of those found here.
        share_score: How processes exchange scores, where several processes prune the matrices.
        row_tiles: How work on rows is divided among the processes that prune any of the matrices.

    Returns:
        The results by name, for the matrices that this process prunes.

    Raises:
        NumericsError: A weight or score is not finite; names the matrix.
        MethodError: A step has returned something that does not fit the matrix or the pattern.
        PatternError: A given mask keeps more than the pattern allows.
    """
    states = [_MatrixState(job, statistic, seed) for job in jobs]
    local_states = [state for state in states if not state.job.weight.is_meta]
    for state in local_states:
        state.correct()
        state.score()
    if shared_permutation is not None:
        consumers = [state for state in states if isinstance(state.job.pattern, Pattern)]
        _apply_shared_permutation(consumers, shared_permutation, share_score, row_tiles)
    else:
        for members in _permutation_groups(states, share_permutation):
            _permute(members, members, share_score, row_tiles)
    return {state.job.name: state.finish() for state in local_states}


def score_of(job: Job, statistic: Callable[[str, str], Tensor], *, seed: int) -> Tensor:
    """Return the score (out, in) of a matrix, as its method's score step computes it.

    Args:
        job: The matrix.
        statistic: As in `prune_consumers`.
        seed: Seed of the run.

    Raises:
        NumericsError: A weight or score is not finite; names the matrix.
    """
    state = _MatrixState(job, statistic, seed)
    state.score()
    return cast(Tensor, state.read("score"))


def common_permute(
    searches: Iterable[tuple[BoundMethod, AnyPattern, int]], row_tiles: RowTiles
) -> Callable[[Tensor], Tensor]:
    """Return the permute step that applies to most weights, as a function of scores (rows, channels).

    Args:
        searches: Method, pattern and number of weights of each matrix. Of steps with as many weights, the first counts.
        row_tiles: How work on rows is divided among processes.
    """
    weights: dict[Any, int] = {}
    steps: dict[Any, tuple[Any, AnyPattern]] = {}
    for method, pattern, size in searches:
        key = _permute_key(method, pattern)
        weights[key] = weights.get(key, 0) + size
        steps.setdefault(key, (method.steps["permute"], pattern))
    step, pattern = steps[max(weights, key=weights.__getitem__)]
    return lambda score: cast(Tensor, step({"score": score, "pattern": pattern, "row_tiles": row_tiles}.__getitem__))


class _MatrixState:
    """A matrix on its way through the slots; after `permute`, data has its columns permuted."""

    def __init__(self, job: Job, statistic: Callable[[str, str], Tensor], seed: int) -> None:
        if not job.weight.is_meta and not is_finite(job.weight):
            raise NumericsError(f"{job.name}: the weight holds NaN or infinity; check the checkpoint")
        self.job = job
        self.steps = job.method.steps
        self.permutation: Tensor | None = None
        self.diagnostics: dict[str, Diagnostic] = {}
        self.seconds: dict[str, float] = {}
        self._statistic = statistic
        self._seed = seed
        self._data = {name: getattr(job, name) for name in ("weight", "pattern", "role", "row_tiles")}
        if job.mask is not None:
            _check_given_mask(job, job.mask)
            self._data["mask"] = job.mask

    def correct(self) -> None:
        """Replace the weight by the one that the other steps approximate."""
        if "correct" in self.steps:
            weight = self.run("correct")
            if not is_finite(weight):
                raise NumericsError(f"{self.job.name}: its corrected weight holds NaN or infinity")
            self._data["weight"] = weight

    def score(self) -> None:
        """Run the score step."""
        if "score" in self.steps:
            name = self.steps["score"].name
            score = self.run("score")
            if score.shape != self.job.weight.shape:
                raise MethodError(
                    f"{self.job.name}: score step {name!r} returned shape {list(score.shape)}, expected the weight's, "
                    f"{list(self.job.weight.shape)}"
                )
            if not is_finite(score):
                raise NumericsError(f"{self.job.name}: its {name} scores hold NaN or infinity")
            self._data["score"] = score if self._is_original_count() else rank_unscored(score, self._data["weight"])

    def share_score(self, share: ShareScore) -> None:
        """Make the score known to all processes."""
        self._data["score"] = share(self.job.name, self._data.get("score"))

    def run(self, slot: str) -> Any:
        """Run a slot's step; errors name the matrix, diagnostics and time are kept."""
        try:
            with _timed(self.seconds, slot):
                result = self.steps[slot](self.read)
        except NumericsError as error:
            prefix = "" if str(error).startswith(self.job.name) else f"{self.job.name}: "
            raise NumericsError(f"{prefix}{error}") from error
        if isinstance(result, StepResult):
            self.diagnostics.update(result.diagnostics)
            return result.value
        return result

    def read(self, name: str) -> Any:
        """Return a piece of data that a step takes."""
        if name in self._data:
            return self._data[name]
        if name == "generator":
            return generator_for(self._seed, self.job.name, self.job.weight.device)
        if name in STATISTICS:
            value = self._statistic(self.job.name, name)
            if self.permutation is None or STATISTICS[name].side != "input":
                return value
            return _permuted(value, self.permutation)
        if name == "mask":
            return None  # without a select step, the update step chooses the mask itself
        raise MethodError(f"{self.job.name}: a step takes {name}, which no earlier step returns")

    def permute(self, permutation: Tensor) -> None:
        """Permute the columns of all data."""
        check_permutation(permutation, self.job.weight.shape[1], self.job.name)
        self.permutation = permutation
        for name in ("score", "weight"):
            if name in self._data:  # matrices without a score are permuted too, where a permutation is shared
                self._data[name] = take_columns(self._data[name], permutation)

    def _is_original_count(self) -> bool:
        """Return whether the select step prunes all weights that tie with the threshold, as the public code does."""
        return "select" in self.steps and self.steps["select"].options.get("count") == "original"

    def finish(self) -> Pruned:
        """Run the steps after `permute`, and put the columns back into their original order."""
        for slot in ("select", "refine"):
            if slot in self.steps:
                self._data["mask"] = self.job.row_tiles.broadcast(self.run(slot))
        weight = self._data["weight"]
        mask = self.read("mask")
        if "update" in self.steps:
            weight, mask = self.run("update")
        pattern = self.job.pattern
        if isinstance(pattern, Pattern) and self.job.mask is None and not satisfies(mask, pattern):
            raise MethodError(
                f"{self.job.name}: the mask of method {self.job.method.method.name!r} does not satisfy {pattern}"
            )
        if self.permutation is not None:
            inverse = invert(self.permutation)
            mask = mask.gather(1, inverse.expand_as(mask))
            weight = take_columns(weight, inverse) if self.job.method.updates else self.job.weight
        weight = apply_mask(weight.float(), mask)
        if not is_finite(weight):
            raise NumericsError(f"{self.job.name}: the updated weight holds NaN or infinity")
        return Pruned(weight, mask, self.permutation, self.diagnostics, self.seconds)


def _check_given_mask(job: Job, mask: Tensor) -> None:
    """Refuse a given mask that keeps more than the pattern allows; it may keep fewer, where weights are zero."""
    if isinstance(job.pattern, Unstructured):
        kept = density(mask)
        allowed = job.pattern.density + 1 / min(mask.shape)  # counts are rounded by row
        if kept > allowed:
            raise PatternError(
                f"{job.name}: the given mask keeps {kept:.4f} of the weights, more than {job.pattern} allows"
            )
    elif violations := count_violations(mask, job.pattern):
        raise PatternError(
            f"{job.name}: {violations} groups of the given mask keep more than {job.pattern}; pass the pattern that it "
            "was made for"
        )


def _permutation_groups(states: Sequence[_MatrixState], share_permutation: bool) -> Iterator[list[_MatrixState]]:
    """Yield the matrices that share a permutation."""
    groups: dict[Any, list[_MatrixState]] = {}
    for index, state in enumerate(states):
        if "permute" in state.steps:
            key = _permute_key(state.job.method, state.job.pattern) if share_permutation else index
            groups.setdefault(key, []).append(state)
    yield from groups.values()


def _permute_key(method: BoundMethod, pattern: AnyPattern) -> tuple[Any, ...]:
    """Return what is equal for matrices that can share a permutation: permute step, its options, and pattern."""
    step = method.steps["permute"]
    return step.name, repr(sorted(step.options.items())), pattern


def _apply_shared_permutation(
    consumers: Sequence[_MatrixState],
    shared_permutation: SharedPermutation,
    share_score: ShareScore,
    row_tiles: RowTiles,
) -> None:
    """Permute all consumers by one permutation."""
    members = [state for state in consumers if "permute" in state.steps]
    if shared_permutation.given is not None:
        for state in consumers:
            state.permute(shared_permutation.given)
    elif members and shared_permutation.search is not None:
        _permute(members, consumers, share_score, row_tiles, shared_permutation.search)


def _permute(
    members: Sequence[_MatrixState],
    consumers: Sequence[_MatrixState],
    share_score: ShareScore,
    row_tiles: RowTiles,
    search: Search | None = None,
) -> None:
    """Permute the consumers by the permutation that is found from the scores of `members`."""
    first = members[0]
    if len(consumers) > 1:
        for state in members:
            state.share_score(share_score)
    elif first.job.weight.is_meta:
        return  # another process prunes the only consumer
    else:
        row_tiles = first.job.row_tiles
    stacked = torch.cat([state.read("score") for state in members]) if len(members) > 1 else first.read("score")
    searches = ((state.job.method, state.job.pattern, state.job.weight.numel()) for state in members)
    permute = common_permute(searches, row_tiles)
    with _timed(first.seconds, "permute"):
        permutation = row_tiles.broadcast(search(stacked, permute) if search else permute(stacked))
    for state in consumers:
        state.permute(permutation)


def _permuted(value: Tensor, permutation: Tensor) -> Tensor:
    """Permute a statistic along all of its dimensions; a single number has none."""
    for dimension in range(value.dim()):
        value = value.index_select(dimension, permutation)
    return value


@contextmanager
def _timed(seconds: dict[str, float], slot: str) -> Iterator[None]:
    """Add the time that the block takes to `seconds`."""
    start = time.perf_counter()
    yield
    seconds[slot] = seconds.get(slot, 0.0) + time.perf_counter() - start
