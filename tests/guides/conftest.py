"""A folder to follow a guide in, where `demo` is a tiny model."""

import sys

import pytest

from eggs_ptp import api


@pytest.fixture
def follow(tiny, tmp_path, monkeypatch):
    """`follow(guide)`: an empty folder with the guide's files as the current one; its modules can be imported."""
    modules = set()

    def prepare(guide):
        guide.write(tmp_path)
        modules.update(name.removesuffix(".py") for name in guide.files if "/" not in name)
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(api.inputs, "model_folder", lambda: tiny())
    documents = {split: [f"{i}: text for {split}. " * 20 for i in range(20)] for split in ("calibration", "evaluation")}
    monkeypatch.setattr(api.inputs, "builtin_documents", documents.__getitem__)
    yield prepare
    for name in modules:
        sys.modules.pop(name, None)
