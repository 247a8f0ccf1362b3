"""Tensors that hold something for every token: in memory as far as allowed, then in files that go with the process."""

import gc
import os
from pathlib import Path

import pytest
import torch

from eggs_ptp.engine.tensors.activation_store import ActivationStore
from eggs_ptp.errors import CheckpointError

CPU = torch.device("cpu")


def mapped(folder):
    """Bytes of this process's mappings of files of that folder that are deleted."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    lines = [line.split() for line in maps if f"{folder}/activations-" in line and "deleted" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (line[0].split("-") for line in lines))


def test_beyond_the_allowance_a_tensor_is_a_file_without_a_name(tmp_path):
    store = ActivationStore(8192, tmp_path)
    first, second = (store.empty((4, 8, 64), torch.float32, CPU) for _ in range(2))
    assert mapped(tmp_path) == 8192  # the second
    assert not [*tmp_path.iterdir()]
    second.copy_(torch.arange(2048.0).view(4, 8, 64))
    second[1:2].mul_(2.0)
    assert second[1, 0, 0] == 1024.0
    assert second.shape == first.shape
    del second
    gc.collect()
    assert mapped(tmp_path) == 0


def test_what_is_freed_may_be_used_again(tmp_path):
    store = ActivationStore(4096, tmp_path)
    for _ in range(3):
        kept = store.copy(torch.ones(1024))
        assert mapped(tmp_path) == 0
        del kept


def test_without_an_allowance_all_is_in_memory(tmp_path):
    copy = ActivationStore(None, tmp_path).copy(torch.ones(10_000))
    assert mapped(tmp_path) == 0
    assert copy.sum() == 10_000


def test_a_disk_without_room_is_said_so(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match="no room for"):
        ActivationStore(0, tmp_path).empty((10,), torch.float32, CPU)
    assert not [*tmp_path.iterdir()]
