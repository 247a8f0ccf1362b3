"""Sections of a report, as both the page and the Markdown show them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from eggs_ptp.report.picture import Picture

_PICTURE_LETTERS = 63  # letters of a line that is as wide as a picture


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        caption: What it shows.
        heads: Column heads; one that starts with `>` is a column of numbers.
        rows: The cells; the first of a row is its head.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def is_broad(self) -> bool:
        """Whether it needs the width of the page, and not that of a picture, by the number of its letters."""
        columns = zip(self.heads, *self.rows, strict=True)
        return sum(max(map(len, column)) + 3 for column in columns) > _PICTURE_LETTERS


class Card(NamedTuple):
    """A key number: what it is, its value, and notes on it."""

    title: str
    value: str
    notes: Sequence[str]


class Text(NamedTuple):
    """Generated text: by which model, the prompt, and the continuation."""

    label: str
    prompt: str
    text: str


@dataclass
class Section:
    """A heading and its content.

    Attributes:
        slug: Start of its ids.
        title: The heading.
        verdict: One sentence that says what the section comes to; empty for none.
        remarks: Paragraphs.
        cards: Key numbers.
        pictures: Plots.
        tables: Tables.
        texts: Generated texts.
        collapsed: Tables that are closed until the reader opens them.
        code: Pairs of a summary and code lines, closed as well.
    """

    slug: str
    title: str
    verdict: str = ""
    remarks: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    collapsed: list[Table] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is no content."""
        return not any(
            (self.verdict, self.remarks, self.cards, self.pictures, self.tables, self.texts, self.collapsed, self.code)
        )
