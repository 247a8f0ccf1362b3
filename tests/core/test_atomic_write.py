"""A file appears complete, or stays as it was."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from eggs_ptp.core.atomic_write import atomic_path, write_text_atomically
from eggs_ptp.errors import CheckpointError


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "record.json"
    for text in ("one", "two"):
        write_text_atomically(path, text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_failed_write_leaves_the_previous_file(tmp_path, error):
    path = tmp_path / "record.json"
    path.write_text("before")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)) as caught:
        write()
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_previous_file(tmp_path):
    """The disk is simulated by a limit on the size of files."""
    path = tmp_path / "record.json"
    path.write_text("before")
    code = (
        "from eggs_ptp.core.atomic_write import *\n"
        "from pathlib import Path\n"
        "write_text_atomically(Path('record.json'), 'x' * 9999)"
    )

    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limit_file_size, capture_output=True, text=True, cwd=tmp_path
    )
    assert process.stderr.splitlines()[-1].endswith("record.json: cannot be written (File too large)")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_written_to_and_not_replaced():
    write_text_atomically(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "record.json", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_text_atomically(path, "text")
