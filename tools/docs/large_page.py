"""The page docs/large.md, from the records of `benchmarks/large.py`."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MIB = 1 << 20
_HEAD = """# Models larger than memory

<!-- Written by tools/docs/make_pages.py from docs/results/large*.json. -->

`eggs prune` never has the whole model in memory. Blocks are read from the checkpoint and written to the output one at a
time; embeddings and output head are copied a few rows at a time. What grows with the calibration text are the hidden states
of all windows: one stream, or with methods that compare with the dense model (`eggs+`, `eggs-max`) two, plus the dense
model's activations of the current block and the inputs of the last projections of attention and MLP.

`--memory SIZE` (`8GiB`, `800MB`) limits the memory of the process, libraries included:

- The plan adds up the memory of one block, its statistics, the matrices being pruned and one batch, of the search for a
  permutation, of a tune step's backward pass, and of the output head. It refuses a limit that is too small, and says how
  much is needed. If only the batch is too large, batches are made smaller. Before that, the calibration text is read and
  tokenised, in chunks where that changes no token; a text that does not fit is refused as well.
- The rest is for activations. What does not fit is stored in unnamed, memory-mapped files on the disk of the output: the
  system can drop their pages at any time, and they disappear with the process, however it ends. Their disk space is
  allocated in advance; a full disk ends the run with a one-line error.
- While blocks are pruned, the system refuses the process more memory (Linux: `RLIMIT_DATA`). If the limit is reached all the
  same, the run ends with a one-line error. Finished blocks are kept, and the same command with a larger limit resumes, with
  the batch size that the run started with. Tokenizers are not limited, because they would abort the process.

Where a tensor is stored does not change the result; smaller batches change rounding. Recomputing activations through the
finished blocks instead would take time quadratic in the depth, and only save disk space that the output needs anyway, so it
is not offered. Several GPUs are used by one process each ([scaling](scaling.md)), not by distributing layers.

`eggs plan --memory SIZE` reports the memory needed without reading a weight.

On Linux `eggs` lets torch allocate memory of 2 MB and more in large pages (`THP_MEM_ALLOC_ENABLE=1`, unless it is set):
large tensors are allocated and freed all the time, and the system has fewer pages to clear. From Python, set it before the
first tensor is created.
"""


_MEASURED = """## Measured

A Llama-shaped checkpoint in bfloat16 (hidden 2048, MLP 8192, vocabulary 128256; 1.24 billion parameters with 16 layers),
random weights and tokens, by `benchmarks/large.py`. `--limit 2048` means that a run is limited to 2 GiB (`3072`: 3) more
than its imports take. `blocks x2` is two forward passes of every block and nothing else. That row and llm-compressor keep
memory that `eggs prune` returns to the system after each block. Blocks are computed in float32 unless `--dtype` says
otherwise; in bfloat16 their forward passes take less than half as long on this processor, and most of the rest takes the
same time.
"""


def large() -> str:
    """Return the page."""
    parts = [_HEAD, _MEASURED]
    for path in sorted(RESULTS.glob("large*.json")):
        parts += _tables(json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(parts).rstrip() + "\n"


def _tables(record: dict[str, Any]) -> list[str]:
    rows = record["rows"]
    lines = [
        "| layers | | seconds | over `blocks x2` | processor seconds | over `blocks x2` | peak memory over imports |",
        "|---|---|---|---|---|---|---|",
    ]
    forward_seconds = {row["layers"]: row["cpu_seconds"] for row in rows if row["row"] == "blocks x2"}
    for row in rows:
        cells = (
            str(row["layers"]),
            f"`{row['row']}`",
            f"{row['seconds']:.0f}",
            f"{row['ratio_to_blocks']:.2f}x",
            f"{row['cpu_seconds']:.0f}",
            f"{row['cpu_seconds'] / forward_seconds[row['layers']]:.2f}x",
            f"{row['memory'] / MIB:,.0f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    note = record.get("note")
    return [f"`{record['command']}`" + (f" ({note})" if note else ""), "", *lines, ""]
