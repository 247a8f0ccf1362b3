"""The table of backends: which one is chosen, how one is forced, and those of other packages."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError
from eggs_ptp.sparse import backends
from eggs_ptp.sparse.backends import (
    GROUP,
    VARIABLE,
    Backend,
    choose_backend,
    find_backend,
    registered_backends,
    unusable_backends,
    using,
)
from eggs_ptp.sparse.reference import REFERENCE

CPU = torch.device("cpu")


def up_to_batch_4(device, dtype, pattern, rows, columns, batch):
    return None if batch <= 4 else f"batch {batch}: faster up to 4"


SMALL = Backend("small", "for the test", up_to_batch_4, REFERENCE.prepare, REFERENCE.linear)


@pytest.fixture
def small_then_reference(monkeypatch):
    """A table of a backend for small batches, and the reference."""
    monkeypatch.setattr(backends, "registered_backends", lambda: (SMALL, REFERENCE))
    monkeypatch.delenv(VARIABLE, raising=False)


def chosen(batch=1, **options):
    return choose_backend(CPU, torch.float32, Pattern(2, 4), 8, 8, batch, **options).name


@pytest.mark.usefixtures("small_then_reference")
class TestChoice:
    """Which of two backends is chosen."""

    def test_the_first_that_supports_the_product_is_chosen(self):
        assert [chosen(batch) for batch in (1, 4, 5)] == ["small", "small", "reference"]

    def test_a_backend_can_be_forced_in_three_ways(self, monkeypatch):
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

    def test_a_forced_backend_that_does_not_support_the_product_says_why(self):
        with pytest.raises(BackendError, match=r"^backend small: batch 5: faster up to 4; name another one"):
            chosen(5, name="small")

    def test_backends_that_do_not_read_a_kind_of_values_are_skipped(self):
        assert chosen(value_kind="int8") == chosen(value_kind="int4") == "reference"
        with pytest.raises(BackendError, match=r"^backend small: int8 values: supports float; name another one"):
            chosen(name="small", value_kind="int8")

    def test_unknown_names_are_refused(self, monkeypatch):
        for refused in (lambda: chosen(name="fast"), lambda: find_backend("fast"), lambda: using("fast").__enter__()):
            with pytest.raises(BackendError, match=r"^backend 'fast' does not exist; there are small, reference$"):
                refused()
        monkeypatch.setenv(VARIABLE, "fast")
        with pytest.raises(BackendError, match="fast"):
            chosen()


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(9, 20)], ids=str)
def test_the_built_in_backends_end_with_one_that_supports_every_product(device, pattern):
    built_in = registered_backends()
    assert [backend.name for backend in built_in] == ["cpu", "torch", "triton", "reference"]
    assert [backend.priority for backend in built_in] == [300, 200, 100, 0]
    assert all(backend.description for backend in built_in)
    assert built_in[-1].value_kinds == ("float", "int8", "int4")
    reasons = [
        backend.unsupported_reason(torch.device(device), torch.float16, pattern, 8, 40, 1) for backend in built_in
    ]
    assert reasons[-1] is None
    assert all(reason is None or (reason and "\n" not in reason) for reason in reasons)
    assert unusable_backends() == ()


MODULE = """\
from dataclasses import replace
from eggs_ptp.sparse.reference import REFERENCE

def only_float64(device, dtype, *shape):
    return None if "float64" in str(dtype) else f"type {dtype}: supports float64"

FAST = replace(REFERENCE, name="fast", unsupported_reason=only_float64, priority=1000)
LAST = replace(REFERENCE, name="last", priority=-1)
EQUAL = replace(REFERENCE, name="equal", priority=300)
CPU = replace(REFERENCE, name="cpu")
UNSORTED = replace(REFERENCE, name="unsorted", priority="high")
RAISING = replace(REFERENCE, name="raising", unsupported_reason=lambda *product: 1 / 0, priority=2000)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install("fast-kernels", "fast = fast_nm:FAST")`: a distribution with these entry points, and the module."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "fast_nm.py").write_text(MODULE)
    (tmp_path / "exiting_nm.py").write_text("raise SystemExit('no licence\\nfor this machine')")
    backends.load_backends.cache_clear()

    def write(name, *entry_points, metadata=True):
        folder = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        if metadata:
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *entry_points]))

    yield write
    backends.load_backends.cache_clear()
    for module in ("fast_nm", "exiting_nm"):
        sys.modules.pop(module, None)


def names():
    return [backend.name for backend in registered_backends()]


def test_backends_of_another_package_are_tried_by_their_priority(install):
    install("fast-kernels", "last = fast_nm:LAST", "fast = fast_nm:FAST", "equal = fast_nm:EQUAL")
    assert names() == ["fast", "cpu", "equal", "torch", "triton", "reference", "last"]
    assert unusable_backends() == ()
    product = (Pattern(2, 4), 8, 8, 1)
    assert choose_backend(CPU, torch.float64, *product).name == "fast"
    assert choose_backend(CPU, torch.float32, *product).name != "fast"
    assert choose_backend(CPU, torch.float32, *product, name="last").name == "last"
    with (
        using("fast"),
        pytest.raises(BackendError, match=r"^backend fast: type torch\.float32: supports float64; name"),
    ):
        choose_backend(CPU, torch.float32, *product)


@pytest.mark.parametrize(
    ("entry_point", "name", "reason"),
    [
        ("fast = fast_nm:SLOW", "fast", "fast_nm:SLOW cannot be loaded, AttributeError: "),
        ("fast = missing_nm:FAST", "fast", "missing_nm:FAST cannot be loaded, ModuleNotFoundError: "),
        ("fast = exiting_nm:FAST", "fast", "exiting_nm:FAST cannot be loaded, SystemExit: no licence for this machine"),
        ("fast = fast_nm:only_float64", "fast", "expected fast_nm:only_float64 to be a Backend, got function"),
        ("quick = fast_nm:FAST", "quick", "expected a Backend named 'quick' as its entry point, got 'fast'"),
        ("unsorted = fast_nm:UNSORTED", "unsorted", "expected an integer as the priority of 'unsorted', got 'high'"),
        ("cpu = fast_nm:CPU", "cpu", "another backend has the name 'cpu'"),
        ("not an entry point", "?", "its entry_points.txt cannot be read, "),
    ],
)
def test_a_broken_entry_point_is_one_line_and_leaves_the_others(install, caplog, entry_point, name, reason):
    install("broken-kernels", entry_point)
    install("good-kernels", "last = fast_nm:LAST")
    assert names() == ["cpu", "torch", "triton", "reference", "last"]
    (broken,) = unusable_backends()
    line = f"backend {name} of broken-kernels 1.2 is not usable: {reason}"
    assert str(broken).startswith(line)
    assert "\n" not in str(broken)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, str(broken))]
    if name in ("fast", "quick"):
        with pytest.raises(BackendError, match=r"of broken-kernels 1\.2 is not usable: .*repair or remove broken-kern"):
            chosen(name=name)
    assert chosen(name="cpu" if name == "cpu" else "reference")


def test_doctor_lists_a_broken_backend_as_not_usable(install, tmp_path):
    install("broken-kernels", "fast = missing_nm:FAST")
    install("good-kernels", "last = fast_nm:LAST")
    script = "from eggs_ptp.cli.main import main; raise SystemExit(main(['doctor', '--json']))"
    search_path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": search_path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    features = {row["name"]: row for row in json.loads(done.stdout)["available"]}
    assert features["packed: fast"]["ok"] is False
    assert features["packed: fast"]["detail"].startswith("from broken-kernels 1.2: missing_nm:FAST cannot be loaded, ")
    assert features["packed: last"]["ok"] is True
    lines = [line for line in done.stderr.splitlines() if "broken-kernels" in line]
    assert len(lines) == 1
    assert lines[0].startswith("backend fast of broken-kernels 1.2 is not usable: missing_nm:FAST cannot be loaded, ")


def test_a_reason_that_raises_is_the_reason(install):
    install("raising-kernels", "raising = fast_nm:RAISING")
    assert names()[0] == "raising"
    assert chosen() in ("cpu", "reference")
    with pytest.raises(
        BackendError, match=r"^backend raising: unsupported_reason of raising-kernels 1\.2 raised ZeroDiv"
    ):
        chosen(name="raising")


def test_a_distribution_without_metadata_is_named_by_its_folder(install, tmp_path):
    install("broken-kernels", "fast = missing_nm:FAST", metadata=False)
    (broken,) = unusable_backends()
    assert broken.distribution.rstrip("/") == f"a distribution in {tmp_path}"


def test_a_damaged_file_of_a_package_without_backends_is_ignored(install, tmp_path):
    install("good-kernels", "last = fast_nm:LAST")
    install("unrelated")
    (tmp_path / "unrelated-1.2.dist-info" / "entry_points.txt").write_bytes(b"[console_scripts]\n\xff\xfe")
    assert names()[-1] == "last"
    assert unusable_backends() == ()


def test_a_distribution_that_is_installed_twice_is_loaded_once(install, tmp_path, monkeypatch):
    install("fast-kernels", "last = fast_nm:LAST")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert names().count("last") == 1
    assert unusable_backends() == ()
