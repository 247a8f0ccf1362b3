"""Fixtures that many rooms share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers; tables follow it

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are interpreted, on tensors of the CPU

from hypothesis import settings
from tiny import byte_tokenizer, tiny_model
from tokenizers.processors import TemplateProcessing

# The same examples every time: what random ones find belongs into a test of its own.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

torch.set_num_threads(1)  # tiny tensors: two threads would only wait for each other

SHARED = Path(os.environ.get("EGGS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("qwen2", tie=True)`: the folder of a tiny random model, made once a session."""
    made: dict[str, Path] = {}

    def folder(model_type: str = "llama", **changes: object) -> Path:
        key = repr((model_type, sorted(changes.items(), key=str)))
        if key not in made:
            made[key] = tiny_model(tmp_path_factory.mktemp(model_type) / "model", model_type, **changes)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_with_begin(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_with_begin("gemma3")`: a copy of such a model whose tokenizer writes the begin token before every text."""
    made: dict[Path, Path] = {}

    def folder(model_type: str = "llama", **changes: object) -> Path:
        source = tiny(model_type, **changes)
        if source not in made:
            copy = tmp_path_factory.mktemp("begin") / source.parent.name
            shutil.copytree(source, copy)
            tokenizer = byte_tokenizer()
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
            )
            tokenizer.save_pretrained(copy)
            made[source] = copy
        return made[source]

    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration text of about 12 000 bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"Line {i} says that {i * i} is the square of {i}, and {i % 7} the rest by seven." for i in range(170)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference material is not at {SHARED} (set EGGS_SHARED)")
    return SHARED
