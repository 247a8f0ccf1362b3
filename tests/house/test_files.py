"""How files are cut and named."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
SOFT, HARD, LONGEST_FUNCTION = 300, 500, 60
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt|tmp|work)/\w")
PUBLISHED = (
    "src",
    "docs",
    "benchmarks",
    "fuzz",
    "training",
    ".ci",
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
)


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def published() -> Iterator[tuple[Path, str]]:
    """Every text that users get to see."""
    for place in (*PUBLISHED, "pyproject.toml", "constraints.txt"):
        top = ROOT / place
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in (".safetensors", ".png") and "__pycache__" not in path.parts:
                yield path, path.read_text(encoding="utf-8")


def test_there_are_sources_to_look_at():
    assert len(SOURCES) > 50
    assert len(list(published())) > len(SOURCES)


@pytest.mark.parametrize("limit", [HARD, SOFT])
def test_no_source_file_is_too_long(limit):
    assert {str(path.relative_to(ROOT)): lines(path) for path in SOURCES if lines(path) > limit} == {}


def test_no_function_is_too_long():
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > LONGEST_FUNCTION:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = size
    assert long == {}


def test_files_are_named_for_what_they_hold():
    places = [path for top in ("src", "tests", "benchmarks", "fuzz", "training") for path in (ROOT / top).rglob("*")]
    named = [path for path in places if path.suffix == ".py" or path.is_dir()]
    assert [str(path.relative_to(ROOT)) for path in named if path.stem.lower().strip("_") in FORBIDDEN] == []


def test_only_the_command_line_prints():
    prints = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if "cli" not in path.relative_to(ROOT / "src" / "eggs_ptp").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert prints == []


def test_no_text_holds_paths_of_somebodys_machine():
    found = {
        str(path.relative_to(ROOT)): match[0] for path, text in published() if (match := MACHINE_PATH.search(text))
    }
    assert found == {}
    assert MACHINE_PATH.search("see /home/somebody")
    assert not MACHINE_PATH.search("https://example.org/home/x and ./tmp/x")


def test_nothing_is_left_to_be_done():
    found = {str(path.relative_to(ROOT)) for path, text in published() if re.search(r"\b(TODO|FIXME|XXX)\b", text)}
    assert found == set()
