"""Page: a report as one HTML file, and as Markdown for a model card."""

import re
from importlib.metadata import version
from typing import Any

from eggs_ptp.errors import BackendError
from eggs_ptp.report.palette import DARK, LIGHT
from eggs_ptp.report.report import Report

_TEMPLATES = "eggs_ptp.report"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def html(report: Report) -> str:
    """One file that needs no other and no network: styles, script and pictures are in it.

    Raises:
        BackendError: jinja2 is not installed.
    """
    names = [run.label for run in report.runs]
    text: str = (
        _environment()
        .get_template("page.html")
        .render(report=report, light=LIGHT, dark=DARK, version=version("eggs-ptp"), names=names)
    )
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def markdown(report: Report) -> str:
    """The headline, tables and texts, without pictures: to be put into a model card.

    Raises:
        BackendError: jinja2 is not installed.
    """
    text: str = _environment().get_template("card.md").render(report=report, version=version("eggs-ptp"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise BackendError("reports need matplotlib and jinja2: pip install 'eggs-ptp[report]'") from error
    made = Environment(
        loader=PackageLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg"] = lambda picture: Markup(picture.svg())  # noqa: S704  made by us, every text in it escaped
    made.filters["md"] = lambda text: Markup(_escaped(str(text)))  # noqa: S704  Markdown has an escaping of its own
    return made


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
