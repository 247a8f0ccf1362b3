"""Colours of the page and its plots, light and dark; plots are drawn in the light ones."""

from collections.abc import Mapping

# Background: `paper` of the page, `panel` of cards and tables. Text: `ink` or `muted`. The contrast of text is at least
# 4.5:1 on both, that of marks 3:1. No two light colours are equal, as the page replaces them by variables.
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#1c2128",
    "muted": "#55606e",
    "rule": "#d3d9e0",
    "link": "#0a58b0",
    "warn": "#8a4b00",
    "mark-0": "#0b64b4",
    "mark-1": "#b94a12",
    "mark-2": "#0c7a5b",
    "mark-3": "#86398f",
    "mark-4": "#846000",
    "mark-5": "#5d6673",
    "heat-0": "#fdf5ea",
    "heat-1": "#fbe6cd",
    "heat-2": "#f7cfa6",
    "heat-3": "#f0b27e",
    "heat-4": "#e5915c",
    "heat-5": "#c96a3b",
    "heat-6": "#a84a22",
    "heat-7": "#813117",
    "heat-8": "#5a1c10",
    "on-heat-0": "#1c2127",
    "on-heat-1": "#1c2126",
    "on-heat-2": "#1c2125",
    "on-heat-3": "#1c2124",
    "on-heat-4": "#1c2123",
    "on-heat-5": "#120a06",
    "on-heat-6": "#fffffa",
    "on-heat-7": "#fffffb",
    "on-heat-8": "#fffffc",
}
DARK: Mapping[str, str] = {
    "paper": "#10151c",
    "panel": "#19202a",
    "ink": "#e8edf3",
    "muted": "#a5b0bd",
    "rule": "#36404d",
    "link": "#7db8ff",
    "warn": "#f0b45e",
    "mark-0": "#6fb3ff",
    "mark-1": "#ff9d6b",
    "mark-2": "#47cfa5",
    "mark-3": "#dd90e6",
    "mark-4": "#e0b84a",
    "mark-5": "#a9b3bf",
    "heat-0": "#1d2128",
    "heat-1": "#33261f",
    "heat-2": "#4d2e1e",
    "heat-3": "#6b391f",
    "heat-4": "#8c4722",
    "heat-5": "#bd6837",
    "heat-6": "#d98350",
    "heat-7": "#f0ad7e",
    "heat-8": "#fbdcbd",
    "on-heat-0": "#e8edf3",
    "on-heat-1": "#e8edf3",
    "on-heat-2": "#f2f2f2",
    "on-heat-3": "#fbf6f2",
    "on-heat-4": "#ffffff",
    "on-heat-5": "#120a06",
    "on-heat-6": "#120a06",
    "on-heat-7": "#1c1109",
    "on-heat-8": "#1c1109",
}
HEAT_LEVELS = 9
MARK_COLOURS = 6


def mark(index: int) -> str:
    """Return the colour of a run, by its index; it repeats after `MARK_COLOURS` runs, with other markers."""
    return LIGHT[f"mark-{index % MARK_COLOURS}"]
