"""BenchmarkRun: what is measured, on which machine, and all results."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eggs_ptp.bench.checkpoint import GenerationMeasurement, measure_generate, open_packed, packed_shapes
from eggs_ptp.bench.dense import prepack_unsupported_reason
from eggs_ptp.bench.hardware import hardware
from eggs_ptp.bench.product import DTYPE_NAMES, ProductMeasurement, measure_shape
from eggs_ptp.bench.timing import TRUSTED
from eggs_ptp.core.pack import require_nm
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import RecipeError

Matrix = tuple[int, int, Pattern]  # rows, columns, pattern
DEFAULT_DTYPES = (torch.float32, torch.bfloat16)


def ignore(_: "BenchmarkRun") -> None:
    """Ignore all results: the default listener."""


@dataclass
class BenchmarkRun:
    """A run of measurements and its results.

    Attributes:
        command: The command line, for the record.
        batches: Numbers of inputs multiplied at once.
        rounds: Samples of each product.
        limit: Seconds after which a measurement ends, if it has enough samples.
        threads: Threads of torch; None keeps torch's own number.
        listener: Called with the run before the first result and after each one.
        hardware: Description of the machine, see `hardware.hardware`.
        products: Results of products.
        folder: The measured checkpoint, if there is one.
        matrices: Its packed matrices, and how many there are of each shape and pattern.
        generated: Result of text generation.
        expected: Number of product results when the run is complete.
    """

    command: str
    batches: Sequence[int]
    rounds: int = 60
    limit: float = float("inf")
    threads: int | None = None
    listener: Callable[["BenchmarkRun"], object] = ignore
    hardware: dict[str, Any] = field(default_factory=hardware)
    products: list[ProductMeasurement] = field(default_factory=list)
    folder: str | None = None
    matrices: dict[Matrix, int] = field(default_factory=dict)
    generated: GenerationMeasurement | None = None
    expected: int = 0

    def measure_shapes(
        self, shapes: Sequence[tuple[int, int]], patterns: Sequence[Pattern], dtypes: Sequence[torch.dtype]
    ) -> None:
        """Measure products of some shapes (rows, columns), all patterns and types of a shape interleaved.

        Raises:
            EggsError: As `product.measure_shape`.
        """
        with _torch_threads(self.threads):
            self.expected = len(shapes) * len(self.batches)
            self.listener(self)
            for rows, columns in shapes:
                self._measure(rows, columns, patterns, dtypes)

    def measure_folder(
        self, folder: Path, dtype: torch.dtype | str, *, prompt: int = 8, tokens: int = 32, texts: int = 7
    ) -> None:
        """Measure text generation of a checkpoint, then products of the shapes of its packed matrices.

        Args:
            folder: Folder of the checkpoint, packed or pruned.
            dtype: Type of the weights; "auto" for that of the folder.
            prompt: Tokens of the prompt.
            tokens: New tokens.
            texts: Samples of text generation of each form.

        Raises:
            EggsError: As `checkpoint.open_packed`, `checkpoint.measure_generate`, `product.measure_shape`.
        """
        model = open_packed(folder, dtype=dtype)
        self.folder = str(folder)
        self.matrices = packed_shapes(model)
        self.expected = len(self.matrices) * len(self.batches)
        with _torch_threads(self.threads):
            self.listener(self)
            self.generated = measure_generate(model, prompt=prompt, tokens=tokens, rounds=texts, limit=self.limit)
            self.listener(self)
            model_dtype = model.dtype
            del model  # frees its memory for the products
            for rows, columns, pattern in self.matrices:
                self._measure(rows, columns, [pattern], [model_dtype])

    @property
    def machine(self) -> str:
        """One line about the machine: processor, threads, caches, kernels, torch and load."""
        hardware = self.hardware
        threads = self.threads or torch.get_num_threads()
        loads = self._loads() or [0.0]
        caches = ", ".join(hardware["caches"])
        kernels = hardware["tier"] or "none"
        return (
            f"{hardware['processor']}, {hardware['cpus']} CPUs, {threads} thread(s), {caches}, kernels {kernels}, "
            f"torch {hardware['torch']}; load {min(loads):.1f} to {max(loads):.1f}"
        )

    def remarks(self) -> list[str]:
        """Return what limits the trust in the results, and which candidates are missing."""
        remarks = []
        if max(self._loads(), default=0.0) > (self.hardware["cpus"] or 1):
            remarks.append("more was running than there are CPUs: measure again when the machine is idle")
        for dtype, name in DTYPE_NAMES.items():
            measured = any(f"dense {name} stock" in product.timings for product in self.products)
            if measured and (reason := prepack_unsupported_reason(dtype)):
                remarks.append(f"no prepacked {name}: {reason}")
        return remarks

    def to_dict(self) -> dict[str, Any]:
        """Return the run as records store it."""
        matrices = [
            {"rows": rows, "columns": columns, "pattern": str(pattern), "count": count}
            for (rows, columns, pattern), count in self.matrices.items()
        ]
        return {
            "command": self.command,
            "hardware": self.hardware,
            "trusted_spread": TRUSTED,
            "products": [product.to_dict() for product in self.products],
            "folder": self.folder,
            "matrices": matrices,
            "generate": self.generated.to_dict() if self.generated else None,
        }

    def _measure(self, rows: int, columns: int, patterns: Sequence[Pattern], dtypes: Sequence[torch.dtype]) -> None:
        """Measure one shape for all batches."""
        for product in measure_shape(
            rows, columns, self.batches, patterns=patterns, dtypes=dtypes, rounds=self.rounds, limit=self.limit
        ):
            self.products.append(product)
            self.listener(self)

    def _loads(self) -> list[float]:
        """Return the load averages over a minute before and after each result."""
        results: list[ProductMeasurement | GenerationMeasurement] = [*self.products]
        if self.generated:
            results.append(self.generated)
        load_averages = [averages for result in results for averages in (result.load_before, result.load_after)]
        return [averages[0] for averages in load_averages if averages]


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """Parse shapes such as `4096x4096,11008x4096` into rows and columns.

    Raises:
        RecipeError: A part is not a shape.
    """
    shapes = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part.strip().lower())
        if match is None:
            raise RecipeError(
                f"--shapes: {part!r} is not a shape; expected rows x columns such as 4096x4096,11008x4096"
            )
        shapes.append((int(match[1]), int(match[2])))
    return shapes


def parse_batches(text: str) -> list[int]:
    """Parse numbers of inputs such as `1,2,4`.

    Raises:
        RecipeError: A part is not a positive integer.
    """
    if invalid := [part for part in text.split(",") if not re.fullmatch(r"\s*[1-9]\d*\s*", part)]:
        raise RecipeError(f"--batches: {invalid[0]!r} is not a number of inputs; expected numbers such as 1,2,4,8,16")
    return [int(part) for part in text.split(",")]


def parse_patterns(text: str) -> list[Pattern]:
    """Parse patterns that can be packed, such as `2:4,4:8`.

    Raises:
        PatternError: A part is not a pattern, or is unstructured.
    """
    return [require_nm(parse_pattern(part), "--patterns") for part in text.split(",")]


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Set torch's number of threads inside a `with` block; None leaves it as it is."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
