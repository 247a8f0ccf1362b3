"""The page docs/large.md, from the records of `benchmarks/large.py`."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
_HEAD = """# Models larger than memory

<!-- Written by docs/make_pages.py from docs/results/large*.json. -->

`eggs prune` never holds a model. Blocks are read from the checkpoint one at a time and written to the output one at a
time; embeddings and head pass through some rows at a time. What grows with the calibration text are the hidden states
of all windows: one stream, or with methods that compare with the dense model (`eggs+`, `eggs-max`) two, what the dense
model has at each activation of a block, and what reaches attention's and the MLP's last projection.

`--memory SIZE` (`8GiB`, `800MB`) says what the process may take, libraries and all:

- The plan adds up what one block, its statistics, the matrices in hand and one batch take, the search for an order, a
  tune step's way back and the head behind the last block, and refuses a budget that is smaller, saying how much is
  needed. If only the batch is too large, batches are made smaller. The calibration text is read and encoded before any of
  it, some characters at a time where that changes no token; a text that does not fit is refused as well.
- Activations get what is left. Beyond it they are files without a name on the disk of the output, mapped and so read
  and written as memory is: their pages are the system's to drop, and they go with the process, however it ends. The disk
  space is taken beforehand; a full disk ends the run with one line.
- While blocks are pruned the system refuses the process more (Linux: `RLIMIT_DATA`). Should that be reached all the
  same, the run ends with one line, and finished blocks are kept for the same command with a larger budget, which goes on
  in batches of the size that the run began with. Tokenizers are not refused anything: they would abort the process.

Where a tensor stands changes no bit of the result; smaller batches change roundings. Recomputing activations instead,
through the finished blocks, would cost time with the square of the depth, and save disk space that the output needs
anyway: it is not offered. Several GPUs are used by one process each ([scaling](scaling.md)), not by spreading layers.

`eggs plan --memory SIZE` says what would be in memory without reading a weight.

On Linux `eggs` has torch take memory of 2 MB and more in large pages (`THP_MEM_ALLOC_ENABLE=1`, unless it is set): large
tensors come and go all the time, and the system has fewer pages to clear. From Python, set it before the first tensor is
made.
"""


_MEASURED = """## Measured

A Llama-shaped checkpoint in bfloat16 (hidden 2048, MLP 8192, vocabulary 128256; 1.24 billion parameters with 16
layers), random weights and tokens, by `benchmarks/large.py`; `--limit 2048` means that a run may take 2 GiB (`3072`: 3)
beyond its imports and is refused more. `blocks x2` is two forward passes of every block and nothing else. It and
llm-compressor hold what `eggs prune` returns to the system block by block. Blocks are computed in float32 unless
`--dtype` says otherwise; in bfloat16 their passes take less than half of that on this processor, and most of what comes
beside them as long as before.
"""


def large() -> str:
    """The page."""
    parts = [_HEAD, _MEASURED]
    for path in sorted(RESULTS.glob("large*.json")):
        parts += _record(json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(parts).rstrip() + "\n"


def _record(record: dict[str, Any]) -> list[str]:
    rows = record["rows"]
    lines = [
        "| layers | | seconds | over `blocks x2` | processor seconds | over `blocks x2` | peak memory over imports |",
        "|---|---|---|---|---|---|---|",
    ]
    floors = {row["layers"]: row["cpu_seconds"] for row in rows if row["row"] == "blocks x2"}
    for row in rows:
        cells = (
            str(row["layers"]),
            f"`{row['row']}`",
            f"{row['seconds']:.0f}",
            f"{row['ratio_to_blocks']:.2f}x",
            f"{row['cpu_seconds']:.0f}",
            f"{row['cpu_seconds'] / floors[row['layers']]:.2f}x",
            f"{row['memory'] / MIB:,.0f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    note = record.get("note")
    return [f"`{record['command']}`" + (f" ({note})" if note else ""), "", *lines, ""]
