"""Steps of the user's own, in a module that exists for one test."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`own("def f(weight): ...")` writes a module and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def module(source: str) -> str:
        name = f"own_steps_{tmp_path.name}_{len(made)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import Tensor\n\n\n{source}\n")
        made.append(name)
        return name

    yield module
    for name in made:
        sys.modules.pop(name, None)
