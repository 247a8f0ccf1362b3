"""Figure 1 of Symmetric Pruning for any matrix: a heat map of |W|, and how striped it is."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eggs_ptp import api
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.errors import ModelError
from eggs_ptp.method.nearest import nearest
from eggs_ptp.report.palette import HEAT_LEVELS, LIGHT
from eggs_ptp.report.picture import WIDTH, Picture, styled

_MAX_PIXELS: Final = 256  # of the heat map in each direction
_MAX_COLOUR_QUANTILE: Final = 0.99  # of the drawn values: scaled to a few outliers, the rest would be blank


@dataclass(frozen=True)
class Stripes:
    """Shares of the variance of |W_ij| between inputs (columns j) and between outputs (rows i).

    Attributes:
        shape: (out, in).
        by_input: var_j(mean_i |W_ij|) / var_ij |W_ij|; about 1 / out for independent entries.
        by_output: var_i(mean_j |W_ij|) / var_ij |W_ij|; about 1 / in for independent entries.
    """

    shape: tuple[int, int]
    by_input: float
    by_output: float

    @property
    def input_ratio(self) -> float:
        """`by_input` divided by its value for independent entries; above 1, columns are stripes."""
        return self.by_input * self.shape[0]

    @property
    def output_ratio(self) -> float:
        """`by_output` divided by its value for independent entries; above 1, rows are stripes."""
        return self.by_output * self.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "input_ratio": self.input_ratio, "output_ratio": self.output_ratio}


def read_matrix(model: str, name: str | None = None) -> tuple[str, Tensor]:
    """Read a prunable matrix of a model.

    Args:
        model: A model folder, a hub name, or `demo`.
        name: The matrix; None for the first one of the middle block.

    Returns:
        Its name, and the matrix (out, in) in float32.

    Raises:
        ModelError: There is no such matrix (names the nearest), or it is not stored as a tensor of its own.
        NumericsError: It holds NaN or infinity.
    """
    plan = api.plan(model, method="magnitude", pattern="0.5")
    names = [matrix.name for matrix in plan.matrices]
    if name is not None and name not in names:
        raise ModelError(f"{model} has no matrix {name!r}{nearest(name, names)}; the first is {names[0]}")
    middle = plan.blocks // 2
    matrix = next(matrix for matrix in plan.matrices if (matrix.name == name if name else matrix.block == middle))
    weight = open_dense(api.find(model)).read_sound(f"{matrix.name}.weight").float()
    return matrix.name, weight.T.contiguous() if matrix.transposed else weight


def stripes(weight: Tensor) -> Stripes:
    """Measure how striped a matrix (out, in) is, in float64.

    Raises:
        ModelError: All entries have the same absolute value, so there is no variance.
    """
    magnitude = weight.abs().double()
    variance = float(magnitude.var(correction=0))
    if variance == 0:
        raise ModelError("every entry of the matrix has the same absolute value; draw another one")
    by_input, by_output = (float(magnitude.mean(axis).var(correction=0)) / variance for axis in (0, 1))
    return Stripes((weight.shape[0], weight.shape[1]), by_input, by_output)


def heat_map(name: str, weight: Tensor) -> Picture:
    """Draw |W| with outputs as rows and inputs as columns, averaged over tiles if it has more entries than pixels."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    measured = stripes(weight)
    pixels = tile_means(weight.abs())
    aspect = min(1.6, max(0.5, pixels.shape[0] / pixels.shape[1]))
    with styled():
        figure = Figure(figsize=(WIDTH, WIDTH * aspect), layout="constrained")
        axes = figure.subplots()
        colours = ListedColormap([LIGHT[f"heat-{level}"] for level in range(HEAT_LEVELS)])
        image = axes.imshow(
            pixels,
            cmap=colours,
            vmin=0,
            vmax=float(np.quantile(pixels, _MAX_COLOUR_QUANTILE)),
            extent=(0, weight.shape[1], weight.shape[0], 0),
            aspect="auto",
            interpolation="nearest",
        )
        figure.colorbar(image, ax=axes, label="|W|", fraction=0.05)
        axes.set_xlabel("input")
        axes.set_ylabel("output")
        axes.set_title(name)
    description = (
        f"|W| of {name}. Of its variance {measured.by_input:.2%} lies between inputs, {measured.input_ratio:.1f} times "
        f"the value for independent entries, and {measured.by_output:.2%} between outputs, "
        f"{measured.output_ratio:.1f} times."
    )
    return Picture("figure-1", f"Heat map of {name}", description, figure)


def tile_means(magnitude: Tensor) -> NDArray[np.float32]:
    """Average a matrix over tiles, so that it has at most 256 rows and columns."""
    shape = (min(_MAX_PIXELS, magnitude.shape[0]), min(_MAX_PIXELS, magnitude.shape[1]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(magnitude[None, None].float(), shape)
    return np.asarray(pooled[0, 0].numpy(), dtype=np.float32)
