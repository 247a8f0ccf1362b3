"""The docstring of a step function, as `eggs methods` shows it."""

import re
from dataclasses import dataclass

from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType

_PARSER = GoogleParser(
    [
        *DEFAULT_SECTIONS,
        Section("Source", "source", SectionType.SINGULAR),
        Section("Differs", "differs", SectionType.SINGULAR),
    ]
)
# The parser wants the title of a section on a line of its own; these two sections start on the line of their title.
_INLINE_SECTION = re.compile(r"^([ \t]*)(Source|Differs):[ \t]+(?=\S)", re.MULTILINE)


@dataclass(frozen=True)
class StepDocstring:
    """A parsed docstring; parts that it does not have are empty.

    Attributes:
        description: What the step computes, with its formula.
        arguments: The meaning of each argument, by name.
        source: Where the step is published.
        differs: How it differs from the publication.
    """

    description: str
    arguments: dict[str, str]
    source: str
    differs: str


def parse_step_docstring(text: str) -> StepDocstring:
    """Parse a Google-style docstring with the additional sections `Source:` and `Differs:`."""
    docstring = _PARSER.parse(_INLINE_SECTION.sub(r"\1\2:\n\1    ", text))
    sections = {meta.args[0]: meta.description for meta in docstring.meta}
    return StepDocstring(
        description=docstring.description or "",
        arguments={param.arg_name: _one_line(param.description) for param in docstring.params},
        source=_one_line(sections.get("source")),
        differs=_one_line(sections.get("differs")),
    )


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
