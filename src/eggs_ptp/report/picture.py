"""Pictures: matplotlib figures as SVG in the colours and font of the page, and as SVG and PNG files."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from eggs_ptp.core.atomic_write import atomic_path
from eggs_ptp.errors import BackendError
from eggs_ptp.report.palette import LIGHT

WIDTH = 5.0  # inches, or 360 units of the SVG: on a phone its text keeps about its size
_DPI = 200  # of a PNG
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud, and has the page's font
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
    "text.parse_math": False,  # labels are names of folders, which may contain a $
}
_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font(-family)?: ([0-9.]+px )?'DejaVu Sans'[^;\"]*")


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        name: Name of its files, and start of its ids.
        title: Title.
        description: What it shows, for readers who cannot see it.
        figure: The matplotlib figure.
        hints: Tooltips of the parts of the figure, by their ids.
        note: Text under the title.
    """

    name: str
    title: str
    description: str
    figure: Any
    hints: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def width(self) -> int:
        """Width in units of the SVG."""
        return round(float(self.figure.get_figwidth()) * 72)

    def svg(self) -> str:
        """Render it for the page: colours are CSS variables, ids are unique, title and description are included."""
        text = self._render()
        body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.S)
        body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)
        head, _, body = body.partition(">")
        view_box = re.search(r'viewBox="[^"]*"', head)
        for part, hint in self.hints.items():
            opening = f'<g id="{part}">'
            body = body.replace(opening, f"{opening}<title>{escape(hint)}</title>", 1)
        body = re.sub(r'\bid="', f'id="{self.name}-', body)
        body = re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", body)
        body = _FONT.sub(r"font\1: \2var(--sans)", body)
        body = _HEX.sub(lambda match: _VARIABLES.get(match[0], match[0]), body)
        labels = f"{self.name}-title {self.name}-text"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'{view_box[0] if view_box else ""} class="picture" role="img" aria-labelledby="{labels}">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-text">{escape(self.description)}</desc>{body}'
        )

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.svg and NAME.png in the light colours, on white.

        Returns:
            The two paths.

        Raises:
            CheckpointError: The folder cannot be written to.
        """
        paths = [folder / f"{self.name}.svg", folder / f"{self.name}.png"]
        for path in paths:
            with styled(), atomic_path(path) as staging:
                self.figure.savefig(staging, facecolor=LIGHT["paper"], dpi=_DPI, metadata=_metadata(path, self.title))
        return paths

    def _render(self) -> str:
        buffer = io.StringIO()
        with styled():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": self.title})
        return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Draw figures in the report's style, independent of the user's matplotlib settings.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise BackendError("reports need matplotlib and jinja2: pip install matplotlib jinja2") from error
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**defaults, **_STYLE}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the fonts of the page may have it
        yield


def _metadata(path: Path, title: str) -> dict[str, str | None]:
    return {"Date": None, "Title": title} if path.suffix == ".svg" else {"Title": title}
