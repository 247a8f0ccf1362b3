"""A plot of a benchmark: how many times faster packed is than the best dense product, over the batch."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from eggs_ptp.bench.product import ProductMeasurement

_WIDTH = 760
_HEIGHT = 392
_LEFT = 60  # margins
_TOP = 52
_RIGHT = 260
_BOTTOM = 50
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#b8860b", "#444444", "#e07b39", "#2a9d8f")


def plot(products: Sequence[ProductMeasurement], title: str) -> str:
    """Return an SVG with a line for each shape, pattern and type; hollow points are not trusted, 1.0 is dense."""
    series: dict[str, dict[int, tuple[float, bool]]] = {}
    for product in products:
        for name, ratio in product.ratios().items():
            label = f"{product.rows}x{product.columns} {name.split(' over ')[0]}"
            series.setdefault(label, {})[product.batch] = ratio
    batches = sorted({product.batch for product in products})
    top = max([1.0, *(value for ratios in series.values() for value, _ in ratios.values())]) * 1.1

    def x(batch: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (batches.index(batch) + 0.5) / len(batches)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    subtitle = "how many times faster packed is than the fastest dense product of its type"
    elements = [_text(10, 16, title, "start", 11), _text(10, 34, subtitle, "start")]
    for tick in range(int(top / 0.5) + 1):
        level = y(tick / 2)
        colour = "#888" if tick == 2 else "#ddd"
        elements.append(_line([(_LEFT, level), (_WIDTH - _RIGHT, level)], colour))
        elements.append(_text(_LEFT - 8, level + 4, f"{tick / 2}x"))
    elements += [_text(x(batch), _HEIGHT - _BOTTOM + 18, str(batch), "middle") for batch in batches]
    elements.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "inputs at once (batch)", "middle"))
    for index, (label, ratios) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        level = _TOP + 18 * index
        elements.append(_line([(x(batch), y(value)) for batch, (value, _) in ratios.items()], colour, 2))
        for batch, (value, trusted) in ratios.items():
            elements.append(_dot(x(batch), y(value), colour, trusted))
        elements.append(_dot(_WIDTH - _RIGHT + 16, level, colour, True))
        elements.append(_text(_WIDTH - _RIGHT + 26, level + 4, label, "start"))
    size = f'width="{_WIDTH}" height="{max(_HEIGHT, _TOP + 18 * len(series) + 20)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *elements, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "end", size: int = 12) -> str:
    """Return an SVG text; `anchor` says which end of it is at (x, y)."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, width: int = 1) -> str:
    """Return an SVG line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _dot(x: float, y: float, colour: str, filled: bool) -> str:
    """Return an SVG point, filled or hollow."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="{colour}" fill="{colour if filled else "white"}"/>'
