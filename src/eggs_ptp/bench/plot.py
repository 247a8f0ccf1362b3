"""A picture of a bench: how many times faster packed is than the best dense product, over the batch."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from eggs_ptp.bench.shape import Measured

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 392, 60, 52, 260, 50
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#b8860b", "#444444", "#e07b39", "#2a9d8f")


def plot(measured: Sequence[Measured], title: str) -> str:
    """An SVG with a line for each shape, pattern and type; hollow points are not trusted, 1.0 is dense."""
    lines: dict[str, dict[int, tuple[float, bool]]] = {}
    for each in measured:
        for name, found in each.ratios().items():
            lines.setdefault(f"{each.rows}x{each.columns} {name.split(' over ')[0]}", {})[each.batch] = found
    batches = sorted({each.batch for each in measured})
    top = max([1.0, *(value for line in lines.values() for value, _ in line.values())]) * 1.1

    def x(batch: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (batches.index(batch) + 0.5) / len(batches)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    what = "how many times faster packed is than the fastest dense product of its type"
    parts = [_text(10, 16, title, "start", 11), _text(10, 34, what, "start")]
    for tick in range(int(top / 0.5) + 1):
        level, colour = y(tick / 2), "#888" if tick == 2 else "#ddd"
        parts += [
            _line([(_LEFT, level), (_WIDTH - _RIGHT, level)], colour),
            _text(_LEFT - 8, level + 4, f"{tick / 2}x"),
        ]
    parts += [_text(x(batch), _HEIGHT - _BOTTOM + 18, str(batch), "middle") for batch in batches]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "inputs at once (batch)", "middle"))
    for index, (name, line) in enumerate(lines.items()):
        colour, level = _COLOURS[index % len(_COLOURS)], _TOP + 18 * index
        parts.append(_line([(x(batch), y(value)) for batch, (value, _) in line.items()], colour, 2))
        for batch, (value, trusted) in line.items():
            parts.append(_dot(x(batch), y(value), colour, trusted))
        parts += [
            _dot(_WIDTH - _RIGHT + 16, level, colour, True),
            _text(_WIDTH - _RIGHT + 26, level + 4, name, "start"),
        ]
    size = f'width="{_WIDTH}" height="{max(_HEIGHT, _TOP + 18 * len(lines) + 20)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "end", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, width: int = 1) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _dot(x: float, y: float, colour: str, filled: bool) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="{colour}" fill="{colour if filled else "white"}"/>'
