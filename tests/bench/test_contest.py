"""Contests: everyone runs once a round, and what is said of the samples."""

import pytest

from eggs_ptp.bench.contest import Timing, contest


class Clock:
    """Time passes only when somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_each_runs_once_a_round_in_changing_order_and_warming_up_does_not_count():
    clock, calls = Clock(), []

    def worker(name, seconds):
        def run(turn):
            calls.append((turn, name))
            clock.now += 100 if turn < 2 else seconds

        return run

    timings = contest({"slow": worker("slow", 3.0), "fast": worker("fast", 1.0)}, rounds=20, clock=clock)
    assert [sorted(name for turn, name in calls if turn == each) for each in range(22)] == [["fast", "slow"]] * 22
    assert {calls[2 * each][1] for each in range(22)} == {"slow", "fast"}
    assert timings["slow"].seconds == (3.0,) * 20
    assert timings["fast"].over(timings["slow"]) == (3.0, True)


def test_time_spent_preparing_is_not_counted():
    clock, prepared = Clock(), []

    def prepare(name):
        prepared.append(name)
        clock.now += 1000

    def run(turn):
        clock.now += 2

    timings = contest({"one": run, "two": run}, rounds=5, clock=clock, prepare=prepare)
    assert timings["one"].seconds == (2.0,) * 5
    assert prepared.count("one") == prepared.count("two") == 7


def test_a_limit_ends_it_but_not_before_five_rounds():
    assert len(contest({"one": lambda turn: None}, rounds=50, limit=0)["one"].seconds) == 5
    assert len(contest({"one": lambda turn: None}, rounds=50)["one"].seconds) == 50


def test_spread_decides_about_trust():
    steady = Timing((1.0, 1.01, 1.02, 1.03, 1.04))
    wild = Timing((1.0, 1.5, 2.0, 2.5, 3.0))
    assert steady.spread < 0.1 < wild.spread
    assert wild.spread == pytest.approx((2.75 - 1.25) / 2)
    assert steady.over(wild) == (pytest.approx(2.0 / 1.02), False)
    assert wild.over(steady)[1] is False
    assert steady.over(steady) == (1.0, True)
    assert steady.microseconds[:2] == [1e6, 1.01e6]
