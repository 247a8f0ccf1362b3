"""The page docs/trust.md, from docs/results/fuzz.json and docs/results/faults.json."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results"
_HEAD = """# Faults and fuzzing

<!-- Written by tools/docs/make_pages.py from docs/results/faults.json and docs/results/fuzz.json. -->

What is trusted and what is not: [SECURITY.md](../SECURITY.md).

## Faults

Each row is a number of runs of one command on a small random Llama (three blocks, 0.2 MB, in five shards), each with one
fault drawn from a seed. About half of the runs replace a previous output (`--overwrite`), and in every other round
`eggs prune` writes several files, as it does for a model of more than 2 GiB. *Clear*: exit code 2 and one line on stderr
that names what failed and why, no traceback (for signals: exit code 130 or 143 and `eggs: interrupted`; a killed process
prints nothing). *Intact*: the previous output is there bit for bit, or nothing if there was none, or the complete new
output; nothing half-written. *Equal*: the same command afterwards, without the fault, ends with the bytes of an undisturbed
run (of the record, everything but times, memory and folder names), and nothing else is left. *Resumed*: how many of these
had finished blocks to resume from. Faults that came too late to matter were drawn again and are not counted.

"""
_KINDS = """
| kind | what is done |
|---|---|
| kill, interrupt, terminate | SIGKILL, SIGINT, SIGTERM at a random moment |
| file size limit | RLIMIT_FSIZE, 1 to 80 KB: writes fail with EFBIG |
| disk full | a tmpfs with 4 to 440 KiB free: writes fail with ENOSPC |
| disk full in the journal | a tmpfs filled up except for 0 to 48 KiB when entry 0, 1, 2 or 3 is written |
| permission lost | the output's folder and everything in it becomes read-only at a random moment; the process has no capabilities, so that root is refused too |
| source unreadable | a random shard or JSON file of the source becomes unreadable, likewise |
| source cut short | a random shard of the source is truncated at a random moment |
| read error | one read of a tensor fails with EIO (injected into the process) |
| corrupt header | one byte of a shard's header is changed |
| corrupt weights (NaN) | 4 to 32 bytes of a shard's tensors become 0xff, which is NaN |
| corrupt journal | the run is killed, and one byte of what it has stored is changed; the same command refuses, and `--overwrite` restarts |

"""
_LIMITS = """
A byte of a weight that changes to another finite number cannot be noticed while pruning: safetensors has no checksums. A
truncated shard may have been read as the source when the run began; then the same command, with the shard restored, reports
that the model has changed, and `--overwrite` restarts (*restarted*).

"""
_FUZZ = """## Fuzzing

Google's atheris (libFuzzer) on every reader of model folders: config, record, index, safetensors headers, packed matrices,
permutations, masks, `eggs verify` ([how](../fuzz/README.md)). Only errors of the package may be raised, and no tensor may
claim more bytes than its file contains.

| run | seconds | executions | edges covered | features | inputs kept | crashes, timeouts, lack of memory |
|---|---:|---:|---:|---:|---:|---:|
"""
# Keys of the record's table, and the columns of the page.
_COLUMNS = {
    "faults": "faults",
    "clear": "clear",
    "with an output before": "over a previous output",
    "intact": "intact",
    "went on from finished blocks": "resumed",
    "equal afterwards": "equal",
    "begun anew with --overwrite": "restarted",
    "lost or corrupted": "lost or corrupted",
}


def trust() -> str:
    """Return both records as tables."""
    faults = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    fuzz = json.loads((RESULTS / "fuzz.json").read_text(encoding="utf-8"))
    return _HEAD + _faults(faults) + _KINDS.lstrip("\n") + _LIMITS.lstrip("\n") + _FUZZ + _fuzz(fuzz)


def _faults(record: dict[str, Any]) -> str:
    rows = record["table"]
    lines = [f"| command | fault | {_cells(_COLUMNS.values())} |", "|---|---|" + "---:|" * len(_COLUMNS)]
    lines += [f"| `eggs {row['verb']}` | {row['kind']} | {_cells(row[key] for key in _COLUMNS)} |" for row in rows]
    lines.append(f"| **all** | | {_cells(f'**{sum(row[key] for row in rows)}**' for key in _COLUMNS)} |")
    versions = record["versions"]
    command = (
        f"Measured by `{record['command']}` in {record['seconds']:.0f} s (Python {versions['python']}, torch "
        f"{versions['torch']})."
    )
    messages = [f"| {row['kind']} | `{row['line'][:230]}` |" for row in rows if row["verb"] == "prune" and row["line"]]
    examples = "\n".join(["| fault | the message of its first run |", "|---|---|", *messages])
    return "\n".join(lines) + f"\n\n{command}\n\n{examples}\n\n"


def _fuzz(record: dict[str, Any]) -> str:
    lines = []
    for number, run in enumerate(record["runs"], 1):
        cells = [
            number,
            f"{run['seconds']:.0f}",
            run["executions"],
            run["edges covered"],
            run["features covered"],
            run["inputs at the end"],
            len(run["crashes, timeouts and lack of memory"]),
        ]
        lines.append(f"| {_cells(cells)} |")
    versions = record["versions"]
    command = (
        f"Measured by `{record['command']}`, one process, one thread (atheris {versions['atheris']}, torch "
        f"{versions['torch']}). {' '.join(record['remarks'])}"
    )
    corpus = f"The corpus, merged: {record['corpus']['inputs']} inputs, {record['corpus']['bytes']} bytes."
    return "\n".join(lines) + f"\n\n{command}\n\n{corpus} `tests/fuzz` replays it.\n"


def _cells(values: Iterable[Any]) -> str:
    return " | ".join(map(str, values))
