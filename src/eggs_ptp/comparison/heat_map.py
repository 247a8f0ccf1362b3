"""Figure 1 of Symmetric Pruning on any matrix: |W| as a heat map, and how striped it is in numbers."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eggs_ptp import api
from eggs_ptp.engine.fused import open_dense
from eggs_ptp.errors import ModelError
from eggs_ptp.method.nearest import nearest
from eggs_ptp.report.palette import HEATS, LIGHT
from eggs_ptp.report.picture import WIDTH, Picture, styled

_DOTS: Final = 256  # of the picture, on either side at most
_BRIGHTEST: Final = (
    0.99  # quantile of what is drawn that has the darkest colour: a few outliers would leave the rest blank
)


@dataclass(frozen=True)
class Stripes:
    """How much of the variance of |W_ij| lies between inputs (columns j) and between outputs (rows i).

    by_input = var_j(mean_i |W_ij|) / var_ij |W_ij|, by_output likewise. Entries without any order would have about
    1 / outputs and 1 / inputs: `input_ratio` and `output_ratio` are multiples of that. Above 1: striped.
    """

    shape: tuple[int, int]
    by_input: float
    by_output: float

    @property
    def input_ratio(self) -> float:
        """Share between inputs over what chance gives."""
        return self.by_input * self.shape[0]

    @property
    def output_ratio(self) -> float:
        """Share between outputs over what chance gives."""
        return self.by_output * self.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "input_ratio": self.input_ratio, "output_ratio": self.output_ratio}


def matrix_of(model: str, name: str | None = None) -> tuple[str, Tensor]:
    """A matrix that pruning would prune, (out, in) in float32; the first of the middle block unless named.

    Raises:
        ModelError: there is no such matrix (names the nearest), or it is not stored on its own.
        NumericsError: it holds NaN or infinity.
    """
    plan = api.plan(model, method="magnitude", pattern="0.5")
    names = [matrix.name for matrix in plan.matrices]
    if name is not None and name not in names:
        raise ModelError(f"{model} has no matrix {name!r}{nearest(name, names)}; the first is {names[0]}")
    found = next(m for m in plan.matrices if (m.name == name if name else m.block == plan.blocks // 2))
    weight = open_dense(api.find(model)).read_sound(f"{found.name}.weight").float()
    return found.name, weight.T.contiguous() if found.transposed else weight


def stripes(weight: Tensor) -> Stripes:
    """See `Stripes`; in float64.

    Raises:
        ModelError: all entries are alike, so there is no variance to share out.
    """
    size = weight.abs().double()
    total = float(size.var(correction=0))
    if total == 0:
        raise ModelError("every entry of the matrix has the same absolute value; draw another one")
    between = [float(size.mean(axis).var(correction=0)) / total for axis in (0, 1)]
    return Stripes((weight.shape[0], weight.shape[1]), *between)


def heat_map(name: str, weight: Tensor) -> Picture:
    """|W|, outputs downwards and inputs across, mean over tiles where there are more entries than dots."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    found, tiles = stripes(weight), _tiles(weight.abs())
    with styled():
        figure = Figure(
            figsize=(WIDTH, WIDTH * min(1.6, max(0.5, tiles.shape[0] / tiles.shape[1]))), layout="constrained"
        )
        axes = figure.subplots()
        colours = ListedColormap([LIGHT[f"heat-{level}"] for level in range(HEATS)])
        drawn = axes.imshow(
            tiles,
            cmap=colours,
            vmin=0,
            vmax=float(np.quantile(tiles, _BRIGHTEST)),
            extent=(0, weight.shape[1], weight.shape[0], 0),
            aspect="auto",
            interpolation="nearest",
        )
        figure.colorbar(drawn, ax=axes, label="|W|", fraction=0.05)
        axes.set_xlabel("input")
        axes.set_ylabel("output")
        axes.set_title(name)
    said = (
        f"|W| of {name}. Of its variance {found.by_input:.2%} lies between inputs, {found.input_ratio:.1f} times what "
        f"chance gives, and {found.by_output:.2%} between outputs, {found.output_ratio:.1f} times."
    )
    return Picture("figure-1", f"Heat map of {name}", said, figure)


def _tiles(size: Tensor) -> NDArray[np.float32]:
    """Means over tiles, at most `_DOTS` on either side."""
    shape = (min(_DOTS, size.shape[0]), min(_DOTS, size.shape[1]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(size[None, None].float(), shape)
    return np.asarray(pooled[0, 0].numpy(), dtype=np.float32)
