"""Interleaved timing: every candidate runs once per round; medians, spreads and trust."""

import pytest

from eggs_ptp.bench.timing import Timing, time_interleaved


class Clock:
    """A clock that advances only when a candidate advances it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_each_candidate_runs_once_a_round_in_changing_order_and_warm_up_rounds_do_not_count():
    clock = Clock()
    calls = []

    def candidate(name, seconds):
        def run(number):
            calls.append((number, name))
            clock.now += 100 if number < 2 else seconds

        return run

    timings = time_interleaved({"slow": candidate("slow", 3.0), "fast": candidate("fast", 1.0)}, rounds=20, clock=clock)
    assert [sorted(name for number, name in calls if number == expected) for expected in range(22)] == [
        ["fast", "slow"]
    ] * 22
    assert {calls[2 * number][1] for number in range(22)} == {"slow", "fast"}
    assert timings["slow"].seconds == (3.0,) * 20
    assert timings["fast"].speedup_over(timings["slow"]) == (3.0, True)


def test_time_spent_preparing_is_not_counted():
    clock = Clock()
    prepared = []

    def prepare(name):
        prepared.append(name)
        clock.now += 1000

    def run(number):
        clock.now += 2

    timings = time_interleaved({"one": run, "two": run}, rounds=5, clock=clock, prepare=prepare)
    assert timings["one"].seconds == (2.0,) * 5
    assert prepared.count("one") == prepared.count("two") == 7


def test_a_time_limit_ends_it_after_at_least_five_rounds():
    assert len(time_interleaved({"one": lambda number: None}, rounds=50, limit=0)["one"].seconds) == 5
    assert len(time_interleaved({"one": lambda number: None}, rounds=50)["one"].seconds) == 50


def test_ratios_are_trusted_if_both_spreads_are_small():
    steady = Timing((1.0, 1.01, 1.02, 1.03, 1.04))
    unsteady = Timing((1.0, 1.5, 2.0, 2.5, 3.0))
    assert steady.spread < 0.1 < unsteady.spread
    assert unsteady.spread == pytest.approx((2.75 - 1.25) / 2)
    assert steady.speedup_over(unsteady) == (pytest.approx(2.0 / 1.02), False)
    assert unsteady.speedup_over(steady)[1] is False
    assert steady.speedup_over(steady) == (1.0, True)
    assert steady.microseconds[:2] == [1e6, 1.01e6]
