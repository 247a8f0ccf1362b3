"""Fixtures of the engine's tests."""

import shutil

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def altered(tiny, tmp_path):
    """A tiny model in which one tensor was changed."""

    def folder(tensor, change):
        copy = shutil.copytree(tiny("llama"), tmp_path / "model")
        tensors = load_file(copy / "model.safetensors")
        tensors[tensor] = change(tensors[tensor]).contiguous()
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        return copy

    return folder
