"""Files that commands write: on a full disk or without permission the error is one line, and the old file stays."""

import errno
import os
from pathlib import Path

import pytest
import torch

from eggs_ptp.checkpoint.staging import StagingFolder
from eggs_ptp.core.atomic_write import write_text_atomically
from eggs_ptp.core.records import write_record
from eggs_ptp.engine.tensors.masks import write_masks
from eggs_ptp.errors import CheckpointError

WRITERS = {
    "masks of eggs export": lambda path: write_masks({"a": torch.ones(4, 8) > 0}, path),
    "record of eggs evaluate, compare and bench": lambda path: write_record(path, {"perplexity": 1.0}),
    "page of eggs report": lambda path: write_text_atomically(path, "<html>"),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, write, number):
    path = tmp_path / "file"
    write(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(CheckpointError, match=f"{path}: cannot be written .{os.strerror(number)}"):
            write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_path_below_a_file_is_refused(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "file" / "inside")


def test_a_system_error_in_a_staging_folder_is_one_line_with_the_file(tmp_path):
    def write():
        with StagingFolder(tmp_path / "out") as staging:
            (staging.folder / "missing" / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"config\.json: No such file or directory"):
        write()
    assert list(tmp_path.iterdir()) == []
