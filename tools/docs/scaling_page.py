"""The page docs/scaling.md: a model of the time several processes take, compared with measurements, and its predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eggs_ptp.core.row_tiles import sample_tiles, tile_rows
from eggs_ptp.engine.distributed.work_assignment import BALANCED

RECORD = Path(__file__).parents[2] / "docs" / "results" / "scaling.json"
# One H100: operations per second, bytes per second between GPUs and of the disk.
FP64 = 67e12
FP32 = 67e12
BF16 = 989e12
LINK = 50e9
DISK = 5e9
UTILISATION = 0.5  # share of the peak that large matrix products reach
PRODUCTS = 37  # with every Gram matrix, at most: 19 of reselect, 12 of connect before it chooses B and 6 after
SAMPLE_PRODUCTS = 49  # of the rows that B is chosen by, if seven numbers of blocks are tried with seven products each
# Bytes gathered per weight that all ranks solve for: cross 4, corrected 4, weight and mask of reselect 5, score and
# importance 6, weight 4, masks 3.
EXCHANGED = 26
BUCKET = 8 * 1024**2  # bytes sent at once in an ordered sum
_PASSES = ("embedding", "observe", "dense", "propagate")
_SOLVING = ("correct", "score", "update")
_PERMUTATIONS = ("order", "permute")

MatrixShape = tuple[int, int]  # (out, in)


class Shape(NamedTuple):
    """A Llama-shaped model."""

    hidden: int
    kv: int
    intermediate: int
    layers: int

    @property
    def groups(self) -> list[list[MatrixShape]]:
        """The matrices that are pruned at once by a method that solves for weights: the consumers of one activation."""
        attention = [(self.hidden, self.hidden), (self.kv, self.hidden), (self.kv, self.hidden)]
        output = [(self.hidden, self.hidden)]
        gate_and_up = [(self.intermediate, self.hidden), (self.intermediate, self.hidden)]
        down = [(self.hidden, self.intermediate)]
        return [attention, output, gate_and_up, down]

    @property
    def weights(self) -> int:
        """Weights of a block."""
        return sum(rows * width for group in self.groups for rows, width in group)

    def sum_bytes(self, solves: bool) -> float:
        """Sums of one block: squares in float64; lower halves of Gram matrices, and cross matrices, in float32."""
        widths = [group[0][1] for group in self.groups]
        if not solves:
            return 8.0 * sum(widths)
        return float(sum(2 * width * (width + 256) + 4 * self.hidden * width + 8 * width for width in widths))

    def largest_share(self, processes: int) -> float:
        """Share of all solving of the rank with the most of it, group by group: of its matrices, or of its row tiles."""
        total = 0.0
        most = 0.0
        for group in self.groups:
            loads = assign_work(group, processes)
            if is_divided(group, processes):
                for rows, width in group:
                    tiles = len(tile_rows(rows, width))
                    most += rows * width**2 * -(-tiles // processes) / tiles
            else:
                most += max(loads)
            total += sum(loads)
        return most / total

    def solving(self, processes: int) -> float:
        """Operations of products with Gram matrices of the rank with the most of them."""
        all_rows = 0.0
        sampled_rows = 0.0
        for rows, width in (shape for group in self.groups for shape in group):
            all_rows += 2 * rows * width**2
            sampled_rows += 2 * sum(tile.stop - tile.start for tile in sample_tiles(rows, width)) * width**2
        return PRODUCTS * all_rows * self.largest_share(processes) + SAMPLE_PRODUCTS * sampled_rows / min(processes, 4)

    def divided_weights(self, processes: int) -> int:
        """Weights that all ranks solve for together."""
        divided = [group for group in self.groups if is_divided(group, processes)]
        return sum(rows * width for group in divided for rows, width in group)


def assign_work(group: Sequence[MatrixShape], processes: int) -> list[float]:
    """Return the work of each rank if the matrices are assigned as a whole, the costliest first."""
    loads = [0.0] * processes
    for cost in sorted((rows * width**2 for rows, width in group), reverse=True):
        loads[loads.index(min(loads))] += cost
    return loads


def is_divided(group: Sequence[MatrixShape], processes: int) -> bool:
    """Return whether the matrices are divided into row tiles instead."""
    loads = assign_work(group, processes)
    return max(loads) > BALANCED * sum(loads) / processes and max(len(tile_rows(*shape)) for shape in group) > 1


LARGE = {"70B": Shape(8192, 1024, 28672, 80), "405B": Shape(16384, 1024, 53248, 126)}


def predicted(
    shape: Shape, method: str, processes: int, *, tokens: int = 128 * 2048, bf16: bool = True
) -> dict[str, float]:
    """Return the seconds of each stage on this many H100, 8 in a node, without the journal."""
    solves = method == "eggs+"
    is_distributed = processes > 1
    weights = shape.weights
    widths = [group[0][1] for group in shape.groups]
    passes = (3.5 if solves else 2.0) * 2 * tokens * weights
    grams = sum(tokens * (width * (width + 256) + 2 * shape.hidden * width) for width in widths)
    factors = sum(width**3 / 3 for group in shape.groups for _, width in group)
    sums = shape.sum_bytes(solves)
    divided = shape.divided_weights(processes) if solves else 0
    per_block = {
        "read": 2 * weights / DISK,
        "passes": passes / (UTILISATION * (BF16 if bf16 else FP32) * processes),
        "Gram": grams / (UTILISATION * FP32 * processes) if solves else 0.0,
        "sum": 2 * (sums + (processes - 1) * min(BUCKET, sums)) / LINK if is_distributed else 0.0,
        "solving": shape.solving(processes) / (UTILISATION * FP32) if solves else 0.0,
        "factors": factors / (UTILISATION * FP64) if solves else 0.0,
        "exchange": EXCHANGED * divided / LINK,
        "share": 2 * (weights - divided) / LINK if is_distributed else 0.0,
        "write": 2 * weights / DISK,
    }
    return {stage: seconds * shape.layers for stage, seconds in per_block.items()}


def scaling() -> str:
    """Return the page."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    text = (Path(__file__).parent / "scaling_page.md").read_text(encoding="utf-8")
    tables = {"MEASURED": _measured(record), "CHECKED": _compared_with_model(record), "PREDICTED": _predictions()}
    for mark, table in tables.items():
        text = text.replace(f"<!-- {mark} -->", table)
    return text


def _measured(record: Mapping[str, Any]) -> str:
    shape = record["shape"]
    rounds = f"{record['rounds']} round{'s' if record['rounds'] > 1 else ''}"
    lines = [
        f"`{record['command']}`: hidden {shape['hidden']}, intermediate {shape['intermediate']}, {shape['layers']} blocks, "
        f"{shape['windows']} windows of\n{shape['seqlen']} tokens, {record['cpus']} cores, medians of {rounds}. The load "
        f"average over the minute\nbefore was {record['load']:.1f}; if other programs are running, threads that wait for each "
        "other slow down far more than processes. Seconds:\n",
        "| method | processes x threads | total | over one process of two threads | passes | solving | permutations | sum | "
        "wait | share | weights |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for method, settings in record["methods"].items():
        for setting, run in settings.items():
            stages = run["stages"]
            cells = [
                f"`{method}`",
                setting.removesuffix(" threads"),
                f"{run['seconds']:.1f}",
                f"{run['ratio_to_two_threads']:.2f}",
                *(f"{_seconds(stages, names):.2f}" for names in (_PASSES, _SOLVING, _PERMUTATIONS)),
                *(f"{_seconds(stages, [name]):.2f}" for name in ("sum", "wait", "share")),
                f"`{run['weights'][0][:8]}`",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(stages: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(stages.get(name, 0.0) for name in names)


def _compared_with_model(record: Mapping[str, Any]) -> str:
    shape = record["shape"]
    model = Shape(shape["hidden"], shape["hidden"], shape["intermediate"], shape["layers"])
    lines = [
        "| method | processes | passes: measured share of one process's | model | solving: measured share | model | "
        "bytes summed | GB/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method, settings in record["methods"].items():
        single = settings["1 x 1"]["stages"]
        solves = method == "eggs+"
        for setting, processes in (("2 x 1", 2), ("4 x 1", 4)):
            stages = settings[setting]["stages"]
            passes = _seconds(stages, _PASSES) / max(1e-9, _seconds(single, _PASSES))
            solving = _seconds(stages, _SOLVING) / max(1e-9, _seconds(single, _SOLVING))
            model_solving = model.solving(processes) / model.solving(1)
            summed_bytes = model.sum_bytes(solves) * model.layers
            cells = [
                f"`{method}`",
                str(processes),
                f"{passes:.2f}",
                f"{1 / processes:.2f}",
                *((f"{solving:.2f}", f"{model_solving:.2f}") if solves else ("-", "-")),
                f"{summed_bytes / 1e6:.2f} MB",
                f"{2 * summed_bytes / stages['sum'] / 1e9:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _predictions() -> str:
    lines = [
        "| model | method | GPUs | read | passes | Gram | sum | solving | factors | exchange | share | write | total | over 8 GPUs |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, shape in LARGE.items():
        for method in ("eggs", "eggs+"):
            seconds_of_8 = sum(predicted(shape, method, 8).values())
            for processes in (1, 8, 16, 32, 64):
                stages = predicted(shape, method, processes)
                total = sum(stages.values())
                cells = " | ".join(f"{seconds:.0f}" for seconds in stages.values())
                speedup = f"{seconds_of_8 / total:.2f}x"
                lines.append(f"| {name} | `{method}` | {processes} | {cells} | {total:.0f} | {speedup} |")
    return "\n".join(lines)
