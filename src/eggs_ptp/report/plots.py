"""The plots of a report. All are narrow, so that they can be read on a phone without zooming."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eggs_ptp.report.connectivity import BINS, Corner
from eggs_ptp.report.number_format import format_number, format_with_error
from eggs_ptp.report.palette import HEAT_LEVELS, LIGHT, mark
from eggs_ptp.report.picture import WIDTH, Picture, styled
from eggs_ptp.report.quality import Measurement

_MARKERS = "osD^vP"
_LINE_STYLES = ("-", "--", "-.", ":")
_BIN_WIDTHS = (1, 2, 4, 5, 8, 10)  # divisors of BINS: the smallest that leaves at most _MAX_BINS bins is used
_MAX_BINS = 40
_CELL_HEIGHT = 0.19  # inches, of a row of a heat map
_MAX_NUMBERED_BLOCKS = 16  # up to this many blocks the cells of a heat map show their numbers
_OTHER = LIGHT["mark-5"]  # colour of what is not a run


class Dot(NamedTuple):
    """A measured number in its own row.

    Attributes:
        label: Label of the row.
        measurement: The number.
        run_index: Index of the run, for its colour and marker; None if it is not a run.
    """

    label: str
    measurement: Measurement
    run_index: int | None


def dots(
    name: str, title: str, axis: str, rows: Sequence[Dot], reference: float | None = None, note: str = ""
) -> Picture:
    """Plot numbers with their error bars, one per row.

    Args:
        name: Name of the picture.
        title: Title of the picture.
        axis: Label of the axis.
        rows: The numbers.
        reference: Value of a dashed line.
        note: Text under the title.
    """
    with styled():
        figure, axes = _axes(0.8 + 0.36 * len(rows))
        for row, dot in enumerate(rows):
            value = dot.measurement.value
            low, high = _interval(dot.measurement)
            colour = _OTHER if dot.run_index is None else mark(dot.run_index)
            marker = "o" if dot.run_index is None else _marker(dot.run_index)
            axes.errorbar(
                [value], [row], xerr=[[value - low], [high - value]], fmt=marker, color=colour, capsize=3, markersize=6
            )
            text = format_with_error(value, dot.measurement.error)
            box = {"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 0.8}  # no line crosses the text
            position = (max(high, value), row)
            axes.annotate(text, position, (8, 0), textcoords="offset points", va="center", bbox=box)
        if reference is not None:
            axes.axvline(reference, color=_OTHER, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), [shorten(dot.label) for dot in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        lows, highs = zip(*(_interval(dot.measurement) for dot in rows), strict=True)
        lowest = min([*lows, reference or lows[0]])
        highest = max([*highs, reference or highs[0]])
        span = (highest - lowest) or abs(highest) or 1.0
        left = lowest - 0.08 * span
        axes.set_xlim(left, left + 1.16 * span / (1 - _label_share(rows)))
        axes.tick_params(axis="y", length=0)
        axes.grid(True)
        axes.set_xlabel(axis)
    values = "; ".join(
        f"{dot.label}: {format_with_error(dot.measurement.value, dot.measurement.error)}" for dot in rows
    )
    return Picture(name, title, f"{axis}. {values}.", figure, note=note)


def lines(
    name: str, title: str, axis: str, series: Mapping[str, Mapping[int, float]], run_indices: Sequence[int]
) -> Picture:
    """Plot one line per run over the blocks.

    Args:
        name: Name of the picture.
        title: Title of the picture.
        axis: Label of the vertical axis.
        series: Values by block, for each run by its label.
        run_indices: Indices of these runs.
    """
    with styled():
        figure, axes = _axes(2.6)
        for (label, values), run_index in zip(series.items(), run_indices, strict=True):
            axes.plot(
                list(values),
                list(values.values()),
                _line_style(run_index),
                color=mark(run_index),
                marker=_marker(run_index),
                markersize=4,
                label=shorten(label),
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("block")
        axes.set_ylabel(axis)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True, axis="y")
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=3)
    summary = "; ".join(
        f"{label}: highest {format_number(max(values.values()))} in block {max(values, key=values.__getitem__)}, "
        f"last {format_number(list(values.values())[-1])}"
        for label, values in series.items()
    )
    return Picture(name, title, f"{axis} by block. {summary}.", figure)


def heat_map(
    name: str, title: str, errors: Mapping[tuple[int, str], float], highest: float, linears: Sequence[str]
) -> Picture:
    """Plot the output error of every matrix as a heat map.

    Args:
        name: Name of the picture.
        title: Title of the picture.
        errors: Errors by block (rows) and linear (columns).
        highest: The error with the darkest colour.
        linears: The columns.
    """
    from matplotlib.patches import Rectangle

    blocks = sorted({block for block, _ in errors})
    width = max(WIDTH, 0.7 + 0.42 * len(linears))
    hints = {}
    with styled():
        figure, (axes, scale) = _stacked_axes(width, [_CELL_HEIGHT * len(blocks) + 0.1, 0.12])
        for (block, linear), error in errors.items():
            column = linears.index(linear)
            row = blocks.index(block)
            level = _heat_level(error, highest)
            cell = Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, facecolor=LIGHT[f"heat-{level}"], linewidth=0)
            cell.set_gid(f"cell-{row}-{column}")
            hints[f"cell-{row}-{column}"] = f"block {block}, {linear}: {format_number(error)}"
            axes.add_patch(cell)
            if len(blocks) <= _MAX_NUMBERED_BLOCKS:
                colour = LIGHT[f"on-heat-{level}"]
                center = (column + 0.5, row + 0.52)
                axes.text(*center, f"{error:.3f}", ha="center", va="center", fontsize=8.5, color=colour)
        axes.set_xlim(0, len(linears))
        axes.set_ylim(len(blocks), 0)
        axes.xaxis.tick_top()
        short_names = [linear.rpartition(".")[2] for linear in linears]
        names = short_names if len(set(short_names)) == len(short_names) else list(linears)
        axes.set_xticks(np.arange(len(linears)) + 0.5, names, rotation=35, ha="left", rotation_mode="anchor")
        step = max(1, len(blocks) // 16)
        axes.set_yticks(np.arange(0, len(blocks), step) + 0.5, [str(block) for block in blocks[::step]])
        axes.set_ylabel("block")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _draw_heat_scale(scale, highest)
    (block, linear), worst = max(errors.items(), key=lambda item: item[1])
    mean = format_number(sum(errors.values()) / len(errors))
    summary = f"Highest {format_number(worst)} in block {block}, {linear}; mean {mean} over {len(errors)} matrices."
    return Picture(name, title, f"Relative output error by block and linear. {summary}", figure, hints)


def ridges(name: str, title: str, shares: Mapping[str, Mapping[str, NDArray[np.int64]]]) -> Picture:
    """Plot distributions of the share of outputs that an input is connected to: a panel per linear, a line per run.

    Args:
        name: Name of the picture.
        title: Title of the picture.
        shares: For each run by its label, histograms with `BINS` bins by linear.
    """
    linears = list(dict.fromkeys(linear for histograms in shares.values() for linear in histograms))
    total = sum(histogram for histograms in shares.values() for histogram in histograms.values())
    filled = np.flatnonzero(total)
    bin_width = next(width for width in _BIN_WIDTHS if filled[-1] - filled[0] < _MAX_BINS * width)
    edges = np.arange(BINS // bin_width + 1) * bin_width / BINS
    low = edges[max(0, filled[0] // bin_width - 1)]
    high = edges[min(BINS // bin_width, filled[-1] // bin_width + 2)]
    with styled():
        figure, panels = _panels(len(linears), 0.6 * len(linears) + 0.9)
        for panel, linear in zip(panels, linears, strict=True):
            for run_index, (label, histograms) in enumerate(shares.items()):
                if linear in histograms:
                    histogram = histograms[linear]
                    share = histogram.reshape(-1, bin_width).sum(1) / histogram.sum()
                    panel.stairs(
                        share,
                        edges,
                        color=mark(run_index),
                        linestyle=_line_style(run_index),
                        linewidth=1.5,
                        label=shorten(label),
                    )
            panel.set_xlim(low, high)
            panel.set_yticks([])
            panel.set_ylim(bottom=0)
            panel.spines["left"].set_visible(False)
            panel.text(0, 0.8, linear.rpartition(".")[2], transform=panel.transAxes, va="center")
        panels[-1].set_xlabel("share of the outputs that an input is connected to")
        if len(shares) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    centers = (np.arange(BINS) + 0.5) / BINS
    deviations = "; ".join(
        f"{label}: standard deviation {_standard_deviation(sum(histograms.values()), centers):.3f}"
        for label, histograms in shares.items()
    )
    description = f"Distributions by linear, of all inputs that were read. Over all linears, {deviations}."
    return Picture(name, title, description, figure)


def mask_corners(name: str, title: str, corners: Mapping[str, Corner]) -> Picture:
    """Draw the first rows and columns of one matrix in each run: kept weights, and lines between N:M groups.

    Args:
        name: Name of the picture.
        title: Title of the picture.
        corners: Corners of the mask, by label of the run.
    """
    from matplotlib.patches import PathPatch

    rows, columns = next(iter(corners.values())).mask.shape
    height = WIDTH * 0.94 * rows / max(columns, 48)
    with styled():
        figure, panels = _panels(len(corners), (height + 0.24) * len(corners) + 0.3)
        for run_index, (panel, (label, corner)) in enumerate(zip(panels, corners.items(), strict=True)):
            panel.add_patch(PathPatch(_mask_path(corner.mask), facecolor=mark(run_index), linewidth=0))
            if corner.pattern is not None:
                boundaries = range(0, columns + 1, corner.pattern.group)
                panel.vlines(boundaries, 0, rows, colors=LIGHT["muted"], linewidth=0.5)
            panel.set_xlim(0, columns)
            panel.set_ylim(rows, 0)
            panel.set_aspect("equal")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(True)
            panel.set_title(shorten(label))
    summary = "; ".join(f"{label}: {_corner_text(corner)}" for label, corner in corners.items())
    description = f"The first {rows} outputs (rows) and {columns} inputs (columns). {summary}."
    return Picture(name, title, description, figure)


def shorten(text: str, max_letters: int = 22) -> str:
    """Cut a long label in the middle, as labels of runs often differ at their ends."""
    text = f" {text}" if text.startswith("_") else text  # matplotlib omits labels with a leading _ from legends
    if len(text) <= max_letters:
        return text
    return f"{text[: max_letters // 2 - 1]}…{text[-(max_letters // 2) :]}"


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _stacked_axes(width: float, heights: Sequence[float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights) + 1.0), layout="constrained")
    return figure, figure.subplots(len(heights), 1, height_ratios=heights)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _label_share(rows: Sequence[Dot]) -> float:
    """Return the share of the axes that the number next to the last dot takes: a letter is about 6.4 units wide."""
    number_letters = max(len(format_with_error(dot.measurement.value, dot.measurement.error)) for dot in rows)
    label_letters = max(len(shorten(dot.label)) for dot in rows)
    return min(0.75, (6.4 * number_letters + 14) / (72 * WIDTH - 6.4 * label_letters - 24))


def _interval(measurement: Measurement) -> tuple[float, float]:
    """Return the measured interval, or the value plus and minus one standard error, or the value itself."""
    if measurement.low is not None and measurement.high is not None:
        return measurement.low, measurement.high
    error = measurement.error or 0.0
    return measurement.value - error, measurement.value + error


def _marker(run_index: int) -> str:
    return _MARKERS[run_index % len(_MARKERS)]


def _line_style(run_index: int) -> str:
    return _LINE_STYLES[run_index % len(_LINE_STYLES)]


def _heat_level(error: float, highest: float) -> int:
    return min(HEAT_LEVELS - 1, int(error / highest * HEAT_LEVELS)) if highest else 0


def _draw_heat_scale(axes: Any, highest: float) -> None:
    """Draw the colour scale of a heat map."""
    from matplotlib.patches import Rectangle

    for level in range(HEAT_LEVELS):
        axes.add_patch(Rectangle((level, 0), 1, 1, facecolor=LIGHT[f"heat-{level}"], linewidth=0))
    ticks = (0, HEAT_LEVELS / 3, 2 * HEAT_LEVELS / 3, HEAT_LEVELS)
    axes.set_xlim(0, HEAT_LEVELS)
    axes.set_ylim(0, 1)
    axes.set_xticks(ticks, [f"{highest * tick / HEAT_LEVELS:.2g}" for tick in ticks])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _mask_path(mask: NDArray[np.bool_]) -> Any:
    """Return a path with one rectangle around each run of neighbouring kept weights in a row."""
    from matplotlib.path import Path

    vertices = []
    codes = []
    for row, kept in enumerate(mask):
        steps = np.diff(np.concatenate(([0], kept.astype(np.int8), [0])))
        for start, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
            top = row + 0.08
            bottom = row + 0.92
            left = start + 0.08
            right = end - 0.08
            vertices += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
            codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(vertices or [(0, 0)], codes or [Path.MOVETO])


def _corner_text(corner: Corner) -> str:
    pattern = f", {corner.pattern} in every group" if corner.pattern else ""
    return f"{corner.mask.mean():.0%} kept{pattern}"


def _standard_deviation(counts: Any, centers: NDArray[np.float64]) -> float:
    mean = float((counts * centers).sum() / counts.sum())
    return float(np.sqrt((counts * (centers - mean) ** 2).sum() / counts.sum()))
