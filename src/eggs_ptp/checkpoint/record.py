"""RunRecord: what one pruning run did, as it is kept in `eggs.json`."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FORMAT = 2
FORMATS = (1, 2)  # that can be read; 1 had neither `orders` nor `in_order`, as it never folded
# Keys that readers rely on, and what each may be; those of the second row may be absent.
_MATRIX = {"name": str, "pattern": str, "density": float | int | None, "permuted": bool, "updated": bool}
_MATRIX_OPTIONAL = {"in_order": bool, "transposed": bool, "nonzero": int | None}
_RECORD: dict[str, Any] = {"source": dict, "matrices": list}
_RECORD_OPTIONAL = {"orders": str | None, "untouched": dict, "tuned": list, "calibration": dict | None}
_VERSIONS = ("eggs-ptp", "torch", "transformers", "safetensors", "numpy", "scipy")


@dataclass
class RunRecord:
    """The recipe, where it ran, and one record a matrix.

    `orders` is what became of the channel orders: "fold" (they are in the weights of the whole model, those of each
    space in `eggs/orders.safetensors`), "gather" or "mask" (weights are in the source's order, those of each permuted
    matrix in the file, to be gathered at run time or not); null where there are none. `untouched` has the SHA-256 of
    every stored tensor that was neither pruned nor tuned; `tuned` names those that were not pruned but tuned with their
    block, such as biases.

    A matrix's record has its name, shape, pattern, method, density (share of weights kept), nonzero (how many of them
    are not zero themselves), `permuted` (its mask was chosen in an order that is not the source's), `in_order` (it
    satisfies its N:M pattern in the column order that it is stored in), `updated` (kept weights were
    changed too), `output_error` (||X (W - W')^T||^2 / ||X W^T||^2 over about 256 calibration tokens; null without
    calibration, and before the block is tuned), seconds (of its reader group, divided evenly), what its steps noted,
    such as B, and `tune`, what the tune step noted of the whole block.
    """

    source: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    calibration: dict[str, Any] | None
    device: str
    dtype: str
    matrices: list[dict[str, Any]] = field(default_factory=list)
    untouched: dict[str, str] = field(default_factory=dict)
    tuned: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    batch_tokens: int = 0
    memory: int | None = None
    peak_memory_bytes: int = 0
    baseline_memory_bytes: int = 0
    output: str = ""
    orders: str | None = None

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
            "orders": self.orders,
            "seconds": self.seconds,
            "stages": self.stages,
            "batch_tokens": self.batch_tokens,
            "memory": self.memory,
            "peak_memory_bytes": self.peak_memory_bytes,
            "baseline_memory_bytes": self.baseline_memory_bytes,
            "matrices": self.matrices,
            "untouched": self.untouched,
            "tuned": self.tuned,
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


def fault_of(record: object) -> str | None:
    """What makes plain data no record that this version can read; None where nothing does."""
    if not isinstance(record, dict):
        return "expected an object"
    if type(record.get("format")) is not int or record["format"] not in FORMATS:
        return f"format {record.get('format')}, this version reads format {' and '.join(map(str, FORMATS))}"
    if fault := _fault(record, _RECORD, _RECORD_OPTIONAL):
        return fault
    if not isinstance(record["source"].get("model"), str):
        return "source.model is no text"
    texts = (*record.get("untouched", {}).values(), *record.get("tuned", ()))
    if not all(isinstance(text, str) for text in texts):
        return "untouched or tuned hold more than text"
    for number, matrix in enumerate(record["matrices"]):
        if fault := _fault(matrix, _MATRIX, _MATRIX_OPTIONAL):
            return f"matrices[{number}]: {fault}"
        if not 0 <= (matrix["density"] or 0) <= 1:
            return f"matrices[{number}]: density cannot be {matrix['density']}"
    return None


def _fault(found: object, needed: dict[str, Any], optional: dict[str, Any]) -> str | None:
    if not isinstance(found, dict):
        return "expected an object"
    for key, kind in {**needed, **optional}.items():
        if key not in found and key in needed:
            return f"the key {key} is missing"
        if key in found and not isinstance(found[key], kind):
            return f"{key} cannot be {type(found[key]).__name__}"
    return None
