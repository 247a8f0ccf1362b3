"""Section: a part of a report, as the page and the Markdown both show it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from eggs_ptp.report.picture import Picture

_LETTERS = 63  # of a line as wide as a picture


@dataclass(frozen=True)
class Table:
    """Cells of text; a head that starts with `>` is of numbers, and the first cell of a row is its head."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def is_broad(self) -> bool:
        """Whether it needs the width of the page, by its letters, and not that of a picture."""
        columns = zip(self.heads, *self.rows, strict=True)
        return sum(max(map(len, column)) + 3 for column in columns) > _LETTERS


class Card(NamedTuple):
    """A number worth a glance, what it is, and what to know about it."""

    title: str
    value: str
    notes: Sequence[str]


class Text(NamedTuple):
    """What a model wrote after a prompt."""

    label: str
    prompt: str
    text: str


@dataclass
class Section:
    """A heading and what is below it. `folded` tables and code are closed until somebody opens them."""

    slug: str
    title: str
    remarks: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)  # a summary and the lines

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing below the heading."""
        return not any((self.remarks, self.cards, self.pictures, self.tables, self.texts, self.folded, self.code))
