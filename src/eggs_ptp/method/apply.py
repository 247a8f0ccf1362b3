"""A method applied to the matrices that read one activation."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from eggs_ptp.core.finite import finite
from eggs_ptp.core.mask import density, satisfies, violations, zeroed
from eggs_ptp.core.noted import Fact, Noted
from eggs_ptp.core.order import check, invert, take_columns
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.core.seed import generator_for
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.errors import MethodError, NumericsError, PatternError
from eggs_ptp.method.method import BoundMethod


@dataclass(frozen=True)
class Job:
    """One matrix to prune: `weight` (out, in) in float32, and what to do to it.

    Without data, on the meta device, it is somebody else's work, who shares the scores that an order is found from.
    """

    name: str
    weight: Tensor
    pattern: AnyPattern
    method: BoundMethod
    role: str = "attention"  # or "mlp"
    mask: Tensor | None = None  # given from outside
    slabs: Slabs = ALONE


# Finds an order from a score, given the permute step as a function of scores.
Search = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
# Gives the score of a matrix by its name, to everybody, from the one who has it.
Everywhere = Callable[[str, Tensor | None], Tensor]


def _had(matrix: str, score: Tensor | None) -> Tensor:
    assert score is not None, matrix  # noqa: S101 - all work is done here
    return score


@dataclass(frozen=True)
class OneOrder:
    """One channel order for all N:M matrices that read an activation, whether they permute or not.

    It is `given`, or else `search` finds it from the stacked scores of those that permute, by the permute step and
    for the pattern that most of their weights ask for. With neither there is none.
    """

    given: Tensor | None = None
    search: Search | None = None


@dataclass
class Pruned:
    """The result for one matrix, in the original column order.

    `order` is the channel order in which the mask satisfies the pattern (None: the original one).
    """

    weight: Tensor
    mask: Tensor
    order: Tensor | None
    facts: dict[str, Fact] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def prune_readers(
    jobs: Sequence[Job],
    statistic: Callable[[str, str], Tensor],
    *,
    seed: int,
    share_order: bool = True,
    one_order: OneOrder | None = None,
    everywhere: Everywhere = _had,
    slabs: Slabs = ALONE,
) -> dict[str, Pruned]:
    """Prune the matrices that read one activation; those that are done here, where others do some of them.

    With `share_order`, those with the same permute step and pattern get one channel order, found from their
    scores stacked along the rows; otherwise each gets its own. With `one_order` all N:M matrices get that instead.
    `statistic(matrix, name)` gives an activation statistic of a matrix. `slabs` are of all who do some of them.

    Raises:
        NumericsError: weights or scores that are not finite; names the matrix.
        MethodError: a step returned something that does not fit the pattern.
        PatternError: a given mask keeps more than the pattern allows.
    """
    works = [_Work(job, statistic, seed) for job in jobs]
    here = [work for work in works if not work.job.weight.is_meta]
    for work in here:
        work.correct()
        work.score()
    if one_order is not None:
        _permute_all([work for work in works if isinstance(work.job.pattern, Pattern)], one_order, everywhere, slabs)
    else:
        for members in _sharing(works, share_order):
            _permute(members, members, everywhere, slabs)
    return {work.job.name: work.finish() for work in here}


def score_of(job: Job, statistic: Callable[[str, str], Tensor], *, seed: int) -> Tensor:
    """The score of a matrix by itself, (out, in), as its method's score step gives it.

    Raises:
        NumericsError: a weight or score that is not finite; names the matrix.
    """
    work = _Work(job, statistic, seed)
    work.score()
    return cast(Tensor, work.read("score"))


def common_permute(asked: Iterable[tuple[BoundMethod, AnyPattern, int]], slabs: Slabs) -> Callable[[Tensor], Tensor]:
    """The permute step, as a function of scores (rows, channels), that most weights ask for; the first of equals.

    `asked` has each matrix's method, pattern and number of weights.
    """
    weights: dict[Any, int] = {}
    found: dict[Any, tuple[Any, AnyPattern]] = {}
    for method, pattern, size in asked:
        key = _search(method, pattern)
        weights[key] = weights.get(key, 0) + size
        found.setdefault(key, (method.steps["permute"], pattern))
    step, pattern = found[max(weights, key=weights.__getitem__)]
    return lambda score: cast(Tensor, step({"score": score, "pattern": pattern, "slabs": slabs}.__getitem__))


class _Work:
    """One job on its way through the slots. After `permute`, data is read in the permuted column order."""

    def __init__(self, job: Job, statistic: Callable[[str, str], Tensor], seed: int) -> None:
        if not job.weight.is_meta and not finite(job.weight):
            raise NumericsError(f"{job.name}: the weight holds NaN or infinity; check the checkpoint")
        self.job = job
        self.steps = job.method.steps
        self.order: Tensor | None = None
        self.facts: dict[str, Fact] = {}
        self.seconds: dict[str, float] = {}
        self._statistic = statistic
        self._seed = seed
        self._data = {name: getattr(job, name) for name in ("weight", "pattern", "role", "slabs")}
        if job.mask is not None:
            _check_given(job)
            self._data["mask"] = job.mask

    def correct(self) -> None:
        """From here on `weight` is what the other steps approximate."""
        if "correct" in self.steps:
            weight = self.run("correct")
            if not finite(weight):
                raise NumericsError(f"{self.job.name}: its corrected weight holds NaN or infinity")
            self._data["weight"] = weight

    def score(self) -> None:
        if "score" in self.steps:
            score = self.run("score")
            if score.shape != self.job.weight.shape:
                name, came = self.steps["score"].name, list(score.shape)
                raise MethodError(f"{self.job.name}: score step {name!r} gave shape {came}, expected the weight's")
            if not finite(score):
                raise NumericsError(f"{self.job.name}: its {self.steps['score'].name} scores hold NaN or infinity")
            self._data["score"] = score

    def share_score(self, everywhere: Everywhere) -> None:
        """Have the score, whoever found it."""
        self._data["score"] = everywhere(self.job.name, self._data.get("score"))

    def run(self, slot: str) -> Any:
        try:
            with _timed(self.seconds, slot):
                result = self.steps[slot](self.read)
        except NumericsError as error:
            where = "" if str(error).startswith(self.job.name) else f"{self.job.name}: "
            raise NumericsError(f"{where}{error}") from error
        if isinstance(result, Noted):
            self.facts.update(result.facts)
            return result.value
        return result

    def read(self, name: str) -> Any:
        if name in self._data:
            return self._data[name]
        if name == "generator":
            return generator_for(self._seed, self.job.name, self.job.weight.device)
        if name in STATISTICS:
            value = self._statistic(self.job.name, name)
            moved = self.order is not None and STATISTICS[name].side == "input"
            return _reordered(value, cast(Tensor, self.order)) if moved else value
        if name == "mask":
            return None  # no select step: an update step that finds its own mask
        raise MethodError(f"{self.job.name}: a step asks for {name}, which no step before it gives")

    def reorder(self, order: Tensor) -> None:
        check(order, self.job.weight.shape[1], self.job.name)
        self.order = order
        for name in ("score", "weight"):
            if name in self._data:  # a matrix may be put in an order without having a score
                self._data[name] = take_columns(self._data[name], order)

    def finish(self) -> Pruned:
        for slot in ("select", "refine"):
            if slot in self.steps:
                self._data["mask"] = self.job.slabs.agreed(self.run(slot))
        weight, mask = self._data["weight"], self.read("mask")
        if "update" in self.steps:
            weight, mask = self.run("update")
        if isinstance(pattern := self.job.pattern, Pattern) and self.job.mask is None and not satisfies(mask, pattern):
            raise MethodError(f"{self.job.name}: the mask of method {self.job.method.method.name!r} is not {pattern}")
        if self.order is not None:
            back = invert(self.order)
            mask = mask.gather(1, back.expand_as(mask))
            weight = take_columns(weight, back) if self.job.method.updates else self.job.weight
        weight = zeroed(weight.float(), mask)
        if not finite(weight):
            raise NumericsError(f"{self.job.name}: the updated weight holds NaN or infinity")
        return Pruned(weight, mask, self.order, self.facts, self.seconds)


def _check_given(job: Job) -> None:
    """A given mask may keep fewer than the pattern says (weights that are zero themselves), never more."""
    if isinstance(job.pattern, Unstructured) and job.mask is not None:
        share, allowed = density(job.mask), job.pattern.density + 1 / min(job.mask.shape)  # counts are rounded by row
        if share > allowed:
            raise PatternError(
                f"{job.name}: the given mask keeps {share:.4f} of the weights, more than {job.pattern} allows"
            )
    if isinstance(job.pattern, Pattern) and job.mask is not None and (bad := violations(job.mask, job.pattern)):
        raise PatternError(
            f"{job.name}: {bad} groups of the given mask keep more than {job.pattern}; pass the pattern it was made for"
        )


def _sharing(works: Sequence[_Work], share_order: bool) -> Iterator[list[_Work]]:
    groups: dict[Any, list[_Work]] = {}
    for index, work in enumerate(works):
        if "permute" in work.steps:
            key = _search(work.job.method, work.job.pattern) if share_order else index
            groups.setdefault(key, []).append(work)
    yield from groups.values()


def _search(method: BoundMethod, pattern: AnyPattern) -> tuple[Any, ...]:
    step = method.steps["permute"]
    return step.name, repr(sorted(step.options.items())), pattern


def _permute_all(works: Sequence[_Work], one_order: OneOrder, everywhere: Everywhere, slabs: Slabs) -> None:
    members = [work for work in works if "permute" in work.steps]
    if one_order.given is not None:
        for work in works:
            work.reorder(one_order.given)
    elif members and one_order.search is not None:
        _permute(members, works, everywhere, slabs, one_order.search)


def _permute(
    members: Sequence[_Work],
    readers: Sequence[_Work],
    everywhere: Everywhere,
    slabs: Slabs,
    search: Search | None = None,
) -> None:
    """Put the readers in the order that is found from the members' scores."""
    first = members[0]
    if len(readers) > 1:
        for work in members:
            work.share_score(everywhere)
    elif first.job.weight.is_meta:
        return  # and nobody else is to know
    else:
        slabs = first.job.slabs
    stacked = torch.cat([work.read("score") for work in members]) if len(members) > 1 else first.read("score")
    asked = ((work.job.method, work.job.pattern, work.job.weight.numel()) for work in members)
    permute = common_permute(asked, slabs)
    with _timed(first.seconds, "permute"):
        order = slabs.agreed(search(stacked, permute) if search else permute(stacked))
    for work in readers:
        work.reorder(order)


def _reordered(value: Tensor, order: Tensor) -> Tensor:
    for dimension in range(value.dim()):  # a number has none
        value = value.index_select(dimension, order)
    return value


@contextmanager
def _timed(seconds: dict[str, float], slot: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[slot] = seconds.get(slot, 0.0) + time.perf_counter() - start
