"""Faults injected into runs of `eggs prune` and `eggs export`, and the result of the same command afterwards.

`python benchmarks/faults.py --record docs/results/faults.json` takes some minutes. Every run of a tiny random Llama is
a process forked from this one, which has imported everything. Everything but the kinds of faults is drawn from the
seed.
"""

import argparse
import io
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fault_kinds import KINDS, Fault, FaultMissed, RunFiles, unmount
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from eggs_ptp.checkpoint import staging
from eggs_ptp.cli import program
from eggs_ptp.cli.main import main

# Keys of a record that differ from run to run: times, memory, and the names of folders.
VARYING = ("seconds", "stages", "peak_memory_bytes", "baseline_memory_bytes", "source", "recipe", "recipe_sha256")
VARYING += ("calibration",)
NO_CLEANUP = ("kill", "permission lost")  # the process cannot clean up; the next run does
MAX_TRIES = 20  # consecutive faults of a kind that may come too late
INTERRUPTED = {"interrupt": 130, "terminate": 143}
SINGLE_FILE_BYTES = staging.MAX_SINGLE_FILE_BYTES
_ENDED = 75  # exit code if a signal came after the command had ended


@dataclass
class Row:
    """The result of one fault.

    Attributes:
        verb: The verb of the run.
        kind: The kind of fault.
        detail: Describes the fault.
        code: The exit code.
        line: The last line on stderr.
        clear: Whether exit code and message are as expected.
        several: Whether the output consists of several files, as those of more than 2 GiB do.
        replaces: Whether the run replaces a previous output, with --overwrite.
        intact: Whether nothing is half-written: the previous output is unchanged, or the new one complete.
        kept: Finished blocks from which the same command could resume.
        refused: Whether the same command refused to resume, because the model had changed, and --overwrite restarted.
        equal: Whether the same command, without the fault, ends with the bytes of an undisturbed run.
        wrong: What is not as it should be.
    """

    verb: str
    kind: str
    detail: str
    code: int | None = None
    line: str = ""
    clear: bool = False
    several: bool = False
    replaces: bool = False
    intact: bool = False
    kept: int = 0
    refused: bool = False
    equal: bool = False
    wrong: list[str] = field(default_factory=list)


class Testbed:
    """A model, a text, and the outputs of undisturbed runs, in one file or in several."""

    def __init__(self, folder: Path, *, several: bool) -> None:
        self.folder = folder
        self.several = several
        self.set_file_size()
        folder.mkdir()
        self.model = folder / "model"
        self.text = folder / "text.txt"
        _write_model(self.model)
        lines = [f"Line {i} says that {i * i} is the square of {i}, and {i % 7} the rest by seven." for i in range(80)]
        self.text.write_text("\n".join(lines), encoding="utf-8")
        self.pruned = folder / "pruned"
        self.previous = folder / "previous"
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        for verb, output in (("prune", self.pruned), ("export", folder / "packed")):
            for _ in range(2):  # the first run imports what it needs
                shutil.rmtree(output, ignore_errors=True)
                start = time.perf_counter()
                _run(self.command(verb, self.model, output))
                self.seconds[verb] = time.perf_counter() - start
            self.expected[verb] = content(output)
        _run([*self.command("prune", self.model, self.previous)[:4], "--method", "magnitude", "--json"])
        self.previous_files = files(self.previous)

    def set_file_size(self) -> None:
        """Have processes forked from now on write one file, or several."""
        staging.MAX_SINGLE_FILE_BYTES = 1000 if self.several else SINGLE_FILE_BYTES

    def command(self, verb: str, model: Path, output: Path, *, replace: bool = False) -> list[str]:
        """Return the arguments of `eggs`."""
        overwrite = ["--overwrite"] if replace else []
        if verb == "export":
            return ["export", str(self.pruned), "-o", str(output), "--format", "packed", "--json", *overwrite]
        calibration = ["--calibration", str(model.parent / "text.txt"), "--nsamples", "4", "--seqlen", "32"]
        return ["prune", str(model), "-o", str(output), "--method", "eggs", *calibration, "--json", *overwrite]

    def start(self, command: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
        """Start a process that runs a command, with its stderr in a file; return its id once the command has begun."""
        sys.stdout.flush()
        begun, signal_begun = os.pipe()
        if process := os.fork():
            os.close(signal_begun)
            os.read(begun, 1)
            os.close(begun)
            return process
        code = 70
        try:
            error = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            os.dup2(error, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = (
                os.fdopen(1, "w"),
                os.fdopen(2, "w", buffering=1),
            )  # in place of pytest's, for example
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground of a shell
            signal.signal(signal.SIGTERM, lambda *_: os._exit(_ENDED))
            prepare()
            real_run = program.run

            def run(arguments: Sequence[str]) -> int:
                os.write(signal_begun, b"!")  # from now on the command handles signals
                return real_run(arguments)

            program.run = run
            code = main(command)
        except KeyboardInterrupt:
            code = _ENDED
        except BaseException as error:
            os.write(2, f"Traceback: {error!r}".encode())
        finally:
            os._exit(code)

    def inject(self, verb: str, kind: str, rng: random.Random) -> Row | None:
        """Inject one fault; return None if the run ended before it happened."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            return self._inject(verb, kind, rng, folder)
        except FaultMissed:
            return None
        finally:
            unmount(folder / "disk")
            shutil.rmtree(folder)

    def _inject(self, verb: str, kind: str, rng: random.Random, folder: Path) -> Row | None:
        shutil.copytree(self.model, folder / "model")
        shutil.copytree(self.pruned, folder / "pruned")
        shutil.copy(self.text, folder)
        disk = folder / "disk"
        disk.mkdir()
        source = folder / ("model" if verb == "prune" else "pruned")
        output = disk / "out"
        log = folder / "log"
        replace = rng.random() < 0.5
        fault: Fault = KINDS[kind].draw(RunFiles(rng, disk, source, self.seconds[verb]))
        if replace:
            shutil.copytree(self.previous, output)
        command = self.command(verb, folder / "model", output, replace=replace)
        command[1] = str(source)
        row = Row(verb, kind, fault.detail, several=self.several, replaces=replace)
        if fault.before:
            fault.before(lambda: self.start(command, log))
        process = self.start(command, log, fault.prepare)
        if fault.strike:
            deadline = time.monotonic() + fault.delay
            while (
                time.monotonic() < deadline
                and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                time.sleep(0.001)
            fault.strike(process)
        row.code = self._wait(process)
        fault.undo()
        lines = log.read_text(errors="replace").splitlines()
        row.line = (lines[-1] if lines else "").replace(str(folder), "...")
        if row.code == _ENDED or (row.code == 0 and content(output) == self.expected[verb]):
            return None
        is_complete = self._check(row, verb, output, lines)
        command += ["--overwrite"] if not replace and (is_complete or fault.needs_overwrite) else []
        code = self._wait(self.start(command, log))
        row.refused = code == 2 and "differs from this one" in log.read_text(errors="replace")
        if row.refused:  # the finished blocks were made from the source as the fault had left it
            code = self._wait(self.start([*command, "--overwrite"], log))
        row.equal = code == 0 and content(output) == self.expected[verb]
        if not row.equal:
            row.wrong.append(f"the same command afterwards: {code}, {log.read_text(errors='replace')[-300:]}")
        if leftovers := {path.name for path in disk.iterdir()} - {"out"}:
            row.wrong.append(f"left behind at the end: {sorted(leftovers)}")
        return row

    @staticmethod
    def _wait(process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _check(self, row: Row, verb: str, output: Path, lines: list[str]) -> bool:
        """Check exit code, message and files after a fault; return whether the new output is complete."""
        if row.kind == "kill":
            row.clear = row.code == -9
        elif row.kind in INTERRUPTED:
            row.clear = row.code == INTERRUPTED[row.kind] and row.line == "eggs: interrupted"
        else:
            row.clear = row.code == 2 and row.line.startswith("eggs: error: ")
        if not row.clear or any("Traceback" in line for line in lines):
            row.clear = False
            row.wrong.append(f"exit code {row.code}, {' / '.join(lines)[-600:]}")
        stored = files(output) if output.exists() else None
        is_complete = (
            stored is not None and content(output) == self.expected[verb]
        )  # the fault came after the last step
        row.intact = is_complete or (stored == self.previous_files if row.replaces else stored is None)
        leftovers = {path.name for path in output.parent.iterdir()} - {"out"}
        row.kept = len(list(output.parent.glob(".out.draft/entry-?????")))
        only_staging = all(name.startswith(".out.draft") for name in leftovers)
        if not only_staging or (leftovers and not row.kept and row.kind not in NO_CLEANUP):
            row.intact = False
        if not row.intact:
            row.wrong.append(f"left behind: {sorted(leftovers)}, output {None if stored is None else sorted(stored)}")
        return is_complete


def _run(command: list[str]) -> None:
    with redirect_stdout(io.StringIO()):
        assert main(command) == 0, command


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> dict[str, Any]:
    """Return the content of all files in a folder, without what differs from run to run."""
    result: dict[str, Any] = files(folder)
    if "eggs.json" in result:
        record = json.loads(result["eggs.json"])
        for matrix in record["matrices"]:
            del matrix["seconds"]
        result["eggs.json"] = {key: value for key, value in record.items() if key not in VARYING}
    result.pop("README.md", None)  # repeats the record, and names the model's folder
    return result


def _write_model(folder: Path) -> None:
    """Write three blocks of random weights in several shards, with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=258, num_hidden_layers=3, max_position_embeddings=64, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="40KB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate([*alphabet, "<s>", "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder)


def table(rows: list[Row]) -> list[dict[str, Any]]:
    """Count the results of each verb and kind."""
    result = []
    for verb, kind in dict.fromkeys((row.verb, row.kind) for row in rows):
        of_kind = [row for row in rows if (row.verb, row.kind) == (verb, kind)]
        counts: Counter[str] = Counter()
        for row in of_kind:
            counts.update({
                "faults": 1,
                "clear": int(row.clear),
                "with an output before": int(row.replaces),
                "intact": int(row.intact),
                "went on from finished blocks": int(row.kept > 0),
                "begun anew with --overwrite": int(row.refused),
                "equal afterwards": int(row.equal),
                "lost or corrupted": int(not (row.intact and row.equal)),
            })  # fmt: skip
        result.append({"verb": verb, "kind": kind, **counts, "line": of_kind[0].line})
    return result


def run(
    counts: dict[str, int], folder: Path, seed: int, on_progress: Callable[[Row], None] = lambda _row: None
) -> list[Row]:
    """Inject faults of all kinds that this machine permits, in turn.

    Args:
        counts: Number of faults by verb; those that miss their run do not count.
        folder: Where models and outputs are written.
        seed: Draws the faults.
        on_progress: Called after each fault.
    """
    testbeds = [Testbed(folder / str(several), several=several) for several in (False, True)]
    rows = []
    for verb, count in counts.items():
        rng = random.Random(f"{seed} {verb}")  # noqa: S311
        kinds = [name for name, kind in KINDS.items() if verb in kind.verbs and kind.is_possible()]
        for number in range(count):
            testbed = testbeds[verb == "prune" and number // len(kinds) % 2]  # a packed folder is always one file
            testbed.set_file_size()
            tries = (testbed.inject(verb, kinds[number % len(kinds)], rng) for _ in range(MAX_TRIES))
            row = next(row for row in tries if row is not None)
            rows.append(row)
            on_progress(row)
    return rows


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", type=int, default=143, help="faults of eggs prune")
    parser.add_argument("--export", type=int, default=60, help="faults of eggs export")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()

    def show(row: Row) -> None:
        print(f"{row.verb} {row.kind} ({row.detail}): {row.code} {row.line[:150]} {row.wrong or ''}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        rows = run({"prune": arguments.prune, "export": arguments.export}, Path(folder), arguments.seed, show)
    wrong = [row for row in rows if row.wrong]
    counts = f"--prune {arguments.prune} --export {arguments.export}"
    record = {
        "command": f"python benchmarks/faults.py {counts} --seed {arguments.seed}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("eggs-ptp", "torch")}},
        "seconds": round(time.perf_counter() - start, 1),
        "faults": len(rows),
        "lost or corrupted": sum(not (row.intact and row.equal) for row in rows),
        "without a clear line": sum(not row.clear for row in rows),
        "table": table(rows),
        "rows": [{key: value for key, value in asdict(row).items() if key != "wrong"} for row in rows],
    }
    print(json.dumps({key: record[key] for key in record if key not in ("rows",)}, indent=1))
    if arguments.record and not wrong:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(f"{len(wrong)} of {len(rows)} faults had a wrong result" if wrong else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main()
