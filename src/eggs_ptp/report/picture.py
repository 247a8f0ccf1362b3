"""Pictures: a matplotlib figure as SVG for the page, which takes its colours and letters, and as SVG and PNG files."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from eggs_ptp.core.whole_file import whole_file
from eggs_ptp.errors import BackendError
from eggs_ptp.report.palette import LIGHT

WIDTH = 5.0  # inches, 360 of the SVG's units: on a phone its letters keep about their size
_DOTS = 200  # per inch of a PNG
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",  # letters stay letters: they can be searched, read aloud, and take the page's font
    "svg.hashsalt": "eggs",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.facecolor": "none",
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.color": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "legend.fontsize": 10,
    "text.parse_math": False,  # labels are names of folders, and a $ in them is one
}
_THEMED = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font(-family)?: ([0-9.]+px )?'DejaVu Sans'[^;\"]*")


@dataclass(frozen=True)
class Picture:
    """A drawn figure: `name` is that of its files and ids, `description` what a person who cannot see it is told.

    `note` is shown under the title; `hints` are titles of the parts that have their keys as ids, which browsers show
    under the pointer.
    """

    name: str
    title: str
    description: str
    figure: Any
    hints: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def width(self) -> int:
        """Units of the SVG that it is wide."""
        return round(float(self.figure.get_figwidth()) * 72)

    def svg(self) -> str:
        """For the page: colours are its variables, ids are this picture's alone, title and description are inside."""
        text = self._drawn()
        body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
        body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)
        head, _, body = body.partition(">")
        box = re.search(r'viewBox="[^"]*"', head)
        for part, hint in self.hints.items():
            opening = f'<g id="{part}">'
            body = body.replace(opening, f"{opening}<title>{escape(hint)}</title>", 1)
        body = re.sub(r'\bid="', f'id="{self.name}-', body)
        body = re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", body)
        body = _FONT.sub(r"font\1: \2var(--sans)", body)
        body = _HEX.sub(lambda found: _THEMED.get(found[0], found[0]), body)
        names = f"{self.name}-title {self.name}-text"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'{box[0] if box else ""} class="picture" role="img" aria-labelledby="{names}">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-text">{escape(self.description)}</desc>{body}'
        )

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.svg and NAME.png, in light colours on white.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        paths = [folder / f"{self.name}.svg", folder / f"{self.name}.png"]
        for path in paths:
            with styled(), whole_file(path) as draft:
                self.figure.savefig(draft, facecolor=LIGHT["paper"], dpi=_DOTS, metadata=_metadata(path, self.title))
        return paths

    def _drawn(self) -> str:
        out = io.StringIO()
        with styled():
            self.figure.savefig(out, format="svg", metadata={"Date": None, "Title": self.title})
        return out.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Figures are drawn in the report's style inside, whatever the user's own settings are.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BackendError("reports need matplotlib and jinja2: pip install 'eggs-ptp[report]'") from error
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**defaults, **_STYLE}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's own fonts may well have it
        yield


def _metadata(path: Path, title: str) -> dict[str, str | None]:
    return {"Date": None, "Title": title} if path.suffix == ".svg" else {"Title": title}
