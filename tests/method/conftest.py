"""A user's own step functions, in a module that exists for one test."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes source code, such as `def f(weight): ...`, as a module and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def module(source: str) -> str:
        name = f"own_steps_{tmp_path.name}_{len(names)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import Tensor\n\n\n{source}\n")
        names.append(name)
        return name

    yield module
    for name in names:
        sys.modules.pop(name, None)
