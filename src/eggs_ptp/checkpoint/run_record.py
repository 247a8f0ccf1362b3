"""Run record: everything that one pruning run did, stored as `eggs.json`."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

FORMAT = 2
FORMATS = (1, 2)  # that can be read; format 1 had neither `orders` nor `in_order`, as it never folded permutations
# Keys that other code relies on and the types of their values; optional keys may be missing.
_MATRIX_KEYS = {"name": str, "pattern": str, "density": float | int | None, "permuted": bool, "updated": bool}
_OPTIONAL_MATRIX_KEYS = {"in_order": bool, "transposed": bool, "nonzero": int | None}
_RECORD_KEYS: dict[str, Any] = {"source": dict, "matrices": list}
_OPTIONAL_RECORD_KEYS = {"orders": str | None, "untouched": dict, "tuned": list, "calibration": dict | None}
PACKAGES = ("eggs-ptp", "torch", "transformers", "safetensors", "numpy", "scipy")


@dataclass
class RunRecord:
    """The recipe of a run, where it ran, what it took, and one record for each pruned matrix.

    A matrix's record has these keys:

    - `name`, `shape`, `pattern`, `method`;
    - `density`: share of the weights that its mask keeps;
    - `nonzero`: how many of these are not zero themselves;
    - `permuted`: its mask was chosen in a channel permutation;
    - `in_order`: it satisfies its N:M pattern in the column order that it is stored in;
    - `updated`: kept weights were changed too;
    - `output_error`: ||X (W - W')^T||^2 / ||X W^T||^2 over about 256 calibration tokens, before its block is tuned;
      null without calibration;
    - `seconds`: time that the linears sharing its input activation took, divided evenly;
    - the diagnostics of its steps, such as `B`, and as `tune` those of the tune step, for the whole block.

    Attributes:
        source: The model: its name, revision, commit and model type.
        recipe: The recipe as plain data.
        recipe_sha256: SHA-256 of the recipe.
        calibration: The calibration windows: source, number, length, hash; None without calibration.
        device: Device that computed.
        dtype: Type that it computed in.
        matrices: The records of the pruned matrices.
        untouched: SHA-256 of every stored tensor that was neither pruned nor tuned.
        tuned: Names of tensors that were not pruned but tuned with their block, such as biases.
        stages: Seconds spent, by stage.
        seconds: Seconds in total.
        batch_tokens: Tokens in a batch of the calibration windows.
        memory: Memory limit in bytes (`--memory`).
        peak_memory_bytes: Most memory that the process used.
        baseline_memory_bytes: Memory that it used before the run.
        output: The folder written to; not stored.
        permutations: How channel permutations are applied, stored under the key `orders`. "fold": they are folded into
            the weights of the whole model, and `eggs/orders.safetensors` has one for each channel space. "gather" or
            "mask": weights are in the source's channel order, and the file has one for each permuted matrix, to be
            gathered at run time or not. None without permutations.
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
    permutations: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `eggs.json`, which does not say where the folder is."""
        return {
            "format": FORMAT,
            "versions": versions(),
            "source": self.source,
            "recipe": self.recipe,
            "recipe_sha256": self.recipe_sha256,
            "calibration": self.calibration,
            "device": self.device,
            "dtype": self.dtype,
            "orders": self.permutations,
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
    """Return the versions of Python and of the packages that results depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def find_record_fault(record: object) -> str | None:
    """Check that plain data is a record that this version can read.

    Args:
        record: Data parsed from `eggs.json`.

    Returns:
        What is wrong with it; None if nothing is.
    """
    if not isinstance(record, dict):
        return f"expected an object, got {type(record).__name__}"
    if type(record.get("format")) is not int or record["format"] not in FORMATS:
        return f"got format {record.get('format')}, this version reads formats {' and '.join(map(str, FORMATS))}"
    if fault := _find_key_fault(record, _RECORD_KEYS, _OPTIONAL_RECORD_KEYS):
        return fault
    if not isinstance(record["source"].get("model"), str):
        return "source.model is not text"
    texts = (*record.get("untouched", {}).values(), *record.get("tuned", ()))
    if not all(isinstance(text, str) for text in texts):
        return "untouched or tuned has values that are not text"
    for number, matrix in enumerate(record["matrices"]):
        if fault := _find_key_fault(matrix, _MATRIX_KEYS, _OPTIONAL_MATRIX_KEYS):
            return f"matrices[{number}]: {fault}"
        if not 0 <= (matrix["density"] or 0) <= 1:
            return f"matrices[{number}]: density is {matrix['density']}, expected 0 to 1"
    return None


def _find_key_fault(record: object, required: dict[str, Any], optional: dict[str, Any]) -> str | None:
    if not isinstance(record, dict):
        return f"expected an object, got {type(record).__name__}"
    for key, types in {**required, **optional}.items():
        if key not in record and key in required:
            return f"the key {key} is missing"
        if key in record and not isinstance(record[key], types):
            return f"{key} cannot be of type {type(record[key]).__name__}"
    return None
