"""Faults injected into whole runs: a few here, 203 in docs/results/faults.json."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "results" / "faults.json"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import faults

    return faults


def check(rows, count):
    assert len(rows) == count
    assert [row for row in rows if row.wrong or not (row.clear and row.intact and row.equal)] == []


def test_a_few_faults_leave_nothing_lost_or_corrupted(faults, tmp_path, monkeypatch):
    kinds = ("kill", "terminate", "file size limit", "source cut short", "corrupt header", "corrupt journal")
    monkeypatch.setattr(faults, "KINDS", {name: faults.KINDS[name] for name in kinds})
    rows = faults.run({"prune": 6, "export": 5}, tmp_path, 1)
    check(rows, 11)
    assert {row.kind for row in rows} == set(kinds)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_faults_leave_nothing_lost_or_corrupted(faults, tmp_path):
    check(faults.run({"prune": 143, "export": 60}, tmp_path, 2), 203)


def test_the_record_has_two_hundred_faults_and_no_loss():
    record = json.loads(RECORD.read_text())
    assert record["faults"] >= 200
    assert record["faults"] == len(record["rows"]) == sum(row["faults"] for row in record["table"])
    assert record["lost or corrupted"] == record["without a clear line"] == 0
