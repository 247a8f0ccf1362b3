"""A session of measurements: what was asked for, on which machine, and all that was found."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.bench.checkpoint import Generated, measure_generate, open_packed, shapes
from eggs_ptp.bench.contest import TRUSTED
from eggs_ptp.bench.dense import why_not_prepacked
from eggs_ptp.bench.hardware import hardware
from eggs_ptp.bench.shape import SHORT, Measured, measure_shape
from eggs_ptp.core.pack import structured
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import RecipeError

Matrix = tuple[int, int, Pattern]
BOTH = (torch.float32, torch.bfloat16)


def ignore(_: "Session") -> None:
    """Listen to nothing."""


@dataclass
class Session:
    """What is measured and how long; `listener` is called with the session before the first and after each result.

    `threads` are torch's own, if none are given.
    """

    command: str
    batches: Sequence[int]
    rounds: int = 60
    limit: float = float("inf")  # seconds
    threads: int | None = None
    listener: Callable[["Session"], object] = ignore
    hardware: dict[str, Any] = field(default_factory=hardware)
    products: list[Measured] = field(default_factory=list)
    folder: str | None = None
    matrices: dict[Matrix, int] = field(default_factory=dict)
    generated: Generated | None = None
    expected: int = 0  # products

    def measure_shapes(
        self, wanted: Sequence[tuple[int, int]], patterns: Sequence[Pattern], dtypes: Sequence[torch.dtype]
    ) -> None:
        """Products of the shapes, all patterns and types in one contest.

        Raises:
            EggsError: as `shape.measure_shape`.
        """
        with _Threads(self.threads):
            self.expected = len(wanted) * len(self.batches)
            self.listener(self)
            for rows, columns in wanted:
                self._measure(rows, columns, patterns, dtypes)

    def measure_folder(
        self, folder: Path, dtype: torch.dtype | str, *, prompt: int = 8, tokens: int = 32, texts: int = 7
    ) -> None:
        """A checkpoint's text, then products of the shapes that its packed matrices have.

        Raises:
            EggsError: as `checkpoint.open_packed`, `checkpoint.measure_generate`, `shape.measure_shape`.
        """
        model = open_packed(folder, dtype=dtype)
        self.folder, self.matrices = str(folder), shapes(model)
        self.expected = len(self.matrices) * len(self.batches)
        with _Threads(self.threads):
            self.listener(self)
            self.generated = measure_generate(model, prompt=prompt, tokens=tokens, rounds=texts, limit=self.limit)
            self.listener(self)
            kind = model.dtype
            del model  # its memory is for the products
            for rows, columns, pattern in self.matrices:
                self._measure(rows, columns, [pattern], [kind])

    @property
    def machine(self) -> str:
        """What it ran on, in a line."""
        found = self.hardware
        threads = self.threads or torch.get_num_threads()
        loads = self._loads() or [0.0]
        caches, kernels = ", ".join(found["caches"]), found["tier"] or "none"
        return (
            f"{found['processor']}, {found['cpus']} CPUs, {threads} thread(s), {caches}, kernels {kernels}, "
            f"torch {found['torch']}; load {min(loads):.1f} to {max(loads):.1f}"
        )

    def remarks(self) -> list[str]:
        """What to know before believing it."""
        found = []
        if max(self._loads(), default=0.0) > (self.hardware["cpus"] or 1):
            found.append("more was running than there are CPUs: measure again when the machine is idle")
        for dtype, short in SHORT.items():
            used = any(f"dense {short} stock" in measured.timings for measured in self.products)
            if used and (reason := why_not_prepacked(dtype)):
                found.append(f"no prepacked {short}: {reason}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """As a record keeps it."""
        matrices = [
            {"rows": rows, "columns": columns, "pattern": str(pattern), "count": count}
            for (rows, columns, pattern), count in self.matrices.items()
        ]
        return {
            "command": self.command,
            "hardware": self.hardware,
            "trusted_spread": TRUSTED,
            "products": [measured.to_dict() for measured in self.products],
            "folder": self.folder,
            "matrices": matrices,
            "generate": self.generated.to_dict() if self.generated else None,
        }

    def _measure(self, rows: int, columns: int, patterns: Sequence[Pattern], dtypes: Sequence[torch.dtype]) -> None:
        how: dict[str, Any] = {"patterns": patterns, "dtypes": dtypes, "rounds": self.rounds, "limit": self.limit}
        for measured in measure_shape(rows, columns, self.batches, **how):
            self.products.append(measured)
            self.listener(self)

    def _loads(self) -> list[float]:
        """Load averages over a minute before and after each result."""
        found = [load for each in self.products for load in (each.load_before, each.load_after)]
        if self.generated:
            found += [self.generated.load_before, self.generated.load_after]
        return [load[0] for load in found if load]


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """`4096x4096,11008x4096`: rows and columns.

    Raises:
        RecipeError: not that.
    """
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part.strip().lower()) for part in text.split(",")]
    if bad := [part for part, match in zip(text.split(","), found, strict=True) if match is None]:
        raise RecipeError(f"--shapes: {bad[0]!r} is no shape; expected rows x columns such as 4096x4096,11008x4096")
    return [(int(match[1]), int(match[2])) for match in found if match]


def parse_batches(text: str) -> list[int]:
    """`1,2,4`: how many inputs at once.

    Raises:
        RecipeError: not that.
    """
    if bad := [part for part in text.split(",") if not re.fullmatch(r"\s*[1-9]\d*\s*", part)]:
        raise RecipeError(f"--batches: {bad[0]!r} is no number of inputs; expected such as 1,2,4,8,16")
    return [int(part) for part in text.split(",")]


def parse_patterns(text: str) -> list[Pattern]:
    """`2:4,4:8`: patterns that can be packed.

    Raises:
        PatternError: one is not understood, or unstructured.
    """
    return [structured(parse_pattern(part), "--patterns") for part in text.split(",")]


class _Threads:
    """So many threads of torch inside, as many as before afterwards."""

    def __init__(self, threads: int | None) -> None:
        self.threads, self.before = threads, torch.get_num_threads()

    def __enter__(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)
