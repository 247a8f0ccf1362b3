"""Processes that prune together, started as torchrun does, each with everything imported beforehand."""

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
    "eggs_ptp.engine.distributed.torchrun",
    "transformers.models.llama.modeling_llama",
]
_COMMAND = """
import os, sys
os.environ.update({environment!r})
from eggs_ptp.cli.main import main
with open({stderr!r}, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
    code = main({arguments!r})
sys.exit(code)
"""
_TIME_AND_MEMORY = ("seconds", "stages", "peak_memory_bytes", "baseline_memory_bytes")
_PROCESSES = multiprocessing.get_context("forkserver")


class LaunchedProcesses:
    """The processes of one `eggs` command; the stderr of each goes to a file next to `output`.

    Args:
        count: Number of processes.
        output: The folder that they write.
        arguments: The arguments after `eggs`.
    """

    def __init__(self, count: int, output: Path, arguments: Sequence[object]) -> None:
        self.output = output
        self.count = count
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(count)}
        self.processes = []
        _PROCESSES.set_forkserver_preload(_PRELOADED)
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
            command = _COMMAND.format(
                environment=common | own,
                stderr=str(self._stderr(rank)),
                arguments=[str(argument) for argument in arguments],
            )
            process = _PROCESSES.Process(target=exec, args=(command, {}))
            process.start()
            self.processes.append(process)

    def exit_codes(self) -> list[int | None]:
        """Wait for all processes, and return their exit codes."""
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]

    def messages(self, rank: int) -> list[str]:
        """Return the errors and notes that a process has printed."""
        lines = self._stderr(rank).read_text().splitlines()
        return [line for line in lines if line.startswith("eggs:")]

    def journal_entries(self) -> int:
        """Return how many entries the journal has."""
        folder = self.output.parent / f".{self.output.name}.draft"
        with suppress(FileNotFoundError):
            return sum(name.startswith("entry-0") for name in os.listdir(folder))
        return 0

    def _stderr(self, rank: int) -> Path:
        return self.output.parent / f"{self.output.name}-{self.count}-{rank}.stderr"


def content(folder: Path) -> tuple[dict[Path, bytes], dict[str, Any]]:
    """Return all files of an output as bytes, and its record without times and memory."""
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(files.pop(Path("eggs.json")))
    for matrix in record["matrices"]:
        del matrix["seconds"]
        matrix.get("tune", {}).pop("seconds", None)
    return files, {key: value for key, value in record.items() if key not in _TIME_AND_MEMORY}
