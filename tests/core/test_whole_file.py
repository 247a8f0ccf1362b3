"""Files that are there when they are whole, and else as they were."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from eggs_ptp.core.whole_file import whole_file, write_whole
from eggs_ptp.errors import CheckpointError


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "record.json"
    for text in ("one", "two"):
        write_whole(path, text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_what_fails_halfway_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "record.json"
    path.write_text("before")

    def write():
        with whole_file(path) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)) as caught:
        write()
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands for the disk."""
    path = tmp_path / "record.json"
    path.write_text("before")
    code = (
        "from eggs_ptp.core.whole_file import *\nfrom pathlib import Path\nwrite_whole(Path('record.json'), 'x' * 9999)"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].endswith("record.json: cannot be written (File too large)")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_written_to_and_not_replaced():
    write_whole(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "record.json", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_whole(path, "text")
