"""What several runs on one model have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.engine.capture import Inputs
from eggs_ptp.engine.plan import Plan
from eggs_ptp.engine.run import Run
from eggs_ptp.recipe.recipe import Recipe


class Shared:
    """What runs on one model have in common whatever the method: calibration windows, and the first block's inputs."""

    def __init__(self) -> None:
        self._drawn: tuple[Any, ...] = ()
        self._windows: Windows | None = None
        self._key: tuple[str, ...] = ()
        self._inputs: Inputs | None = None

    def windows(self, folder: Path, recipe: Recipe, decided: Plan, draw: Callable[[], Windows]) -> Windows:
        """The calibration windows, drawn once for the same model, text, length and seed."""
        key = (folder, repr(recipe.calibration), decided.seqlen, recipe.seed)
        if self._windows is None or key != self._drawn:
            self._drawn, self._windows = key, draw()
        return self._windows

    def inputs(self, run: Run, windows: Windows) -> Inputs:
        """The inputs of the first block, taken once for the same model, windows, type and device."""
        key = (str(run.skeleton.folder), windows.digest, str(run.dtype), str(run.device))
        if self._inputs is None or key != self._key:
            self._key, self._inputs = key, run.inputs(windows)
        return self._inputs.copy()
