"""Contrast, computed from the colours in the page: 4.5:1 for text, 3:1 for drawings."""

import re
from itertools import pairwise

import pytest

from eggs_ptp.report.page import render_html
from eggs_ptp.report.palette import HEAT_LEVELS, MARK_COLOURS
from eggs_ptp.report.report import Report

MIN_TEXT_CONTRAST = 4.5
MIN_MARK_CONTRAST = 3.0


def luminance(colour):
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def themes():
    text = render_html(Report((), ()))
    blocks = re.findall(r":root \{\n((?:--[\w-]+: #[0-9a-f]{6};\n)+)\}", text)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def test_there_are_a_light_and_a_dark_theme(themes):
    light, dark = themes
    assert luminance(light["paper"]) > 0.9
    assert luminance(dark["paper"]) < 0.02


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_drawings_have_enough_contrast(themes, theme):
    colours = themes[theme]
    pairs = {
        (text, background): MIN_TEXT_CONTRAST
        for text in ("ink", "muted", "link", "warn")
        for background in ("paper", "panel")
    }
    pairs |= {(f"on-heat-{level}", f"heat-{level}"): MIN_TEXT_CONTRAST for level in range(HEAT_LEVELS)}
    pairs |= {(f"mark-{index}", "paper"): MIN_MARK_CONTRAST for index in range(MARK_COLOURS)}
    contrasts = {pair: contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in contrasts.items() if ratio < pairs[pair]} == {}
    assert len(pairs) == 8 + HEAT_LEVELS + MARK_COLOURS


@pytest.mark.parametrize("theme", [0, 1])
def test_heat_colours_have_increasing_contrast(themes, theme):
    colours = themes[theme]
    steps = [contrast(colours[f"heat-{level}"], colours["paper"]) for level in range(HEAT_LEVELS)]
    assert steps == sorted(steps)
    assert min(after / before for before, after in pairwise(steps)) > 1.05


def test_contrast_is_as_in_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
