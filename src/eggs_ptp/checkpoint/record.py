"""RunRecord: what one pruning run did, as it is kept in `eggs.json`."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FORMAT = 1
_VERSIONS = ("eggs-ptp", "torch", "transformers", "safetensors", "numpy", "scipy")


@dataclass
class RunRecord:
    """The recipe, where it ran, and one record a matrix.

    `untouched` has the SHA-256 of every tensor that was taken over as it was.

    A matrix's record has its name, shape, pattern, method, density (share of weights kept), nonzero (how many of them
    are not zero themselves), `permuted` (its order is in `eggs/orders.safetensors`), `updated` (kept weights were
    changed too), `output_error` (||X (W - W')^T||^2 / ||X W^T||^2 over about 256 calibration tokens; null without
    calibration), seconds (of its reader group, divided evenly) and whatever its steps noted, such as B.
    """

    source: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    calibration: dict[str, Any] | None
    device: str
    dtype: str
    matrices: list[dict[str, Any]] = field(default_factory=list)
    untouched: dict[str, str] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    baseline_memory_bytes: int = 0
    output: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `eggs.json`. `output` is where the folder is, so it is not part of it."""
        return {
            "format": FORMAT,
            "versions": versions(),
            "source": self.source,
            "recipe": self.recipe,
            "recipe_sha256": self.recipe_sha256,
            "calibration": self.calibration,
            "device": self.device,
            "dtype": self.dtype,
            "seconds": self.seconds,
            "stages": self.stages,
            "peak_memory_bytes": self.peak_memory_bytes,
            "baseline_memory_bytes": self.baseline_memory_bytes,
            "matrices": self.matrices,
            "untouched": self.untouched,
        }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
