"""The page docs/scaling.md: the model of several processes, against docs/results/scaling.json, and what it predicts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eggs_ptp.core.slabs import cut, quarters
from eggs_ptp.engine.turn import EVEN

RECORD = Path(__file__).parent / "results" / "scaling.json"
FP64, FP32, BF16, LINK, DISK = 67e12, 67e12, 989e12, 50e9, 5e9  # of one H100: operations a second; bytes a second
USED = 0.5  # of the peak, by large matrix products
PRODUCTS = 37  # with every Gram matrix, at most: 19 of reselect, 12 of connect before it chooses B and 6 after that
TRIED = 49  # of the rows that it chooses by: if it tries seven numbers of blocks, by seven products each
# Bytes of a weight that all ranks solve for: cross 4, corrected 4, weight and mask of reselect 5, score and importance 6,
# weight 4, masks 3.
EXCHANGED = 26
LOAD = 8 * 1024**2  # bytes that travel at once in a chain
_PASSES = ("embedding", "observe", "dense", "propagate")
_SOLVING = ("correct", "score", "update")


class Shape(NamedTuple):
    """A Llama-shaped model."""

    hidden: int
    kv: int
    intermediate: int
    layers: int

    @property
    def turns(self) -> list[list[tuple[int, int]]]:
        """(out, in) of the matrices that are pruned at once by a method that solves: the readers of one activation."""
        h, kv, m = self.hidden, self.kv, self.intermediate
        return [[(h, h), (kv, h), (kv, h)], [(h, h)], [(m, h), (m, h)], [(h, m)]]

    @property
    def weights(self) -> int:
        return sum(rows * width for turn in self.turns for rows, width in turn)

    def sum_bytes(self, solves: bool) -> float:
        """Of one block: squares in float64; lower halves of Gram matrices, and cross matrices, in float32."""
        widths = [turn[0][1] for turn in self.turns]
        if not solves:
            return 8.0 * sum(widths)
        return float(sum(2 * width * (width + 256) + 4 * self.hidden * width + 8 * width for width in widths))

    def share(self, count: int) -> float:
        """What the rank with most to solve for has of it, turn by turn: of its own matrices, or of all their slabs."""
        whole = most = 0.0
        for turn in self.turns:
            loads = dealt(turn, count)
            slabs = [len(cut(*shape)) for shape in turn]
            together = sum(r * w**2 * -(-n // count) / n for (r, w), n in zip(turn, slabs, strict=True))
            most += together if is_shared(turn, count) else max(loads)
            whole += sum(loads)
        return most / whole

    def solving(self, count: int) -> float:
        """Operations of products with Gram matrices of the rank with most of them."""
        whole = tried = 0.0
        for rows, width in (shape for turn in self.turns for shape in turn):
            whole += 2 * rows * width**2
            tried += 2 * sum(slab.stop - slab.start for slab in quarters(rows, width)) * width**2
        return PRODUCTS * whole * self.share(count) + TRIED * tried / min(count, 4)

    def shared(self, count: int) -> int:
        """Weights that all ranks solve for together."""
        return sum(rows * width for turn in self.turns if is_shared(turn, count) for rows, width in turn)


def dealt(turn: Sequence[tuple[int, int]], count: int) -> list[float]:
    """What each rank has to do if the matrices of a turn are dealt out, the costliest first."""
    loads = [0.0] * count
    for cost in sorted((rows * width**2 for rows, width in turn), reverse=True):
        loads[loads.index(min(loads))] += cost
    return loads


def is_shared(turn: Sequence[tuple[int, int]], count: int) -> bool:
    """Whether they are not, but all ranks do them together."""
    loads = dealt(turn, count)
    return max(loads) > EVEN * sum(loads) / count and max(len(cut(*shape)) for shape in turn) > 1


LARGE = {"70B": Shape(8192, 1024, 28672, 80), "405B": Shape(16384, 1024, 53248, 126)}


def predicted(
    shape: Shape, method: str, count: int, *, tokens: int = 128 * 2048, bf16: bool = True
) -> dict[str, float]:
    """Seconds of each stage on so many H100, 8 in a node, without the journal."""
    solves = method == "eggs+"
    passes = (3.5 if solves else 2.0) * 2 * tokens * shape.weights / (USED * (BF16 if bf16 else FP32) * count)
    widths = [turn[0][1] for turn in shape.turns]
    grams = sum(tokens * (width * (width + 256) + 2 * shape.hidden * width) for width in widths)
    sums, together = shape.sum_bytes(solves), shape.shared(count) if solves else 0
    per_block = {
        "read": 2 * shape.weights / DISK,
        "passes": passes,
        "Gram": grams / (USED * FP32 * count) if solves else 0.0,
        "sum": 2 * (sums + (count - 1) * min(LOAD, sums)) / LINK if count > 1 else 0.0,
        "solving": shape.solving(count) / (USED * FP32) if solves else 0.0,
        "factors": sum(width**3 / 3 for turn in shape.turns for _, width in turn) / (USED * FP64) if solves else 0.0,
        "exchange": EXCHANGED * together / LINK,
        "share": 2 * (shape.weights - together) / LINK if count > 1 else 0.0,
        "write": 2 * shape.weights / DISK,
    }
    return {stage: seconds * shape.layers for stage, seconds in per_block.items()}


def scaling() -> str:
    """The page."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    text = (Path(__file__).parent / "scaling_page.md").read_text(encoding="utf-8")
    tables = {"MEASURED": _measured(record), "CHECKED": _checked(record), "PREDICTED": _predictions()}
    for mark, table in tables.items():
        text = text.replace(f"<!-- {mark} -->", table)
    return text


def _measured(record: Mapping[str, Any]) -> str:
    shape = record["shape"]
    rows = [
        f"`{record['command']}`: hidden {shape['hidden']}, intermediate {shape['intermediate']}, {shape['layers']} blocks, "
        f"{shape['windows']} windows of\n{shape['seqlen']} tokens, {record['cpus']} cores, medians of {record['rounds']} "
        f"round{'s' if record['rounds'] > 1 else ''}. The load average over the minute\n"
        f"before was {record['load']:.1f}; where others are still at work, threads that wait for each other take far longer than "
        "processes. Seconds:\n",
        "| method | processes x threads | whole | over one process of two threads | passes | solving | order | sum | wait | "
        "share | weights |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for method, settings in record["methods"].items():
        for setting, found in settings.items():
            stage = found["stages"]
            cells = [sum(stage.get(name, 0.0) for name in names) for names in (_PASSES, _SOLVING, ("order", "permute"))]
            cells += [stage.get(name, 0.0) for name in ("sum", "wait", "share")]
            rows.append(
                f"| `{method}` | {setting.removesuffix(' threads')} | {found['seconds']:.1f} | "
                f"{found['ratio_to_two_threads']:.2f} | {' | '.join(f'{cell:.2f}' for cell in cells)} | "
                f"`{found['weights'][0][:8]}` |"
            )
    return "\n".join(rows)


def _checked(record: Mapping[str, Any]) -> str:
    shape = record["shape"]
    block = Shape(shape["hidden"], shape["hidden"], shape["intermediate"], shape["layers"])
    rows = [
        "| method | processes | passes: measured share of one process's | model | solving: measured share | model | "
        "bytes summed | GB/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for method, settings in record["methods"].items():
        one = settings["1 x 1"]["stages"]
        for setting, count in (("2 x 1", 2), ("4 x 1", 4)):
            stage = settings[setting]["stages"]
            ratio = {
                names: sum(stage.get(name, 0.0) for name in names)
                / max(1e-9, sum(one.get(name, 0.0) for name in names))
                for names in (_PASSES, _SOLVING)
            }
            solves = method == "eggs+"
            moved = block.sum_bytes(solves) * block.layers
            share = block.solving(count) / block.solving(1)
            solving = (f"{ratio[_SOLVING]:.2f}", f"{share:.2f}") if solves else ("-", "-")
            rows.append(
                f"| `{method}` | {count} | {ratio[_PASSES]:.2f} | {1 / count:.2f} | {' | '.join(solving)} | "
                f"{moved / 1e6:.2f} MB | {2 * moved / stage['sum'] / 1e9:.2f} |"
            )
    return "\n".join(rows)


def _predictions() -> str:
    rows = [
        "| model | method | GPUs | read | passes | Gram | sum | solving | factors | exchange | share | write | whole | over 8 GPUs |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, shape in LARGE.items():
        for method in ("eggs", "eggs+"):
            eight = sum(predicted(shape, method, 8).values())
            for count in (1, 8, 16, 32, 64):
                stages = predicted(shape, method, count)
                whole = sum(stages.values())
                cells = " | ".join(f"{seconds:.0f}" for seconds in stages.values())
                faster = f"{eight / whole:.2f}x"
                rows.append(f"| {name} | `{method}` | {count} | {cells} | {whole:.0f} | {faster} |")
    return "\n".join(rows)
