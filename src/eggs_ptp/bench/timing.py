"""Interleaved timing: candidates take turns, so that a disturbance of the machine affects all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TRUSTED = 0.1  # the widest spread of samples with which a ratio is trusted
MIN_ROUNDS = 5  # measured even if they exceed the time limit
_WARMUP_ROUNDS = 2

Candidate = Callable[[int], object]  # one way to compute the same thing, called with the number of the round


@dataclass(frozen=True)
class Timing:
    """Seconds that a candidate took, one sample per round."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """Median of the samples, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Width of the middle half of the samples, (q3 - q1) / median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median

    def speedup_over(self, slower: "Timing") -> tuple[float, bool]:
        """Return how many times faster this is than another timing, and whether both spreads are at most `TRUSTED`."""
        trusted = max(self.spread, slower.spread) <= TRUSTED
        return slower.median / self.median, trusted

    @property
    def microseconds(self) -> list[float]:
        """The samples as records store them."""
        return [round(sample * 1e6, 1) for sample in self.seconds]


def time_interleaved(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    prepare: Callable[[str], object] = lambda _: None,
) -> dict[str, Timing]:
    """Time every candidate once per round, in random order.

    Args:
        candidates: By name; each is called with the number of the round, so that it can alternate its operands.
        rounds: Rounds to measure, after two that warm up.
        limit: Seconds after which no further round begins, once `MIN_ROUNDS` are measured.
        clock: Returns the current time in seconds.
        prepare: Called with the name of a candidate before it is timed.

    Returns:
        The samples of each candidate, by name.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    generator = random.Random(0)  # noqa: S311
    end = time.perf_counter() + limit
    for number in range(rounds + _WARMUP_ROUNDS):
        if number >= MIN_ROUNDS + _WARMUP_ROUNDS and time.perf_counter() > end:
            break
        names = generator.sample(list(candidates), len(candidates))  # so that none always follows the same one
        for name in names:
            prepare(name)
            candidate = candidates[name]
            start = clock()
            candidate(number)
            elapsed = clock() - start
            if number >= _WARMUP_ROUNDS:
                samples[name].append(elapsed)
    return {name: Timing(tuple(seconds)) for name, seconds in samples.items()}
