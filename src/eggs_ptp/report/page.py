"""A report as one HTML page, and as Markdown for a model card."""

import re
from importlib.metadata import version
from typing import Any

from eggs_ptp.errors import BackendError
from eggs_ptp.report.palette import DARK, LIGHT
from eggs_ptp.report.report import Report

_PACKAGE = "eggs_ptp.report"  # its folder `templates`
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def render_html(report: Report) -> str:
    """Render a report as one HTML file, which includes styles, script and plots and needs no network.

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


def render_markdown(report: Report) -> str:
    """Render a report as Markdown without plots, for a model card.

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
        raise BackendError("reports need matplotlib and jinja2: pip install matplotlib jinja2") from error
    environment = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda picture: Markup(picture.svg())  # noqa: S704  its texts are escaped
    environment.filters["md"] = lambda text: Markup(_escape_markdown(str(text)))  # noqa: S704  escaped for Markdown
    return environment


def _escape_markdown(text: str) -> str:
    """Escape text, and put it on one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split()))
