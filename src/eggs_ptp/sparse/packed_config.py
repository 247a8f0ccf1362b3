"""PackedConfig: the block `quantization_config` that describes a packed checkpoint in its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.core.quantisation import GRIDS
from eggs_ptp.errors import CheckpointError, PatternError

METHOD = "eggs"
FORMATS = (1, 2, 3)
# Format 1 had `"quant_method": "eggs"`. Without this package transformers skips a method that it does not know, with a
# warning, and initialises the weights at random. A block without quant_method it refuses; the note is written where a
# reader of that error looks. Format 3 adds `transposed`; a folder without transposed matrices is written as format 2,
# which older versions read.
_NOTE = "packed by eggs-ptp: import eggs_ptp before transformers loads this"


@dataclass(frozen=True)
class PackedConfig:
    """The packed matrices of a checkpoint, by module name.

    Attributes:
        matrices: Pattern of each packed matrix.
        ordered: The matrices whose columns are permuted, so that an `order` is stored with them.
        values: "int8" or "int4" for the matrices with quantised values.
        transposed: The matrices whose dense weight is stored as (in, out).
    """

    matrices: Mapping[str, Pattern]
    ordered: frozenset[str] = field(default_factory=frozenset)
    values: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = field(default_factory=frozenset)

    def to_dict(self) -> dict[str, Any]:
        """Return the block `quantization_config`."""
        return {
            METHOD: _NOTE,
            "format": 3 if self.transposed else 2,
            "matrices": {name: str(pattern) for name, pattern in self.matrices.items()},
            "values": dict(self.values),
            "ordered": sorted(self.ordered),
            **({"transposed": sorted(self.transposed)} if self.transposed else {}),
        }

    @classmethod
    def read(cls, block: Any, where: str) -> "PackedConfig":
        """Read and check the block `quantization_config` of a config.json.

        Args:
            block: The block, as parsed; untrusted.
            where: Name of the file, for error messages.

        Raises:
            CheckpointError: The block was not written by this package, has a format that this version cannot read, or
                is malformed.
        """
        if not is_packed_block(block):
            raise CheckpointError(f"{where}: quantization_config was not written by eggs-ptp, so nothing is packed")
        if not isinstance(block.get("format"), int) or block["format"] not in FORMATS:
            supported = ", ".join(map(str, FORMATS))
            raise CheckpointError(
                f"{where}: packed format {block.get('format')}, this version reads formats {supported}; update eggs-ptp"
            )
        matrices = block.get("matrices")
        ordered = block.get("ordered", [])
        values = block.get("values", {})
        transposed = block.get("transposed", [])
        are_lists = isinstance(ordered, list) and isinstance(transposed, list)
        if not isinstance(matrices, dict) or not matrices or not are_lists:
            raise CheckpointError(f"{where}: quantization_config names no matrices")
        kinds = list(values.values()) if isinstance(values, dict) else [values]
        unknown_kinds = [kind for kind in kinds if not isinstance(kind, str) or kind not in GRIDS]
        if unknown_kinds or not isinstance(values, dict):
            raise CheckpointError(
                f"{where}: quantization_config.values: expected {' or '.join(GRIDS)} for a matrix's name, "
                f"got {(unknown_kinds or kinds)[0]!r}"
            )
        for key, names in (("ordered", ordered), ("values", values), ("transposed", transposed)):
            if unknown := sorted(set(map(str, names)) - matrices.keys()):
                raise CheckpointError(f"{where}: quantization_config.{key}: {unknown[0]} is not one of its matrices")
        patterns = {name: _read_pattern(text, f"{where}: {name}") for name, text in matrices.items()}
        return cls(patterns, frozenset(map(str, ordered)), values, frozenset(map(str, transposed)))

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the last parts of the names of a matrix's tensors, such as "values" and "bits"."""
        scales = ("scales",) if name in self.values else ()
        order = ("order",) if name in self.ordered else ()
        return ("values", "bits", *scales, *order)

    def tensors(self, name: str) -> list[str]:
        """Return the names of the tensors that replace the weight of a matrix."""
        return [f"{name}.{part}" for part in self.parts(name)]


def is_packed_block(block: object) -> bool:
    """Return whether a block `quantization_config` marks a folder as packed by this package."""
    return isinstance(block, dict) and (METHOD in block or block.get("quant_method") == METHOD)


def _read_pattern(text: object, where: str) -> Pattern:
    """Parse the pattern of a packed matrix, which must be N:M."""
    try:
        pattern = parse_pattern(str(text))
    except PatternError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if not isinstance(pattern, Pattern):
        raise CheckpointError(f"{where}: packed matrices are N:M, got {text}")
    return pattern
