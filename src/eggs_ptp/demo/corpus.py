"""English prose from the documentation of the running Python interpreter.

Nothing is stored in the repository: the texts are `pydoc_data.topics` (the language reference that `help()` shows) and
the docstrings of the standard library's `.py` files, which are parsed and never imported. A paragraph's split is a
function of its own normalised text, so with any interpreter an evaluation paragraph is neither a calibration paragraph
nor one that the built-in model was trained on.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, get_args

from eggs_ptp.errors import CalibrationError

Split = Literal["train", "calibration", "evaluation"]

TOPICS: Final = "pydoc_data.topics"
STDLIB: Final = "stdlib"
RUNTIME_SOURCES: Final = (TOPICS, STDLIB)
"""The texts that every CPython comes with; any other source is the name of an installed package."""

_EVALUATION_PERCENT: Final = 12
_CALIBRATION_PERCENT: Final = 12

# Test suites and the 2to3 grammar contain strings that are not prose; the others are not the standard library.
_SKIPPED_FOLDERS: Final = frozenset(
    {"test", "tests", "testing", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)

# English paragraphs have many of these words; code, tables, grammars and lists of names do not.
_FUNCTION_WORD_TEXT: Final = (
    "a an and are as at be been but by can does for from has have if in into is it its may must not of on "
    "one or otherwise should so such than that the their them then there these they this those to used was "
    "when where which while who will with without would you your all any each no only same returns"
)
_FUNCTION_WORDS: Final = frozenset(_FUNCTION_WORD_TEXT.split())
_MIN_WORDS: Final = 7
_MIN_FUNCTION_WORD_SHARE: Final = 0.2
_MAX_SYMBOL_SHARE: Final = 0.05
_PROSE_CHARACTERS: Final = frozenset(" \n,.;:'\"()_-")
_TYPOGRAPHY: Final = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})

_WORD: Final = re.compile(r"[^\W\d_]+")
_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_RULE: Final = re.compile(r"^\s*([=\-~^*#+_.|\"])\1{2,}[\s=\-~^*#+_|]*$")
_BULLET: Final = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s+")
_MARKUP: Final = re.compile(r":[a-z]+(?::[a-z]+)?:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`|``([^`]+)``|`([^`]+)`_{0,2}")
_CODE: Final = re.compile(r"^\s*(?:>>>|\.\.\. |\$ |\.\. |@|def |class |import |from \w+ import )|::=|^\s*[+|]", re.M)


def normalise(paragraph: str) -> str:
    """Return the form in which two paragraphs count as the same text: letters and digits, case folded."""
    return " ".join(re.findall(r"\w+", paragraph.casefold()))


def split_of(paragraph: str) -> Split:
    """Return the split of a paragraph, by the hash of its normalised text."""
    return _split_of_digest(_digest(paragraph))


def documents(split: Split, *, sources: Iterable[str] = RUNTIME_SOURCES) -> list[str]:
    """Return the documents of one split, in a fixed order.

    A document consists of the paragraphs of a docstring or help topic that belong to this split, in order and separated
    by blank lines. A paragraph that occurs more than once is kept at its first occurrence.

    Args:
        split: The split.
        sources: `TOPICS`, `STDLIB`, or names of installed packages, whose docstrings are read.

    Raises:
        CalibrationError: A source is missing, cannot be read, or has no English paragraph.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(get_args(Split))}")
    return list(_documents_by_split(tuple(sources))[split])


@functools.lru_cache(maxsize=1)  # parsed once for both calibration and evaluation text
def _documents_by_split(sources: tuple[str, ...]) -> dict[Split, list[str]]:
    seen: set[bytes] = set()
    documents: dict[Split, list[str]] = {"train": [], "calibration": [], "evaluation": []}
    for source in sources:
        seen_before = len(seen)
        for text in _texts(source):
            new_paragraphs: dict[Split, list[str]] = {}
            for paragraph in paragraphs(text):
                digest = _digest(paragraph)
                if digest not in seen:
                    seen.add(digest)
                    new_paragraphs.setdefault(_split_of_digest(digest), []).append(paragraph)
            for split, chosen in new_paragraphs.items():
                documents[split].append("\n\n".join(chosen))
        if len(seen) == seen_before:
            raise CalibrationError(f"the demo text {source!r} is empty: no English paragraph was found in it")
    return documents


def paragraphs(text: str) -> Iterator[str]:
    """Yield the English paragraphs of a docstring, each unwrapped to one line (list items keep their lines)."""
    for chunk in _BLANK_LINES.split(inspect.cleandoc(text).translate(_TYPOGRAPHY)):
        if _CODE.search(chunk):
            continue
        lines = [line for line in chunk.splitlines() if not _RULE.match(line)]
        joined = ""
        for line in lines:
            separator = "\n" if _BULLET.match(line) else " "
            joined = f"{joined}{separator}{' '.join(line.split())}" if joined else " ".join(line.split())
        plain = _MARKUP.sub(lambda m: m[1] or m[2] or m[3], joined).replace("::", ":")
        if _is_english(plain):
            yield plain


def _is_english(paragraph: str) -> bool:
    words = _WORD.findall(paragraph.casefold())
    if len(words) < _MIN_WORDS:
        return False
    if sum(word in _FUNCTION_WORDS for word in words) < _MIN_FUNCTION_WORD_SHARE * len(words):
        return False
    symbols = sum(not character.isalpha() and character not in _PROSE_CHARACTERS for character in paragraph)
    return paragraph.isascii() and symbols <= _MAX_SYMBOL_SHARE * len(paragraph)


def _digest(paragraph: str) -> bytes:
    return hashlib.sha256(normalise(paragraph).encode()).digest()


def _split_of_digest(digest: bytes) -> Split:
    percentile = int.from_bytes(digest[:8], "big") % 100
    if percentile < _EVALUATION_PERCENT:
        return "evaluation"
    if percentile < _EVALUATION_PERCENT + _CALIBRATION_PERCENT:
        return "calibration"
    return "train"


def _texts(source: str) -> Iterator[str]:
    if source == TOPICS:
        return _topics()
    if source == STDLIB:
        return _docstrings(_stdlib_folder(), "the standard library's source files")
    spec = importlib.util.find_spec(source)
    if spec is None or not spec.submodule_search_locations:
        raise CalibrationError(f"the demo text {source!r} is missing: no such package in this Python installation")
    return _docstrings(Path(spec.submodule_search_locations[0]), f"the source files of {source!r}")


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CalibrationError(
            "the demo text 'pydoc_data.topics' is missing from this Python installation; "
            "install the full standard library, or give your own text"
        ) from error
    for _, text in sorted(topics.items()):
        yield text


def _stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _docstrings(folder: Path, description: str) -> Iterator[str]:
    files: list[tuple[str, Path]] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        paths = (Path(root, name) for name in names if name.endswith(".py"))
        files.extend((path.relative_to(folder).as_posix(), path) for path in paths)
    if not files:
        raise CalibrationError(
            f"a demo text is missing: expected {description} under {folder}, found none; "
            "use a Python installed with its sources, or give your own text"
        )
    for _, path in sorted(files):
        yield from _docstrings_of(path)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"a demo text cannot be read: {path}: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in those sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file for another Python version
        return
    yield from _docstrings_in(tree)


def _docstrings_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield docstring
    # Definitions are statements, so expressions, most of a tree, are not visited.
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _docstrings_in(child)
