"""How source files are divided and named, and what published texts must not contain."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_LINES = 500
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt|tmp|work)/\w")
FOLDERS = ("src", "docs", "tools", "examples", "compat", "fuzz", "benchmarks", "training", ".ci")
FILES = (
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
)
BINARY = (".safetensors", ".png")


def published_texts() -> Iterator[tuple[Path, str]]:
    """Every text that users get to see."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    paths += [ROOT / name for name in FILES]
    for path in paths:
        if path.is_file() and path.suffix not in BINARY and "__pycache__" not in path.parts:
            yield path, path.read_text(encoding="utf-8")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_sources_to_look_at():
    assert len(SOURCES) > 50
    assert len(list(published_texts())) > len(SOURCES)


def test_no_source_file_is_too_long():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_no_file_has_a_name_that_says_nothing():
    folders = ("src", "tests", "benchmarks", "compat", "fuzz", "tools", "training")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    named = [path for path in paths if path.suffix == ".py" or path.is_dir()]
    assert [relative(path) for path in named if path.stem.lower().strip("_") in FORBIDDEN_NAMES] == []


def test_only_the_command_line_prints():
    calls = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if "cli" not in path.relative_to(ROOT / "src" / "eggs_ptp").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_no_text_contains_paths_of_one_machine():
    matches = {relative(path): match[0] for path, text in published_texts() if (match := MACHINE_PATH.search(text))}
    assert matches == {}
    assert MACHINE_PATH.search("see /home/somebody")
    assert not MACHINE_PATH.search("https://example.org/home/x and ./tmp/x")


def test_no_text_contains_unfinished_work():
    unfinished = [relative(path) for path, text in published_texts() if re.search(r"\b(TODO|FIXME|XXX)\b", text)]
    assert unfinished == []
