"""The page docs/trust.md, from docs/results/fuzz.json and docs/results/faults.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_HEAD = """# Faults and fuzzing

<!-- Written by docs/make_pages.py from docs/results/faults.json and docs/results/fuzz.json. -->

What is trusted and what is not: [SECURITY.md](../SECURITY.md).

## Faults

Each row is so many runs of one command on a small random Llama (three blocks, 0.2 MB, in five shards), every one with a
fault of its own, drawn from a seed; about half of the runs replace a previous output (`--overwrite`), and in every other
round `eggs prune` writes several files, as it does of a model of more than 2 GiB. *Clear*: exit code 2 and one line on stderr that names what and why, no traceback (for signals: exit code 130 or 143 and `eggs: interrupted`;
a kill says nothing). *Intact*: the previous output is there bit for bit, or nothing where nothing was, or the new
output as a whole; nothing half-written. *Equal*: the same command afterwards, without the fault, ends with the bytes of
an undisturbed run (of the record all but times, memory and folder names), and nothing else is left. *Went on*: how many
of these had finished blocks to go on from. Faults that came too late to matter were drawn again and are not counted.

"""
_KINDS = """
| kind | what is done |
|---|---|
| kill, interrupt, terminate | SIGKILL, SIGINT, SIGTERM at a random moment |
| file size limit | RLIMIT_FSIZE, 1 to 80 KB: writes fail with EFBIG |
| disk full | a tmpfs with 4 to 440 KiB free: writes fail with ENOSPC |
| disk full in the journal | a tmpfs filled up but for 0 to 48 KiB when entry 0, 1, 2 or 3 is written |
| permission lost | the output's folder and all below it become read-only at a random moment; the process has no capabilities, so that root is refused too |
| source unreadable | a random shard or JSON file of the source without read permission, likewise |
| source cut short | a random shard of the source truncated at a random moment |
| read error | one of the reads of tensors fails with EIO (injected into the process) |
| corrupt header | one byte of a shard's header is another |
| corrupt weights (NaN) | 4 to 32 bytes of a shard's tensors become 0xff, which is NaN |
| corrupt journal | the run is killed, one byte of what it has kept is another; the same command refuses, and `--overwrite` begins anew |

"""
_LIMITS = """
A byte of a weight that becomes another finite number cannot be noticed while pruning: safetensors has no checksums. A cut
shard may have been taken for the source when the run began; then the same command, with the shard mended, says that the
model has changed, and `--overwrite` begins anew (*anew*).

"""
_FUZZ = """## Fuzzing

Google's atheris (libFuzzer) on every reader of model folders: config, record, index, safetensors headers, packed
matrices, orders, masks, `eggs verify` ([how](../fuzz/README.md)). Only errors of the package may come, and no tensor may
stand for more than its file can hold.

| run | seconds | executions | edges covered | features | inputs kept | crashes, timeouts, lack of memory |
|---|---:|---:|---:|---:|---:|---:|
"""


def trust() -> str:
    """Both records as tables."""
    faults, fuzz = (json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in ("faults.json", "fuzz.json"))
    return _HEAD + _faults(faults) + _KINDS.lstrip("\n") + _LIMITS.lstrip("\n") + _FUZZ + _fuzz(fuzz)


def _faults(record: dict[str, Any]) -> str:
    heads = ["faults", "clear", "with an output before", "intact", "went on from finished blocks", "equal afterwards"]
    heads += ["begun anew with --overwrite", "lost or corrupted"]
    names = ["faults", "clear", "over a previous output", "intact", "went on", "equal", "anew", "lost or corrupted"]
    lines = [f"| command | fault | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    rows = record["table"]
    lines += [f"| `eggs {row['verb']}` | {row['kind']} | {_cells(row[head] for head in heads)} |" for row in rows]
    lines.append(f"| **all** | | {_cells(f'**{sum(row[head] for row in rows)}**' for head in heads)} |")
    found = record["versions"]
    made = f"Made by `{record['command']}` in {record['seconds']:.0f} s (Python {found['python']}, torch {found['torch']})."
    samples = [f"| {row['kind']} | `{row['line'][:230]}` |" for row in rows if row["verb"] == "prune" and row["line"]]
    shown = "\n".join(["| fault | the line of the first of them |", "|---|---|", *samples])
    return "\n".join(lines) + f"\n\n{made}\n\n{shown}\n\n"


def _fuzz(record: dict[str, Any]) -> str:
    lines = []
    for number, run in enumerate(record["runs"], 1):
        crashes = run["crashes, timeouts and lack of memory"]
        cells = [f"{run['seconds']:.0f}", run["executions"], run["edges covered"], run["features covered"]]
        lines.append(f"| {number} | {_cells([*cells, run['inputs at the end'], len(crashes)])} |")
    found = record["versions"]
    text = (
        f"Made by `{record['command']}`, one process, one thread (atheris {found['atheris']}, torch {found['torch']}). "
    )
    text += " ".join(record["remarks"])
    corpus = f"The corpus, merged: {record['corpus']['inputs']} inputs, {record['corpus']['bytes']} bytes."
    return "\n".join(lines) + f"\n\n{text}\n\n{corpus} `tests/fuzz` replays it.\n"


def _cells(values: Any) -> str:
    return " | ".join(map(str, values))
