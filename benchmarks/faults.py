"""Faults injected into runs of `eggs prune` and `eggs export`: what comes of them, and of the same command afterwards.

`python benchmarks/faults.py --record docs/results/faults.json` (some minutes). A tiny random Llama, one process a run,
forked from this one, which has imported everything. Every fault, its kind aside, is drawn from the seed.
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
from fault_kinds import KINDS, Fault, Missed, Scene, unmount
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from eggs_ptp.checkpoint import draft
from eggs_ptp.cli import program
from eggs_ptp.cli.main import main

# What of a record differs from run to run: times, memory, and the names of folders.
OTHERWISE = ("seconds", "stages", "peak_memory_bytes", "baseline_memory_bytes", "source", "recipe", "recipe_sha256")
OTHERWISE += ("calibration",)
UNCLEARED = ("kill", "permission lost")  # nothing could be cleared away; the next run does
MISSES = 20  # faults of a kind in a row that come too late, or hit nothing
INTERRUPTED = {"interrupt": 130, "terminate": 143}
ONE_FILE = draft._ONE_FILE
_OVER = 75  # a signal came when the command had ended


@dataclass
class Row:
    """What came of one fault."""

    verb: str
    kind: str
    detail: str
    code: int | None = None
    line: str = ""
    clear: bool = False  # the exit code and the one line are what they should be
    several: bool = False  # outputs of several files, as those of more than 2 GiB are
    replaces: bool = False  # there was an output, and --overwrite
    intact: bool = False  # nothing half-written; and what was there is as it was, or the whole new output is there
    kept: int = 0  # finished blocks that the same command could go on from
    refused: bool = False  # the same command did not go on from these, as the model had changed; --overwrite did
    equal: bool = False  # the same command, with the fault removed, ends with the very bytes of an undisturbed run
    wrong: list[str] = field(default_factory=list)


class Bench:
    """A model, a text, what undisturbed runs make of them, in one file or several, and room for the others."""

    def __init__(self, room: Path, *, several: bool) -> None:
        self.room, self.several = room, several
        self.cut()
        room.mkdir()
        self.model, self.text = room / "model", room / "text.txt"
        _model(self.model)
        lines = [f"Line {i} says that {i * i} is the square of {i}, and {i % 7} the rest by seven." for i in range(80)]
        self.text.write_text("\n".join(lines), encoding="utf-8")
        self.pruned, self.before = room / "pruned", room / "before"
        self.seconds: dict[str, float] = {}
        self.whole: dict[str, dict[str, Any]] = {}
        for verb, output in (("prune", self.pruned), ("export", room / "packed")):
            for _ in range(2):  # the first one warms what it imports
                shutil.rmtree(output, ignore_errors=True)
                began = time.perf_counter()
                _run(self.words(verb, self.model, output))
                self.seconds[verb] = time.perf_counter() - began
            self.whole[verb] = content(output)
        _run([*self.words("prune", self.model, self.before)[:4], "--method", "magnitude", "--json"])
        self.previous = files(self.before)

    def cut(self) -> None:
        """Have what is forked from here on write files of this bench's kind."""
        draft._ONE_FILE = 1000 if self.several else ONE_FILE

    def words(self, verb: str, model: Path, output: Path, *, replace: bool = False) -> list[str]:
        """The command."""
        over = ["--overwrite"] if replace else []
        if verb == "export":
            return ["export", str(self.pruned), "-o", str(output), "--format", "packed", "--json", *over]
        text = ["--calibration", str(model.parent / "text.txt"), "--nsamples", "4", "--seqlen", "32"]
        return ["prune", str(model), "-o", str(output), "--method", "eggs", *text, "--json", *over]

    def start(self, words: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
        """A process that runs a command; its stderr goes to a file."""
        sys.stdout.flush()
        ready, begins = os.pipe()
        if process := os.fork():
            os.close(begins)
            os.read(ready, 1)
            os.close(ready)
            return process
        code = 70
        try:
            error = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            os.dup2(error, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # whatever they were before
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell's foreground
            signal.signal(signal.SIGTERM, lambda *_: os._exit(_OVER))
            prepare()
            real = program.run

            def run(words: Sequence[str]) -> int:
                os.write(begins, b"!")  # not before: from here on signals are the command's
                return real(words)

            program.run = run
            code = main(words)
        except KeyboardInterrupt:
            code = _OVER
        except BaseException as error:
            os.write(2, f"Traceback: {error!r}".encode())
        finally:
            os._exit(code)

    def inject(self, verb: str, kind: str, draw: random.Random) -> Row | None:
        """One fault; None where the run had ended before it came."""
        place = Path(tempfile.mkdtemp(dir=self.room))
        try:
            return self._inject(verb, kind, draw, place)
        except Missed:
            return None
        finally:
            unmount(place / "disk")
            shutil.rmtree(place)

    def _inject(self, verb: str, kind: str, draw: random.Random, place: Path) -> Row | None:
        for name, source in (("model", self.model), ("pruned", self.pruned)):
            shutil.copytree(source, place / name)
        shutil.copy(self.text, place)
        disk = place / "disk"
        disk.mkdir()
        source = place / ("model" if verb == "prune" else "pruned")
        output, log = disk / "out", place / "log"
        replace = draw.random() < 0.5
        fault: Fault = KINDS[kind].make(Scene(draw, disk, source, self.seconds[verb]))
        if replace:
            shutil.copytree(self.before, output)
        words = self.words(verb, place / "model", output, replace=replace)
        words[1] = str(source)
        row = Row(verb, kind, fault.detail, several=self.several, replaces=replace)
        if fault.before:
            fault.before(lambda: self.start(words, log))
        process = self.start(words, log, fault.prepare)
        if fault.strike:
            end = time.monotonic() + fault.moment
            while time.monotonic() < end and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.001)
            fault.strike(process)
        row.code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        fault.mend()
        lines = log.read_text(errors="replace").splitlines()
        row.line = (lines[-1] if lines else "").replace(str(place), "...")
        if row.code == _OVER or (row.code == 0 and content(output) == self.whole[verb]):
            return None
        done = self._judge(row, verb, output, lines)
        words += ["--overwrite"] if not replace and (done or fault.anew) else []
        code = os.waitstatus_to_exitcode(os.waitpid(self.start(words, log), 0)[1])
        row.refused = code == 2 and "differs from this one" in log.read_text(errors="replace")
        if row.refused:  # what is kept was made of the source as the fault had left it
            code = os.waitstatus_to_exitcode(os.waitpid(self.start([*words, "--overwrite"], log), 0)[1])
        row.equal = code == 0 and content(output) == self.whole[verb]
        if not row.equal:
            row.wrong.append(f"the same command afterwards: {code}, {log.read_text(errors='replace')[-300:]}")
        if left := {path.name for path in disk.iterdir()} - {"out"}:
            row.wrong.append(f"left behind in the end: {sorted(left)}")
        return row

    def _judge(self, row: Row, verb: str, output: Path, lines: list[str]) -> bool:
        """Set what there is to say of exit code, line and files; whether the output was in place already."""
        if row.kind == "kill":
            row.clear = row.code == -9
        elif row.kind in INTERRUPTED:
            row.clear = row.code == INTERRUPTED[row.kind] and row.line == "eggs: interrupted"
        else:
            row.clear = row.code == 2 and row.line.startswith("eggs: error: ")
        if not row.clear or any("Traceback" in line for line in lines):
            row.clear = False
            row.wrong.append(f"exit code {row.code}, {' / '.join(lines)[-600:]}")
        found = files(output) if output.exists() else None
        done = found is not None and content(output) == self.whole[verb]  # it came between the last step and the end
        row.intact = done or (found == self.previous if row.replaces else found is None)
        left = {path.name for path in output.parent.iterdir()} - {"out"}
        row.kept = len(list(output.parent.glob(".out.draft/entry-?????")))
        hidden = all(name.startswith(".out.draft") for name in left)
        if not hidden or (left and not row.kept and row.kind not in UNCLEARED):
            row.intact = False
        if not row.intact:
            row.wrong.append(f"left behind: {sorted(left)}, output {None if found is None else sorted(found)}")
        return done


def _run(words: list[str]) -> None:
    with redirect_stdout(io.StringIO()):
        assert main(words) == 0, words


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content(folder: Path) -> dict[str, Any]:
    """All files below a folder, of the record everything but times and memory."""
    found: dict[str, Any] = files(folder)
    if "eggs.json" in found:
        record = json.loads(found["eggs.json"])
        for matrix in record["matrices"]:
            del matrix["seconds"]
        found["eggs.json"] = {key: value for key, value in record.items() if key not in OTHERWISE}
    found.pop("README.md", None)  # says the same, and names the model's folder
    return found


def _model(folder: Path) -> None:
    """Three blocks of random weights in several shards, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=258, num_hidden_layers=3, max_position_embeddings=64, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="40KB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate([*alphabet, "<s>", "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)


def table(rows: list[Row]) -> list[dict[str, Any]]:
    """What came of the faults of each verb and kind."""
    found = []
    for verb, kind in dict.fromkeys((row.verb, row.kind) for row in rows):
        these = [row for row in rows if (row.verb, row.kind) == (verb, kind)]
        counts: Counter[str] = Counter()
        for row in these:
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
        found.append({"verb": verb, "kind": kind, **counts, "line": these[0].line})
    return found


def run(counts: dict[str, int], room: Path, seed: int, tell: Callable[[Row], None] = lambda _: None) -> list[Row]:
    """So many faults of each verb that hit a run, shared out over the kinds that it knows and this machine permits."""
    benches, rows = [Bench(room / str(several), several=several) for several in (False, True)], []
    for verb, count in counts.items():
        draw = random.Random(f"{seed} {verb}")  # noqa: S311
        kinds = [name for name, make in KINDS.items() if verb in make.verbs and make.possible()]
        for number in range(count):
            bench = benches[verb == "prune" and number // len(kinds) % 2]  # a packed folder is written in one way
            bench.cut()
            tries = (bench.inject(verb, kinds[number % len(kinds)], draw) for _ in range(MISSES))
            row = next(row for row in tries if row is not None)
            rows.append(row)
            tell(row)
    return rows


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", type=int, default=143, help="faults of eggs prune")
    parser.add_argument("--export", type=int, default=60, help="faults of eggs export")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    began = time.perf_counter()

    def tell(row: Row) -> None:
        print(f"{row.verb} {row.kind} ({row.detail}): {row.code} {row.line[:150]} {row.wrong or ''}", flush=True)

    with tempfile.TemporaryDirectory() as room:
        rows = run({"prune": asked.prune, "export": asked.export}, Path(room), asked.seed, tell)
    wrong = [row for row in rows if row.wrong]
    record = {
        "command": f"python benchmarks/faults.py --prune {asked.prune} --export {asked.export} --seed {asked.seed}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("eggs-ptp", "torch")}},
        "seconds": round(time.perf_counter() - began, 1),
        "faults": len(rows),
        "lost or corrupted": sum(not (row.intact and row.equal) for row in rows),
        "without a clear line": sum(not row.clear for row in rows),
        "table": table(rows),
        "rows": [{key: value for key, value in asdict(row).items() if key != "wrong"} for row in rows],
    }
    print(json.dumps({key: record[key] for key in record if key not in ("rows",)}, indent=1))
    if asked.record and not wrong:
        asked.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(f"{len(wrong)} of {len(rows)} faults ended wrongly" if wrong else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main()
