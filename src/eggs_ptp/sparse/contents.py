"""Contents: what a packed checkpoint says of itself in its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import CheckpointError, PatternError

METHOD = "eggs"
FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """The packed matrices by module name, each with its pattern, and which of them have an order of their own."""

    matrices: Mapping[str, Pattern]
    ordered: frozenset[str] = field(default_factory=frozenset)

    def to_dict(self) -> dict[str, Any]:
        """The block `quantization_config`."""
        return {
            "quant_method": METHOD,
            "format": FORMAT,
            "matrices": {name: str(pattern) for name, pattern in self.matrices.items()},
            "ordered": sorted(self.ordered),
        }

    @classmethod
    def read(cls, block: Any, where: str) -> "Contents":
        """Read the block `quantization_config` of a config.json; `where` names it in errors.

        Raises:
            CheckpointError: not a block of ours, of a version that this package cannot read, or not understood.
        """
        if not isinstance(block, dict) or block.get("quant_method") != METHOD:
            raise CheckpointError(f"{where}: quantization_config.quant_method is not {METHOD}, so nothing is packed")
        if block.get("format") != FORMAT:
            raise CheckpointError(
                f"{where}: packed format {block.get('format')}, this version reads format {FORMAT}; update eggs-ptp"
            )
        matrices, ordered = block.get("matrices"), block.get("ordered", [])
        if not isinstance(matrices, dict) or not matrices or not isinstance(ordered, list):
            raise CheckpointError(f"{where}: quantization_config names no matrices")
        if strangers := sorted(set(map(str, ordered)) - matrices.keys()):
            raise CheckpointError(f"{where}: quantization_config orders {strangers[0]}, not one of its matrices")
        return cls({name: _pattern(text, f"{where}: {name}") for name, text in matrices.items()}, frozenset(ordered))

    def tensors(self, name: str) -> list[str]:
        """Names of the tensors that stand for the weight of a matrix."""
        parts = ("values", "bits", "order") if name in self.ordered else ("values", "bits")
        return [f"{name}.{part}" for part in parts]


def _pattern(text: object, where: str) -> Pattern:
    try:
        pattern = parse_pattern(str(text))
    except PatternError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if not isinstance(pattern, Pattern):
        raise CheckpointError(f"{where}: packed matrices are N:M, not {text}")
    return pattern
