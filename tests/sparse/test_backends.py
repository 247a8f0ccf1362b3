"""The table: choice, force, reasons."""

import pytest
import torch

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError
from eggs_ptp.sparse import backends
from eggs_ptp.sparse.backends import VARIABLE, Backend, choose, find, table, using
from eggs_ptp.sparse.reference import REFERENCE

CPU = torch.device("cpu")


def small_batches(device, dtype, pattern, rows, columns, batch):
    return None if batch <= 4 else f"batch {batch}, up to 4"


SMALL = Backend("small", "for the test", small_batches, REFERENCE.prepare, REFERENCE.linear)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    monkeypatch.setattr(backends, "table", lambda: (SMALL, REFERENCE))
    monkeypatch.delenv(VARIABLE, raising=False)


def chosen(batch=1, **name):
    return choose(CPU, torch.float32, Pattern(2, 4), 8, 8, batch, **name).name


def test_the_first_that_can_is_chosen():
    assert [chosen(batch) for batch in (1, 4, 5)] == ["small", "small", "reference"]


def test_a_backend_can_be_forced_three_ways(monkeypatch):
    assert chosen(name="reference") == "reference"
    with using("reference"):
        assert chosen() == "reference"
        with using(None):
            assert chosen() == "small"
        assert chosen(name="small") == "small"
    monkeypatch.setenv(VARIABLE, "reference")
    assert chosen() == "reference"
    with using("small"):
        assert chosen() == "small"
    monkeypatch.setenv(VARIABLE, "")
    assert chosen() == "small"


def test_a_forced_backend_that_cannot_says_why():
    with pytest.raises(BackendError, match=r"^backend small: batch 5, up to 4; name another one"):
        chosen(5, name="small")


def test_kinds_of_values_that_it_does_not_read_are_passed_over():
    assert chosen(kind="int8") == chosen(kind="int4") == "reference"
    with pytest.raises(BackendError, match=r"^backend small: int8 values, for float; name another one"):
        chosen(name="small", kind="int8")


def test_unknown_names_are_refused(monkeypatch):
    for refused in (lambda: chosen(name="fast"), lambda: find("fast"), lambda: using("fast").__enter__()):
        with pytest.raises(BackendError, match=r"^backend 'fast' does not exist; there are small, reference$"):
            refused()
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(BackendError, match="fast"):
        chosen()


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(9, 20)], ids=str)
def test_the_table_always_ends_with_one_that_can(device, pattern):
    real = table()
    names = [backend.name for backend in real]
    assert len(set(names)) == len(names)
    assert all(backend.about for backend in real)
    assert real[-1].values == ("float", "int8", "int4")
    reasons = [backend.why_not(torch.device(device), torch.float16, pattern, 8, 40, 1) for backend in real]
    assert reasons[-1] is None
    assert all(reason is None or (reason and "\n" not in reason) for reason in reasons)
