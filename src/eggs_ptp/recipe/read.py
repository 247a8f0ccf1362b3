"""Reads recipes: a TOML file, changed by command-line flags, changed by `--set`."""

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
from eggs_ptp.method.aliases import current_key, with_current_names
from eggs_ptp.recipe.problem import Problem, problems
from eggs_ptp.recipe.recipe import Recipe

_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "calibration": "calibration.text",
        "nsamples": "calibration.nsamples",
        "seqlen": "calibration.seqlen",
        "sampling": "calibration.sampling",
        "begin": "calibration.begin",
        "text_field": "calibration.text_field",
    }
)


def read_recipe(
    path: Path | str | None = None, overrides: Sequence[str] = (), *, foreign: Collection[str] = (), **flags: Any
) -> Recipe:
    """Return the recipe of a file, changed by flags, and then by overrides.

    Args:
        path: The file; None starts from the defaults.
        overrides: `KEY=VALUE`, as for `--set`: a dotted key, and a value that is read as TOML if it is TOML, else as a
            string.
        foreign: Top-level keys of the file that belong to something else and are ignored.
        **flags: Values by the names of the recipe's keys; None leaves a key alone. `calibration` is the key `text` of
            `[calibration]`; `nsamples`, `seqlen`, `sampling`, `begin` and `text_field` are keys of the same table.

    Raises:
        RecipeError: The file cannot be read or is not TOML (file, line, column); a key is unknown (file, line, nearest
            known name); a value is not possible; an override is not KEY=VALUE.
    """
    text = "" if path is None else _read_text(Path(path))
    table = {} if path is None else _parse(Path(path), text)
    table = with_current_names({key: value for key, value in table.items() if key not in foreign})
    changed_keys = []
    for name, value in flags.items():
        if value is not None:
            key = current_key(_FLAGS.get(name, name), table)
            changed_keys.append(key)
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            _put(table, key, plain, f"--{name.replace('_', '-')}")
    for override in overrides:
        name, equals, value = override.partition("=")
        name = name.strip()
        if not equals or not all(name.split(".")) or not name.isprintable():
            raise RecipeError(f"--set {override!r}: expected KEY=VALUE, such as steps.score.alpha=0.7")
        key = current_key(name, table)
        changed_keys.append(key)
        _put(table, key, _toml_value(value.strip()), f"--set {name}")
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = _key_lines(text)
        messages = [_with_line(problem, path, lines, changed_keys) for problem in problems(error, Recipe)]
        raise RecipeError("; ".join(messages).replace("\n", "\\n")) from None


def read_table(path: Path) -> dict[str, Any]:
    """Return a TOML file as plain data.

    Raises:
        RecipeError: It cannot be read, or is not TOML (file, line, column).
    """
    return _parse(path, _read_text(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe {path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}; "
            "save it as UTF-8"
        ) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.replace("\r\n", "\n").split("\n")
        if position := re.search(r" \(at line (\d+), column (\d+)\)$", str(error)):
            line = int(position[1])
            column = int(position[2])
        else:  # the end of the file
            line = len(lines)
            column = len(lines[-1]) + 1
        reason = re.sub(r" \(at [^()]*\)$", "", str(error))
        unquoted = re.match(r"\s*pattern\s*=\s*(\d+:\d+)", lines[line - 1])
        hint = f'; a pattern is a string, so write pattern = "{unquoted[1]}"' if unquoted else ""
        raise RecipeError(f"recipe {path}, line {line}, column {column}: not TOML: {reason}{hint}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of open brackets
        raise RecipeError(f"recipe {path}: not TOML that can be read: {error}") from None


def _toml_value(text: str) -> Any:
    """Return the value of an override: TOML, or else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # no TOML; or a number or nesting too long for any key
        return text
    value = parsed["value"]
    # No key holds a time, and TOML 1.1 reads the pattern 12:16 as one.
    return text if len(parsed) > 1 or isinstance(value, datetime.date | datetime.time) else value


def _put(table: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key in place; `origin` is the flag that error messages name."""
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        inner = table.setdefault(parent, {})
        if depth == 1 and parents[0] == "steps" and isinstance(inner, str):  # score = "ria"
            inner = table[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"{origin}: {'.'.join(parents[: depth + 1])} is {inner!r}, not a table")
        table = inner
    table[last] = value


def _with_line(problem: Problem, path: Path | str | None, lines: Mapping[str, int], changed_keys: Sequence[str]) -> str:
    """Return a problem with its file and line, unless the key at fault came from a flag or `--set`."""
    if path is None or any(f"{problem.path}.".startswith((f"{key}.", f"{key}[")) for key in changed_keys):
        return str(problem)
    known = problem.path
    while known and known not in lines:
        known = re.sub(r"(^|\.)[^.\[\]]+$|\[\d+\]$", "", known)
    return f"recipe {path}{f', line {lines[known]}' if known else ''}: {problem}"


def _key_lines(text: str) -> dict[str, int]:
    """Return the line of the first mention of each key path of a TOML file.

    Inline tables and values of several lines count as their first line. Neither tomllib nor tomlkit knows where a key
    is in its file, and tree-sitter-toml would be a second, compiled parser. The file has been parsed before, so that
    what this search misses costs no more than a line number in an error message.
    """
    lines: dict[str, int] = {}
    counts: Counter[str] = Counter()
    header = ""
    for number, line in enumerate(text.split("\n"), 1):
        if match := re.match(r"\s*\[\[(.+?)\]\]", line):
            name = _bare_key(match[1])
            header = f"{name}[{counts[name]}]"
            counts[name] += 1
            lines[header] = number
            lines.setdefault(name, number)
        elif match := re.match(r"\s*\[([^\[\]]+)\]", line):
            head, dot, tail = _bare_key(match[1]).partition(".")
            header = f"{head}[{counts[head] - 1}]{dot}{tail}" if counts[head] else f"{head}{dot}{tail}"
            lines.setdefault(header, number)
        elif match := re.match(r"\s*([\w.\-\"' ]+?)\s*=", line):
            key = f"{header}.{_bare_key(match[1])}".removeprefix(".")
            lines.setdefault(current_key(key, {}, quiet=True), number)
    return lines


def _bare_key(key: str) -> str:
    """Return a dotted key without quotes and spaces."""
    return re.sub(r"[\s\"']", "", key)
