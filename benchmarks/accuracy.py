"""Accuracy of our methods and of other tools on the same calibration windows, judged by one evaluator.

    python benchmarks/accuracy.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS] --peer-python TOOL=PYTHON

A model is the built-in one, or a folder, a calibration text, an evaluation text (each a file, or `builtin` for the
built-in text's two parts) and how many evaluation windows to take (all). For every seed, packed calibration windows
are drawn once, and every method gets these very tokens as a file: ours by `eggs_ptp.prune`, other tools by their own
code in an interpreter of their own, where they are installed:

    python -m venv build/peers
    build/peers/bin/pip install torch==2.13.0
    build/peers/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1 nvidia-modelopt==0.47.0 accelerate

A method is a name (`eggs`, `wanda+dsnot`), a recipe file, or either with settings: "eggs steps.select.B=2". Every
folder that comes out is verified and evaluated by `eggs_ptp.evaluate` on packed windows. One record holds everything;
what it holds already is not run again, unless its settings or tokens are others now or `--again` names it. Without
`--model` the record's tables are printed.

`excess` is ln(perplexity / dense); `share` is the excess as a share of SparseGPT's (ours) with the same seed.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
OURS = ("magnitude", "wanda", "ria", "ria_cp", "sparsegpt", "alps", "eggs", "eggs+", "eggs-max")
REFERENCE = "sparsegpt"
TOOL = "eggs-ptp"
PEERS = {  # tool: its distribution, and its one-shot methods with the patterns that it has them for (None: any N:M)
    "llmcompressor": ("llmcompressor", {"sparsegpt": None, "wanda": None}),
    "modelopt": ("nvidia-modelopt", {"sparsegpt": ("2:4",), "magnitude": ("2:4",)}),
}
BUILTIN = "builtin"
LISTS = ("environments", "commands", "settings")


class RunError(Exception):
    """A method that could not be run, with the reason in one line."""


class Model(NamedTuple):
    """A model with its texts, as asked for and as found."""

    name: str
    folder: Path
    calibration: str
    text: Path
    limit: int | None
    seqlen: int
    facts: dict[str, Any]


def main() -> None:
    from eggs_ptp import EggsError

    given = parse()
    record = Record(given.record)
    if not given.model:
        record.print_tables()
        return
    try:
        measure(given, record)
    except EggsError as error:
        sys.exit(f"error: {error}")
    record.print_tables({Path(asked[0]).name for asked in given.model})
    for label, reason in record.missed.items():
        print(f"not run: {label}: {reason}")
    sys.exit(1 if record.missed else 0)


def measure(given: argparse.Namespace, record: "Record") -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        peers = find_peers(given.peer_python, record)
        methods = find_methods(given.methods, record)
        for asked in given.model:
            model = find_model(asked, given.seqlen, scratch)
            record.check(model, {"nsamples": given.nsamples, "sampling": "packed"})
            dense = record.dense(model)
            for seed in given.seeds:
                drawn = draw(model, given.nsamples, seed, scratch)
                for pattern in given.patterns:
                    place = (model, pattern, seed, drawn)
                    jobs: list[Job] = [Ours(text, label, *place) for label, text in methods.items()]
                    jobs += [
                        Peer(tool, method, python, *place)
                        for tool, python in peers.items()
                        for method, served in PEERS[tool][1].items()
                        if served is None or pattern in served
                    ]
                    for job in jobs:
                        run(job, record, dense, scratch, again=job.label in given.again)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", metavar="MODEL", help="demo, or a folder and its texts")
    parser.add_argument("--patterns", nargs="+", default=["2:4", "4:8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=list(OURS), metavar="METHOD")
    parser.add_argument("--peer-python", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256, help="or the model's context, where that is less")
    parser.add_argument("--again", nargs="*", default=[], metavar="METHOD", help="run these anew")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "accuracy.json")
    given = parser.parse_args()
    for asked in given.model or ():
        if not (asked == ["demo"] or len(asked) in (3, 4)):
            parser.error(f"--model {' '.join(asked)}: expected demo, or FOLDER CALIBRATION TEXT [WINDOWS]")
    return given


def find_peers(pairs: list[str], record: "Record") -> dict[str, str]:
    """The interpreters that have their tool; the others are noted."""
    pythons = dict(pair.split("=", 1) for pair in pairs)
    if unknown := pythons.keys() - PEERS:
        sys.exit(f"--peer-python {', '.join(unknown)}: expected one of {', '.join(PEERS)}")
    found = {}
    for tool, (distribution, _) in PEERS.items():
        if tool not in pythons:
            record.note_absent(tool, f"no interpreter given (--peer-python {tool}=PYTHON)")
            continue
        code = f"import importlib.metadata as m; m.version({distribution!r})"
        try:
            done = subprocess.run([pythons[tool], "-c", code], capture_output=True, check=False)
        except OSError as error:
            record.note_absent(tool, f"{pythons[tool]}: {error.strerror}")
            continue
        if done.returncode:
            record.note_absent(tool, f"{distribution} is not installed in {pythons[tool]}")
        else:
            record.note_present(tool)
            found[tool] = pythons[tool]
    return found


def find_methods(asked: list[str], record: "Record") -> dict[str, str]:
    """Labels and texts of the methods that there are; the others are noted and skipped."""
    from eggs_ptp import EggsError

    found = {}
    for text in asked:
        label = " ".join(Path(word).stem if word.endswith(".toml") else word for word in shlex.split(text))
        try:
            recipe_of(text)
        except EggsError as error:
            record.note_missed(label, str(error).partition("; known")[0])
        else:
            record.note_present(label)
            found[label] = text
    return found


def recipe_of(text: str, **flags: Any) -> Any:
    from eggs_ptp import read_recipe

    name, *overrides = shlex.split(text)
    if name.endswith(".toml"):
        return read_recipe(name, overrides, **flags)
    return read_recipe(None, overrides, method=name, **flags)


def each_model(given: argparse.Namespace, measure: Callable[[Model, Path], None]) -> None:
    """Measure every model that is asked for, with a folder for what comes and goes; its errors end the script."""
    from eggs_ptp import EggsError

    try:
        with tempfile.TemporaryDirectory() as name:
            for asked in given.model or ():
                measure(find_model(asked, given.seqlen, Path(name)), Path(name))
    except EggsError as error:
        sys.exit(f"error: {error}")


def find_model(asked: list[str], seqlen: int, scratch: Path) -> Model:
    from eggs_ptp import api
    from eggs_ptp.calibration.documents import read_documents
    from eggs_ptp.demo.builtin import builtin_documents
    from eggs_ptp.models.folder import read_config

    name, calibration, text, *limit = asked if len(asked) > 1 else [asked[0], BUILTIN, BUILTIN]
    folder = api.find(name)
    if calibration == text != BUILTIN:
        sys.exit(f"--model {name}: {text} cannot be both the calibration and the evaluation text")
    documents = builtin_documents("evaluation") if text == BUILTIN else read_documents(text)
    evaluated = scratch / f"{Path(name).name}-evaluation.jsonl"
    evaluated.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    length = min(seqlen, int(read_config(folder)["max_position_embeddings"]))
    facts = {
        "weights_sha256": digest.hexdigest(),
        "calibration": calibration if calibration == BUILTIN else Path(calibration).name,
        "evaluation": text if text == BUILTIN else Path(text).name,
        "evaluation_sha256": hashlib.sha256(evaluated.read_bytes()).hexdigest(),
        "seqlen": length,
        "evaluation_windows": int(limit[0]) if limit else None,
        **training_facts(folder),
    }
    return Model(Path(name).name, folder, calibration, evaluated, facts["evaluation_windows"], length, facts)


def training_facts(folder: Path) -> dict[str, Any]:
    """How a sibling of the built-in model was trained, from the log that its training script leaves in the folder."""
    log = folder / "training.json"
    if not log.exists():
        return {}
    facts = json.loads(log.read_text())
    kept = ("family", "shape", "parameters", "steps", "seed", "train_tokens", "batch_tokens", "seconds")
    return {"training": {key: facts.get(key, "llama" if key == "family" else None) for key in kept}}


def draw(model: Model, nsamples: int, seed: int, scratch: Path) -> tuple[Path, str]:
    """Packed calibration windows of one seed, as a file of token ids, and their SHA-256."""
    import numpy as np

    from eggs_ptp.calibration.windows import calibration_windows
    from eggs_ptp.demo.builtin import builtin_documents
    from eggs_ptp.models.folder import read_config
    from eggs_ptp.models.load import load_tokenizer
    from eggs_ptp.recipe.recipe import CalibrationSpec

    windows = calibration_windows(
        CalibrationSpec(text=model.calibration, nsamples=nsamples),
        load_tokenizer(model.folder),
        seqlen=model.seqlen,
        seed=seed,
        vocab_size=int(read_config(model.folder)["vocab_size"]),
        builtin=builtin_documents("calibration") if model.calibration == BUILTIN else None,
    )
    path = scratch / f"{model.name}-{seed}.npy"
    np.save(path, windows.tokens.numpy())
    return path, windows.digest


def perplexity(folder: Path, model: Model) -> Any:
    from eggs_ptp import evaluate

    return evaluate(folder, str(model.text), protocol="packed", seqlen=model.seqlen, max_windows=model.limit)


class Job:
    """One method on one model, pattern and seed."""

    tool = TOOL
    excused: tuple[str, ...] = ()  # checks of `verify` that the tool never promised to pass

    def __init__(self, label: str, model: Model, pattern: str, seed: int, drawn: tuple[Path, str]) -> None:
        self.label, self.model, self.pattern, self.seed = label, model, pattern, seed
        self.windows, self.tokens = drawn
        self.key = {"model": model.name, "pattern": pattern, "method": label, "seed": seed}

    def settings(self) -> dict[str, Any] | None:
        """What the method runs with, where that is known before it has run."""
        return None

    def prune(self, output: Path) -> dict[str, Any]:
        """Write the folder; returns seconds, cpu_seconds, settings and versions."""
        raise NotImplementedError


class Ours(Job):
    def __init__(self, text: str, label: str, model: Model, pattern: str, seed: int, drawn: tuple[Path, str]) -> None:
        super().__init__(label, model, pattern, seed, drawn)
        self.recipe = recipe_of(text, pattern=pattern, seed=seed, calibration=str(self.windows))

    def settings(self) -> dict[str, Any]:
        """The recipe but for what the record says elsewhere: every option of its steps, other keys if not default."""
        said = {"seed": True, "pattern": True, "steps": True, "calibration": {"text", "nsamples", "seqlen"}}
        table = self.recipe.model_dump(mode="json", exclude_defaults=True, exclude=said)
        steps = self.recipe.bound().method.to_dict()["steps"]
        found = {"method": self.recipe.method, **table, "steps": steps}
        return dict(json.loads(json.dumps({key: value for key, value in found.items() if value})))

    def prune(self, output: Path) -> dict[str, Any]:
        from eggs_ptp import EggsError, prune
        from eggs_ptp.checkpoint.record import versions

        cpu = time.process_time()
        try:
            done = prune(str(self.model.folder), output, self.recipe)
        except EggsError as error:
            raise RunError(str(error)) from error
        spent = time.process_time() - cpu
        where = {**versions(), "commit": commit()}
        return {"seconds": done.seconds, "cpu_seconds": spent, "settings": self.settings(), "versions": where}


class Peer(Job):
    excused = ("tensor names", "kept weights")  # ties may be stored twice, and zeros may be negative

    def __init__(self, tool: str, method: str, python: str, *place: Any) -> None:
        super().__init__(f"{tool} {method}", *place)
        self.tool, self.method, self.python = tool, method, python

    def prune(self, output: Path) -> dict[str, Any]:
        what = (self.tool, self.method, self.model.folder, self.windows, self.pattern, output)
        command = [self.python, HERE / "accuracy" / "peer.py", *what, "--seed", self.seed]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=offline, check=False)
        if done.returncode:
            raise RunError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        for pattern in ("tokenizer*", "special_tokens_map.json"):  # the same tokens for every folder
            for file in self.model.folder.glob(pattern):
                shutil.copyfile(file, output / file.name)
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def run(job: Job, record: "Record", dense: float, scratch: Path, *, again: bool) -> None:
    """Prune, verify, evaluate and note one row, unless the record has it."""
    from eggs_ptp import verify

    if not again and record.holds(job):
        return
    output = scratch / "pruned"
    shutil.rmtree(output, ignore_errors=True)
    name = " ".join(f"{value}" for value in job.key.values())
    try:
        done = job.prune(output)
    except RunError as error:
        record.note_missed(name, str(error))
        return
    record.note_present(name)
    found = perplexity(output, job.model)
    failures = verify(output, str(job.model.folder), pattern=job.pattern).failures
    row = {
        **job.key,
        "tool": job.tool,
        "perplexity": found.value,
        "dense": dense,
        "excess": found.nll - record.data["models"][job.model.name]["dense_nll"],
        "seconds": round(done["seconds"], 3),
        "cpu_seconds": round(done["cpu_seconds"], 3),
        "faults": [f"{check.name}: {check.detail}" for check in failures if check.name not in job.excused],
        "windows_sha256": job.tokens,
    }
    record.add(row, {**done["versions"], **surroundings()}, done["settings"])
    shutil.rmtree(output)
    print(f"{name}: {found.value:.3f} in {done['seconds']:.1f} s {row['faults'] or ''}", flush=True)


class Record:
    """The file: facts of each model, and one row a run; what many rows share stands in lists that rows point into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.missed: dict[str, str] = {}  # methods that this run was asked for
        empty = {"protocol": {}, "models": {}, **{name: [] for name in LISTS}, "not_run": {}, "rows": []}
        self.data: dict[str, Any] = {**empty, **(json.loads(path.read_text()) if path.exists() else {})}

    def check(self, model: Model, protocol: dict[str, Any]) -> None:
        """Refuse to mix rows that were not measured alike."""
        for what, old, new in (
            ("protocol", self.data["protocol"] or protocol, protocol),
            (model.name, {**model.facts, **self.data["models"].get(model.name, {})}, model.facts),
        ):
            if other := [key for key in new if old[key] != new[key]]:
                sys.exit(f"{self.path}: {what} was recorded with another {', '.join(other)}; use another --record")
        self.data["protocol"] = protocol

    def dense(self, model: Model) -> float:
        if model.name not in self.data["models"]:
            found = perplexity(model.folder, model)
            measured = {"dense": found.value, "dense_nll": found.nll, "targets": found.tokens}
            self.data["models"][model.name] = {**model.facts, **measured, "evaluation_windows_found": found.windows}
            self.save()
        return float(self.data["models"][model.name]["dense"])

    def holds(self, job: Job) -> bool:
        row = next((row for row in self.data["rows"] if job.key.items() <= row.items()), None)
        if row is None or row["windows_sha256"] != job.tokens:
            return False
        settings = job.settings()
        return settings is None or settings == self.data["settings"][row["settings"]]

    def add(self, row: dict[str, Any], environment: dict[str, Any], settings: dict[str, Any]) -> None:
        """Put a row in, in place of the one it renews."""
        command = shlex.join(["python", *sys.argv])
        for name, value in zip(LISTS, (environment, command, settings), strict=True):
            known = self.data[name]
            if value not in known:
                known.append(value)
            row[name.removesuffix("s") if name != "settings" else name] = known.index(value)
        same = ("model", "pattern", "method", "seed")
        self.data["rows"] = [old for old in self.data["rows"] if any(old[key] != row[key] for key in same)] + [row]
        self.save()

    def note_present(self, label: str) -> None:
        self.data["not_run"].pop(label, None)

    def note_absent(self, label: str, reason: str) -> None:
        """Say so, and let the record say so where it has nothing by that method or tool from another time."""
        if not any(label in (row["method"], row["tool"]) for row in self.data["rows"]):
            self.data["not_run"][label] = reason
            self.save()
        print(f"not run: {label}: {reason}", flush=True)

    def note_missed(self, label: str, reason: str) -> None:
        self.missed[label] = reason
        self.note_absent(label, reason)

    def save(self) -> None:
        """One line a row, so that a change of the record can be read."""
        parts = []
        for key, value in self.data.items():
            if isinstance(value, list):
                lines = ",\n".join("  " + json.dumps(item) for item in value)
                parts.append(f" {json.dumps(key)}: [\n{lines}\n ]" if value else f" {json.dumps(key)}: []")
            else:
                parts.append(f" {json.dumps(key)}: " + json.dumps(value, indent=1).replace("\n", "\n "))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        fresh.replace(self.path)

    def print_tables(self, names: set[str] | None = None) -> None:
        for name, facts in self.data["models"].items():
            for pattern in dict.fromkeys(row["pattern"] for row in self.data["rows"] if row["model"] == name):
                if names is None or name in names:
                    rows = [row for row in self.data["rows"] if (row["model"], row["pattern"]) == (name, pattern)]
                    print_table(f"{name}, {pattern}, dense {facts['dense']:.2f}", rows)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, in Markdown."""
    reference = {row["seed"]: row["excess"] for row in rows if row["method"] == REFERENCE}
    if reference and statistics.mean(reference.values()) < 0.2:
        title += ", SparseGPT's excess under 0.2: reported, not judged"
    print(f"\n{title}\n\n| method | perplexity | sd | excess | share of SparseGPT's | sd | seconds | CPU s | seeds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        values, excess = [row["perplexity"] for row in mine], [row["excess"] for row in mine]
        shares = [row["excess"] / reference[row["seed"]] for row in mine if row["seed"] in reference]
        share = f"{statistics.mean(shares):.3f} | {deviation(shares):.3f}" if shares else " | "
        times = " | ".join(f"{statistics.median(row[key] for row in mine):.1f}" for key in ("seconds", "cpu_seconds"))
        cells = f"{statistics.mean(values):.2f} | {deviation(values):.2f} | {statistics.mean(excess):.3f} | {share}"
        print(f"| {method} | {cells} | {times} | {len(mine)} |")
    for fault in dict.fromkeys(f"{row['method']}: {fault}" for row in rows for fault in row["faults"]):
        print(f"\nverify finds: {fault}")


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def surroundings() -> dict[str, Any]:
    return {"threads": os.environ.get("OMP_NUM_THREADS", "default"), "machine": platform.machine()}


def commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
