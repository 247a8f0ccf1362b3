"""The docstring of an ingredient, taken apart."""

import inspect
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Docstring:
    """What it does with its formula, what each argument means, and where it comes from (with what differs)."""

    formula: str
    arguments: dict[str, str]
    source: str
    differs: str


def take_apart(text: str) -> Docstring:
    """Read a google-style docstring with `Args:`, `Source:` and `Differs:`; other sections are left out."""
    lines = inspect.cleandoc(text).splitlines()
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in lines:
        if match := re.match(r"(Args|Returns|Raises|Source|Differs):(.*)", line):
            current = match[1]
            sections[current] = [match[2]] if match[2].strip() else []
        else:
            sections[current].append(line)
    source, differs = (" ".join(" ".join(sections.get(name, [])).split()) for name in ("Source", "Differs"))
    return Docstring("\n".join(sections[""]).strip(), _arguments(sections.get("Args", [])), source, differs)


def _arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if match := re.match(r" {4}(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2].strip()
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
