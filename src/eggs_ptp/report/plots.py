"""Plots: what is drawn. Every one is narrow, so that it needs no zooming on a phone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eggs_ptp.report.connectivity import BINS, Corner
from eggs_ptp.report.palette import HEATS, LIGHT, mark
from eggs_ptp.report.picture import WIDTH, Picture, styled
from eggs_ptp.report.quality import Figure
from eggs_ptp.report.words import plain, with_error

_SHAPES = "osD^vP"
_DASHES = ("-", "--", "-.", ":")
_BINS_TOGETHER = (1, 2, 4, 5, 8, 10)  # parts of BINS: so many are drawn as one that there are _MOST_BINS or fewer
_MOST_BINS = 40
_CELL = 0.19  # inches that a row of a heat map is high
_NUMBERED = 16  # blocks up to which the cells of a heat map have their numbers in them


class Dot(NamedTuple):
    """A measured number in a row of its own; `place` is that of the run, for its colour, None of what is no run."""

    row: str
    figure: Figure
    place: int | None


def dots(
    name: str, title: str, axis: str, found: Sequence[Dot], reference: float | None = None, note: str = ""
) -> Picture:
    """Numbers with their error bars, a row each; a dashed line at `reference`."""
    with styled():
        figure, axes = _axes(0.8 + 0.36 * len(found))
        for row, each in enumerate(found):
            value, (low, high) = each.figure.value, _ends(each.figure)
            colour = LIGHT["mark-5"] if each.place is None else mark(each.place)
            shape = "o" if each.place is None else _shape(each.place)
            axes.errorbar(
                [value], [row], xerr=[[value - low], [high - value]], fmt=shape, color=colour, capsize=3, markersize=6
            )
            text = with_error(value, each.figure.error)
            box = {"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 0.8}  # nothing is drawn through letters
            end = (max(high, value), row)
            axes.annotate(text, end, (8, 0), textcoords="offset points", va="center", bbox=box)
        if reference is not None:
            axes.axvline(reference, color=LIGHT["mark-5"], linestyle="--", linewidth=1)
        axes.set_yticks(range(len(found)), [short(each.row) for each in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        lows, highs = zip(*(_ends(each.figure) for each in found), strict=True)
        least, most = (min([*lows, reference or lows[0]]), max([*highs, reference or highs[0]]))
        span = (most - least) or abs(most) or 1.0
        axes.set_xlim(least - 0.08 * span, least - 0.08 * span + 1.16 * span / (1 - _label_share(found)))
        axes.tick_params(axis="y", length=0)
        axes.grid(True)
        axes.set_xlabel(axis)
    said = "; ".join(f"{each.row}: {with_error(each.figure.value, each.figure.error)}" for each in found)
    return Picture(name, title, f"{axis}. {said}.", figure, note=note)


def lines(name: str, title: str, axis: str, found: Mapping[str, Mapping[int, float]], places: Sequence[int]) -> Picture:
    """A line a run over the blocks."""
    with styled():
        figure, axes = _axes(2.6)
        for (label, values), place in zip(found.items(), places, strict=True):
            dashes = _DASHES[place % len(_DASHES)]
            how = {"color": mark(place), "marker": _shape(place), "markersize": 4, "label": short(label)}
            axes.plot(list(values), list(values.values()), dashes, **how)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("block")
        axes.set_ylabel(axis)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True, axis="y")
        if len(found) > 1:
            figure.legend(loc="outside upper left", ncols=3)
    said = "; ".join(
        f"{label}: highest {plain(max(values.values()))} in block {max(values, key=values.__getitem__)}, "
        f"last {plain(list(values.values())[-1])}"
        for label, values in found.items()
    )
    return Picture(name, title, f"{axis} by block. {said}.", figure)


def heat(
    name: str, title: str, errors: Mapping[tuple[int, str], float], most: float, linears: Sequence[str]
) -> Picture:
    """The output error of every matrix, blocks downwards, linears across; `most` is the darkest."""
    from matplotlib.patches import Rectangle

    blocks = sorted({block for block, _ in errors})
    width = max(WIDTH, 0.7 + 0.42 * len(linears))
    hints = {}
    with styled():
        figure, (axes, scale) = _stacked(width, [_CELL * len(blocks) + 0.1, 0.12])
        for (block, linear), error in errors.items():
            x, y = linears.index(linear), blocks.index(block)
            level = _level(error, most)
            cell = Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=LIGHT[f"heat-{level}"], linewidth=0)
            cell.set_gid(f"cell-{y}-{x}")
            hints[f"cell-{y}-{x}"] = f"block {block}, {linear}: {plain(error)}"
            axes.add_patch(cell)
            if len(blocks) <= _NUMBERED:
                colour = LIGHT[f"on-heat-{level}"]
                axes.text(x + 0.5, y + 0.52, f"{error:.3f}", ha="center", va="center", fontsize=8.5, color=colour)
        axes.set_xlim(0, len(linears))
        axes.set_ylim(len(blocks), 0)
        axes.xaxis.tick_top()
        names = [linear.rpartition(".")[2] for linear in linears]
        names = names if len(set(names)) == len(names) else list(linears)
        axes.set_xticks(np.arange(len(linears)) + 0.5, names, rotation=35, ha="left", rotation_mode="anchor")
        step = max(1, len(blocks) // 16)
        axes.set_yticks(np.arange(0, len(blocks), step) + 0.5, [str(block) for block in blocks[::step]])
        axes.set_ylabel("block")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _scale(scale, most)
    (block, linear), worst = max(errors.items(), key=lambda found: found[1])
    mean = sum(errors.values()) / len(errors)
    said = f"Highest {plain(worst)} in block {block}, {linear}; mean {plain(mean)} over {len(errors)} matrices."
    return Picture(name, title, f"Relative output error by block and linear. {said}", figure, hints)


def ridges(name: str, title: str, shares: Mapping[str, Mapping[str, NDArray[np.int64]]]) -> Picture:
    """Distributions of the share of outputs that an input is connected with: a panel a linear, a line a run."""
    linears = list(dict.fromkeys(linear for found in shares.values() for linear in found))
    filled = np.flatnonzero(sum(count for found in shares.values() for count in found.values()))
    width = next(each for each in _BINS_TOGETHER if filled[-1] - filled[0] < _MOST_BINS * each)
    edges = np.arange(BINS // width + 1) * width / BINS
    low, high = edges[max(0, filled[0] // width - 1)], edges[min(BINS // width, filled[-1] // width + 2)]
    with styled():
        figure, panels = _panels(len(linears), 0.6 * len(linears) + 0.9)
        for panel, linear in zip(panels, linears, strict=True):
            for place, found in enumerate(shares.values()):
                if linear in found:
                    share = found[linear].reshape(-1, width).sum(1) / found[linear].sum()
                    dashes = _DASHES[place % len(_DASHES)]
                    label = short(list(shares)[place])
                    panel.stairs(share, edges, color=mark(place), linestyle=dashes, linewidth=1.5, label=label)
            panel.set_xlim(low, high)
            panel.set_yticks([])
            panel.set_ylim(bottom=0)
            panel.spines["left"].set_visible(False)
            panel.text(0, 0.8, linear.rpartition(".")[2], transform=panel.transAxes, va="center")
        panels[-1].set_xlabel("share of the outputs that an input is connected with")
        if len(shares) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    middles = (np.arange(BINS) + 0.5) / BINS
    said = "; ".join(
        f"{label}: standard deviation {_deviation(sum(found.values()), middles):.3f}" for label, found in shares.items()
    )
    return Picture(name, title, f"Distributions by linear, of all inputs read. Over all linears, {said}.", figure)


def corners(name: str, title: str, found: Mapping[str, Corner]) -> Picture:
    """The first rows and columns of one matrix in each run: a mark where a weight was kept, lines between groups."""
    from matplotlib.patches import PathPatch

    rows, columns = next(iter(found.values())).mask.shape
    high = WIDTH * 0.94 * rows / max(columns, 48)
    with styled():
        figure, panels = _panels(len(found), (high + 0.24) * len(found) + 0.3)
        for place, (panel, (label, corner)) in enumerate(zip(panels, found.items(), strict=True)):
            panel.add_patch(PathPatch(_cells(corner.mask), facecolor=mark(place), linewidth=0))
            if corner.pattern is not None:
                panel.vlines(range(0, columns + 1, corner.pattern.group), 0, rows, colors=LIGHT["muted"], linewidth=0.5)
            panel.set_xlim(0, columns)
            panel.set_ylim(rows, 0)
            panel.set_aspect("equal")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(True)
            panel.set_title(short(label))
    said = "; ".join(f"{label}: {_held(corner)}" for label, corner in found.items())
    return Picture(name, title, f"The first {rows} outputs downwards and {columns} inputs across. {said}.", figure)


def short(text: str, most: int = 22) -> str:
    """A label cut in its middle, so that what tells runs apart, its ends, can be read."""
    text = f" {text}" if text.startswith("_") else text  # matplotlib leaves such names out of legends
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _axes(height: float, width: float = WIDTH) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Drawn

    figure = Drawn(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _stacked(width: float, heights: Sequence[float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Drawn

    figure = Drawn(figsize=(width, sum(heights) + 1.0), layout="constrained")
    return figure, figure.subplots(len(heights), 1, height_ratios=heights)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure as Drawn

    figure = Drawn(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _label_share(found: Sequence[Dot]) -> float:
    """The part of the axes that the number beside the last dot takes: letters are some 6.4 units wide."""
    numbers = max(len(with_error(each.figure.value, each.figure.error)) for each in found)
    rows = max(len(short(each.row)) for each in found)
    return min(0.75, (6.4 * numbers + 14) / (72 * WIDTH - 6.4 * rows - 24))


def _ends(figure: Figure) -> tuple[float, float]:
    """The interval, or one standard error to both sides, or the number itself."""
    if figure.low is not None and figure.high is not None:
        return figure.low, figure.high
    error = figure.error or 0.0
    return figure.value - error, figure.value + error


def _shape(place: int) -> str:
    return _SHAPES[place % len(_SHAPES)]


def _level(error: float, most: float) -> int:
    return min(HEATS - 1, int(error / most * HEATS)) if most else 0


def _scale(axes: Any, most: float) -> None:
    """What the colours of a heat map mean."""
    from matplotlib.patches import Rectangle

    for level in range(HEATS):
        axes.add_patch(Rectangle((level, 0), 1, 1, facecolor=LIGHT[f"heat-{level}"], linewidth=0))
    ticks = (0, HEATS / 3, 2 * HEATS / 3, HEATS)
    axes.set_xlim(0, HEATS)
    axes.set_ylim(0, 1)
    axes.set_xticks(ticks, [f"{most * tick / HEATS:.2g}" for tick in ticks])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cells(mask: NDArray[np.bool_]) -> Any:
    """One path around every run of kept weights of a row."""
    from matplotlib.path import Path

    corners_, codes = [], []
    for row, kept in enumerate(mask):
        steps = np.diff(np.concatenate(([0], kept.astype(np.int8), [0])))
        for start, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
            top, bottom, left, right = row + 0.08, row + 0.92, start + 0.08, end - 0.08
            corners_ += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
            codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(corners_ or [(0, 0)], codes or [Path.MOVETO])


def _held(corner: Corner) -> str:
    pattern = f", {corner.pattern} in every group" if corner.pattern else ""
    return f"{corner.mask.mean():.0%} kept{pattern}"


def _deviation(counts: Any, middles: NDArray[np.float64]) -> float:
    mean = float((counts * middles).sum() / counts.sum())
    return float(np.sqrt((counts * (middles - mean) ** 2).sum() / counts.sum()))
