"""A contest: ways to compute the same thing, timed in turn, so that what disturbs one disturbs them all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TRUSTED = 0.1  # the widest spread of samples whose ratios are trusted
LEAST = 5  # rounds, however long they take
_WARM = 2  # rounds that do not count

Contestant = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Seconds that one contestant took, a sample a round."""

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

    def over(self, slow: "Timing") -> tuple[float, bool]:
        """How many times faster than `slow`, and whether both spread little enough for that to be trusted."""
        steady = max(self.spread, slow.spread) <= TRUSTED
        return slow.median / self.median, steady

    @property
    def microseconds(self) -> list[float]:
        """The samples as a record keeps them."""
        return [round(each * 1e6, 1) for each in self.seconds]


def contest(
    contestants: Mapping[str, Contestant],
    *,
    rounds: int,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    prepare: Callable[[str], object] = lambda _: None,
) -> dict[str, Timing]:
    """Time every contestant once a round, in random order, by `clock`.

    A contestant is called with the number of the round, to take its operands in turn; before that, and not timed,
    `prepare` with its name. After two rounds to warm up
    there are `rounds` more, or fewer (but 5) where they take longer than `limit` seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = random.Random(0)  # noqa: S311
    end = time.perf_counter() + limit
    for turn in range(rounds + _WARM):
        if turn >= LEAST + _WARM and time.perf_counter() > end:
            break
        for name in order.sample(list(contestants), len(contestants)):  # nobody always follows the same one
            prepare(name)
            run, start = contestants[name], clock()
            run(turn)
            taken = clock() - start
            if turn >= _WARM:
                samples[name].append(taken)
    return {name: Timing(tuple(each)) for name, each in samples.items()}
