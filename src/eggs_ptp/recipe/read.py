"""TOML file, command-line flags and `--set` to a Recipe."""

import datetime
import os
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.problem import Problem, problems
from eggs_ptp.recipe.recipe import Recipe

_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "calibration": "calibration.text",
        "nsamples": "calibration.nsamples",
        "seqlen": "calibration.seqlen",
        "sampling": "calibration.sampling",
        "text_field": "calibration.text_field",
    }
)


def read_recipe(
    path: Path | str | None = None, overrides: Sequence[str] = (), *, foreign: Collection[str] = (), **flags: Any
) -> Recipe:
    """The recipe of a file, changed by flags (None = not given), both changed by `KEY=VALUE` overrides.

    Flags have the names of the recipe's keys; `calibration`, `nsamples`, `seqlen`, `sampling` and `text_field` are
    those of `[calibration]`, the first its `text`. A VALUE is read as TOML where it is TOML, else as a string.
    Top-level keys that are `foreign` belong to someone else and are passed over.

    Raises:
        RecipeError: a file that cannot be read or is not TOML (file, line, column), an unknown key (file, line,
            nearest known name), a value that is not possible, an override that is not KEY=VALUE.
    """
    text = "" if path is None else _read(Path(path))
    table = {} if path is None else _parsed(Path(path), text)
    table = {key: value for key, value in table.items() if key not in foreign}
    changed = []
    for name, value in flags.items():
        if value is not None:
            changed.append(_FLAGS.get(name, name))
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            _put(table, changed[-1], plain, f"--{name.replace('_', '-')}")
    for override in overrides:
        key, equals, value = override.partition("=")
        changed.append(key.strip())
        if not equals or not all(changed[-1].split(".")) or not changed[-1].isprintable():
            raise RecipeError(f"--set {override!r}: expected KEY=VALUE, such as steps.score.alpha=0.7")
        _put(table, changed[-1], _toml_value(value.strip()), f"--set {changed[-1]}")
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = _key_lines(text)
        found = [_located(problem, path, lines, changed) for problem in problems(error, Recipe)]
        raise RecipeError("; ".join(found).replace("\n", "\\n")) from None


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        RecipeError: it cannot be read, or is not TOML (file, line, column).
    """
    return _parsed(path, _read(path))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe {path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}; "
            "save it as UTF-8"
        ) from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        rows = text.replace("\r\n", "\n").split("\n")
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line, column = (int(place[1]), int(place[2])) if place else (len(rows), len(rows[-1]) + 1)
        reason = re.sub(r" \(at [^()]*\)$", "", str(error))
        hint = re.match(r"\s*pattern\s*=\s*(\d+:\d+)", rows[line - 1])
        wanted = f'; a pattern is a string, so write pattern = "{hint[1]}"' if hint else ""
        raise RecipeError(f"recipe {path}, line {line}, column {column}: not TOML: {reason}{wanted}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise RecipeError(f"recipe {path}: not TOML that can be read: {error}") from None


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML; or too many digits or brackets, of which no key has any use
        return text
    value = parsed["value"]
    # No key is a time; and TOML 1.1 reads the pattern 12:16 as one.
    return text if len(parsed) > 1 or isinstance(value, datetime.date | datetime.time) else value


def _put(table: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *parents, last = key.split(".")
    for place, parent in enumerate(parents):
        inner = table.setdefault(parent, {})
        if place == 1 and parents[0] == "steps" and isinstance(inner, str):  # score = "ria"
            inner = table[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"{origin}: {'.'.join(parents[: place + 1])} is {inner!r}, not a table")
        table = inner
    table[last] = value


def _located(problem: Problem, path: Path | str | None, lines: Mapping[str, int], changed: Sequence[str]) -> str:
    """The problem with its file and line, unless the key at fault came from a flag or `--set`."""
    if path is None or any(f"{problem.path}.".startswith((f"{key}.", f"{key}[")) for key in changed):
        return str(problem)
    known = problem.path
    while known and known not in lines:
        known = re.sub(r"(^|\.)[^.\[\]]+$|\[\d+\]$", "", known)
    return f"recipe {path}{f', line {lines[known]}' if known else ''}: {problem}"


def _key_lines(text: str) -> dict[str, int]:
    """Key path -> line of its first mention; inline tables and multi-line values count as their first line."""
    lines: dict[str, int] = {}
    counts: Counter[str] = Counter()
    header = ""
    for number, line in enumerate(text.split("\n"), 1):
        if found := re.match(r"\s*\[\[(.+?)\]\]", line):
            name = _bare(found[1])
            header = f"{name}[{counts[name]}]"
            counts[name] += 1
            lines[header] = number
            lines.setdefault(name, number)
        elif found := re.match(r"\s*\[([^\[\]]+)\]", line):
            head, dot, tail = _bare(found[1]).partition(".")
            header = f"{head}[{counts[head] - 1}]{dot}{tail}" if counts[head] else f"{head}{dot}{tail}"
            lines.setdefault(header, number)
        elif found := re.match(r"\s*([\w.\-\"' ]+?)\s*=", line):
            lines.setdefault(f"{header}.{_bare(found[1])}".removeprefix("."), number)
    return lines


def _bare(key: str) -> str:
    return re.sub(r"[\s\"']", "", key)
