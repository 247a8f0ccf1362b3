"""Contrast, computed from the colours that the page itself has: 4.5:1 for text, 3:1 for what is drawn."""

import re
from itertools import pairwise

import pytest

from eggs_ptp.report.page import html
from eggs_ptp.report.palette import HEATS, MARKS
from eggs_ptp.report.report import Report

TEXT, DRAWN = 4.5, 3.0


def luminance(colour):
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def themes():
    text = html(Report((), ()))
    blocks = re.findall(r":root \{\n((?:--[\w-]+: #[0-9a-f]{6};\n)+)\}", text)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def test_there_are_a_light_and_a_dark_theme(themes):
    light, dark = themes
    assert luminance(light["paper"]) > 0.9
    assert luminance(dark["paper"]) < 0.02


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_drawings_can_be_seen(themes, theme):
    colours = themes[theme]
    pairs = {(text, ground): TEXT for text in ("ink", "muted", "link", "warn") for ground in ("paper", "panel")}
    pairs |= {(f"on-heat-{level}", f"heat-{level}"): TEXT for level in range(HEATS)}
    pairs |= {(f"mark-{place}", "paper"): DRAWN for place in range(MARKS)}
    faint = {pair: contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in faint.items() if ratio < pairs[pair]} == {}
    assert len(pairs) == 8 + HEATS + MARKS


@pytest.mark.parametrize("theme", [0, 1])
def test_heat_goes_one_way_from_the_paper(themes, theme):
    colours = themes[theme]
    steps = [contrast(colours[f"heat-{level}"], colours["paper"]) for level in range(HEATS)]
    assert steps == sorted(steps)
    assert min(after / before for before, after in pairwise(steps)) > 1.05


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
