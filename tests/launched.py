"""Processes that prune together, as torchrun would start them, in processes that have imported everything before."""

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_PRELOADED = [
    "eggs_ptp.api",
    "eggs_ptp.cli.program",
    "eggs_ptp.cli.terminal",
    "eggs_ptp.engine.team",
    "transformers.models.llama.modeling_llama",
]
_COMMAND = """
import os, sys
os.environ.update({environment!r})
from eggs_ptp.cli.main import main
with open({said!r}, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
    code = main({words!r})
sys.exit(code)
"""
_TIMES = ("seconds", "stages", "peak_memory_bytes", "baseline_memory_bytes")
_PROCESSES = multiprocessing.get_context("forkserver")


class Launched:
    """So many ranks at work on `eggs` with these words; what each says on stderr goes to files beside `output`."""

    def __init__(self, count: int, output: Path, words: Sequence[object]) -> None:
        self.output, self.count = output, count
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(count)}
        self.processes = []
        _PROCESSES.set_forkserver_preload(_PRELOADED)
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
            given = {"environment": common | own, "said": str(self._said(rank)), "words": [str(word) for word in words]}
            self.processes.append(_PROCESSES.Process(target=exec, args=(_COMMAND.format(**given), {})))
            self.processes[-1].start()

    def codes(self) -> list[int | None]:
        """How each has ended."""
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]

    def said(self, rank: int) -> list[str]:
        """Lines of errors and notes."""
        return [line for line in self._said(rank).read_text().splitlines() if line.startswith("eggs:")]

    def entries(self) -> int:
        """How many entries the journal has."""
        with suppress(FileNotFoundError):
            return sum(
                name.startswith("entry-0") for name in os.listdir(self.output.parent / f".{self.output.name}.draft")
            )
        return 0

    def _said(self, rank: int) -> Path:
        return self.output.parent / f"{self.output.name}-{self.count}-{rank}.stderr"


def content(folder: Path) -> tuple[dict[Path, bytes], dict[str, Any]]:
    """All files below a folder as bytes; of the record, everything but times and memory."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(found.pop(Path("eggs.json")))
    for matrix in record["matrices"]:
        del matrix["seconds"]
        matrix.get("tune", {}).pop("seconds", None)
    return found, {key: value for key, value in record.items() if key not in _TIMES}
