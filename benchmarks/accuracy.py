"""Accuracy of this project's methods and of other tools: same calibration windows, same evaluation.

    python benchmarks/accuracy.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS] --peer-python TOOL=PYTHON

A model is the built-in one, or a folder with a calibration text, an evaluation text (each a file, or `builtin` for the
two parts of the built-in text) and the number of evaluation windows (default: all). For every seed, packed calibration
windows are drawn once, and every method gets these tokens as a file: this project's methods by `eggs_ptp.prune`, other
tools' by their own code in their own interpreter, if one is given:

    python -m venv build/peers
    build/peers/bin/pip install torch==2.13.0
    build/peers/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1 nvidia-modelopt==0.47.0 accelerate

A method is a name (`eggs`, `wanda+dsnot`), a recipe file, or either of them with settings: "eggs steps.select.B=2".
Every pruned folder is verified, and evaluated by `eggs_ptp.evaluate` on packed windows. Results are stored in one
record. Rows that it already has are not measured again, unless their settings or tokens have changed or `--again` names
the method. Without `--model` the record's tables are printed.

`excess` is ln(perplexity / dense perplexity); `share` is the excess as a share of that of this project's SparseGPT with
the same seed.
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
DEFAULT_METHODS = ("magnitude", "wanda", "ria", "ria_cp", "sparsegpt", "alps", "eggs", "eggs+", "eggs-max")
REFERENCE = "sparsegpt"
TOOL = "eggs-ptp"
# By tool: its distribution, and its one-shot methods with the patterns that they support (None: any N:M).
PEERS = {
    "llmcompressor": ("llmcompressor", {"sparsegpt": None, "wanda": None}),
    "modelopt": ("nvidia-modelopt", {"sparsegpt": ("2:4",), "magnitude": ("2:4",)}),
}
BUILTIN = "builtin"
LISTS = ("environments", "commands", "settings")


class RunError(Exception):
    """A method could not be run; the message is one line."""


class Model(NamedTuple):
    """A model and its texts.

    Attributes:
        name: The last part of its path.
        folder: Where it is.
        calibration: Its calibration text.
        text: The evaluation documents, as a JSON lines file.
        limit: Number of evaluation windows; None for all.
        seqlen: Tokens of a window.
        metadata: What the record stores about it; rows are only comparable if these are equal.
    """

    name: str
    folder: Path
    calibration: str
    text: Path
    limit: int | None
    seqlen: int
    metadata: dict[str, Any]


def main() -> None:
    from eggs_ptp import EggsError

    arguments = parse()
    record = Record(arguments.record)
    if not arguments.model:
        record.print_tables()
        return
    try:
        measure(arguments, record)
    except EggsError as error:
        sys.exit(f"error: {error}")
    record.print_tables({Path(words[0]).name for words in arguments.model})
    for label, reason in record.failures.items():
        print(f"not run: {label}: {reason}")
    sys.exit(1 if record.failures else 0)


def measure(arguments: argparse.Namespace, record: "Record") -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        peers = find_peers(arguments.peer_python, record)
        methods = find_methods(arguments.methods, record)
        for words in arguments.model:
            model = find_model(words, arguments.seqlen, scratch)
            record.check(model, {"nsamples": arguments.nsamples, "sampling": "packed"})
            dense = record.dense(model)
            for seed in arguments.seeds:
                windows = draw_windows(model, arguments.nsamples, seed, scratch)
                for pattern in arguments.patterns:
                    run = (model, pattern, seed, windows)
                    jobs: list[Job] = [OwnJob(text, label, *run) for label, text in methods.items()]
                    jobs += [
                        PeerJob(tool, method, python, *run)
                        for tool, python in peers.items()
                        for method, patterns in PEERS[tool][1].items()
                        if patterns is None or pattern in patterns
                    ]
                    for job in jobs:
                        run_job(job, record, dense, scratch, again=job.label in arguments.again)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", metavar="MODEL", help="demo, or a folder and its texts")
    parser.add_argument("--patterns", nargs="+", default=["2:4", "4:8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=list(DEFAULT_METHODS), metavar="METHOD")
    parser.add_argument("--peer-python", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256, help="or the model's context, if that is shorter")
    parser.add_argument("--again", nargs="*", default=[], metavar="METHOD", help="measure these methods again")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "accuracy.json")
    arguments = parser.parse_args()
    for words in arguments.model or ():
        if not (words == ["demo"] or len(words) in (3, 4)):
            parser.error(f"--model {' '.join(words)}: expected demo, or FOLDER CALIBRATION TEXT [WINDOWS]")
    return arguments


def find_peers(pairs: list[str], record: "Record") -> dict[str, str]:
    """Return the interpreters in which a tool is installed, by tool; record which tools are missing."""
    interpreters = dict(pair.split("=", 1) for pair in pairs)
    if unknown := interpreters.keys() - PEERS:
        sys.exit(f"--peer-python {', '.join(unknown)}: expected one of {', '.join(PEERS)}")
    installed = {}
    for tool, (distribution, _) in PEERS.items():
        if tool not in interpreters:
            record.note_missing(tool, f"no interpreter given (--peer-python {tool}=PYTHON)")
            continue
        python = interpreters[tool]
        code = f"import importlib.metadata as m; m.version({distribution!r})"
        try:
            done = subprocess.run([python, "-c", code], capture_output=True, check=False)
        except OSError as error:
            record.note_missing(tool, f"{python}: {error.strerror}")
            continue
        if done.returncode:
            record.note_missing(tool, f"{distribution} is not installed in {python}")
        else:
            record.note_present(tool)
            installed[tool] = python
    return installed


def find_methods(texts: list[str], record: "Record") -> dict[str, str]:
    """Return labels and texts of the methods that exist; record and skip the others."""
    from eggs_ptp import EggsError

    methods = {}
    for text in texts:
        label = " ".join(Path(word).stem if word.endswith(".toml") else word for word in shlex.split(text))
        try:
            recipe_of(text)
        except EggsError as error:
            record.note_failure(label, str(error).partition("; known")[0])
        else:
            record.note_present(label)
            methods[label] = text
    return methods


def recipe_of(text: str, **flags: Any) -> Any:
    """Return the recipe of a method's text, such as `eggs steps.select.B=2`."""
    from eggs_ptp import read_recipe

    name, *overrides = shlex.split(text)
    if name.endswith(".toml"):
        return read_recipe(name, overrides, **flags)
    return read_recipe(None, overrides, method=name, **flags)


def each_model(arguments: argparse.Namespace, measure: Callable[[Model, Path], None]) -> None:
    """Measure every requested model, with a temporary folder; errors of this package end the script."""
    from eggs_ptp import EggsError

    try:
        with tempfile.TemporaryDirectory() as name:
            for words in arguments.model or ():
                measure(find_model(words, arguments.seqlen, Path(name)), Path(name))
    except EggsError as error:
        sys.exit(f"error: {error}")


def find_model(words: list[str], seqlen: int, scratch: Path) -> Model:
    """Return the model that the words of `--model` describe."""
    from eggs_ptp import api
    from eggs_ptp.calibration.documents import read_documents
    from eggs_ptp.demo.builtin import builtin_documents
    from eggs_ptp.models.folder import read_config

    name, calibration, text, *limit = words if len(words) > 1 else [words[0], BUILTIN, BUILTIN]
    folder = api.find(name)
    if calibration == text != BUILTIN:
        sys.exit(f"--model {name}: {text} cannot be both the calibration and the evaluation text")
    documents = builtin_documents("evaluation") if text == BUILTIN else read_documents(text)
    evaluation = scratch / f"{Path(name).name}-evaluation.jsonl"
    evaluation.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    length = min(seqlen, int(read_config(folder)["max_position_embeddings"]))
    metadata = {
        "weights_sha256": digest.hexdigest(),
        "calibration": calibration if calibration == BUILTIN else Path(calibration).name,
        "evaluation": text if text == BUILTIN else Path(text).name,
        "evaluation_sha256": hashlib.sha256(evaluation.read_bytes()).hexdigest(),
        "seqlen": length,
        "evaluation_windows": int(limit[0]) if limit else None,
        **training_metadata(folder),
    }
    return Model(Path(name).name, folder, calibration, evaluation, metadata["evaluation_windows"], length, metadata)


def training_metadata(folder: Path) -> dict[str, Any]:
    """Return how a sibling of the built-in model was trained, from the log of its training script."""
    log = folder / "training.json"
    if not log.exists():
        return {}
    logged = json.loads(log.read_text())
    keys = ("family", "shape", "parameters", "steps", "seed", "train_tokens", "batch_tokens", "seconds")
    return {"training": {key: logged.get(key, "llama" if key == "family" else None) for key in keys}}


def draw_windows(model: Model, nsamples: int, seed: int, scratch: Path) -> tuple[Path, str]:
    """Draw the packed calibration windows of one seed; return a file of their token ids, and their SHA-256."""
    import numpy as np

    from eggs_ptp.calibration.windows import calibration_windows
    from eggs_ptp.demo.builtin import builtin_documents
    from eggs_ptp.models.folder import read_config
    from eggs_ptp.models.load import load_tokenizer
    from eggs_ptp.recipe.recipe import CalibrationSpec

    windows = calibration_windows(
        CalibrationSpec(text=model.calibration, nsamples=nsamples, begin="never"),  # as other tools draw them
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
    """Evaluate a folder on the model's evaluation text."""
    from eggs_ptp import evaluate

    windows = {"protocol": "packed", "seqlen": model.seqlen, "max_windows": model.limit}
    return evaluate(folder, str(model.text), begin="never", **windows)  # one rule for all rows


class Job:
    """One method on one model, pattern and seed.

    Attributes:
        tool: Whose code it runs.
        excused: Checks of `verify` that the tool does not claim to pass.
        key: Identifies its row in the record.
    """

    tool = TOOL
    excused: tuple[str, ...] = ()

    def __init__(self, label: str, model: Model, pattern: str, seed: int, windows: tuple[Path, str]) -> None:
        self.label = label
        self.model = model
        self.pattern = pattern
        self.seed = seed
        self.windows, self.windows_sha256 = windows
        self.key = {"model": model.name, "pattern": pattern, "method": label, "seed": seed}

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the method, if they are known before it has run."""
        return None

    def prune(self, output: Path) -> dict[str, Any]:
        """Write the pruned folder; return seconds, cpu_seconds, settings and versions."""
        raise NotImplementedError


class OwnJob(Job):
    """A method of this project."""

    def __init__(self, text: str, label: str, model: Model, pattern: str, seed: int, windows: tuple[Path, str]) -> None:
        super().__init__(label, model, pattern, seed, windows)
        self.recipe = recipe_of(text, pattern=pattern, seed=seed, calibration=str(self.windows))

    def settings(self) -> dict[str, Any]:
        """Return the recipe without what the row states: all options of its steps, other keys if not the default."""
        in_row = {"seed": True, "pattern": True, "steps": True, "calibration": {"text", "nsamples", "seqlen"}}
        table = self.recipe.model_dump(mode="json", exclude_defaults=True, exclude=in_row)
        steps = self.recipe.bound().method.to_dict()["steps"]
        settings = {"method": self.recipe.method, **table, "steps": steps}
        return dict(json.loads(json.dumps({key: value for key, value in settings.items() if value})))

    def prune(self, output: Path) -> dict[str, Any]:
        from eggs_ptp import EggsError, prune
        from eggs_ptp.checkpoint.run_record import versions

        cpu_start = time.process_time()
        try:
            record = prune(str(self.model.folder), output, self.recipe)
        except EggsError as error:
            raise RunError(str(error)) from error
        return {
            "seconds": record.seconds,
            "cpu_seconds": time.process_time() - cpu_start,
            "settings": self.settings(),
            "versions": {**versions(), "commit": commit()},
        }


class PeerJob(Job):
    """A method of another tool, in that tool's interpreter."""

    excused = ("tensor names", "kept weights")  # tied tensors may be stored twice, and zeros may be negative

    def __init__(self, tool: str, method: str, python: str, *run: Any) -> None:
        super().__init__(f"{tool} {method}", *run)
        self.tool = tool
        self.method = method
        self.python = python

    def prune(self, output: Path) -> dict[str, Any]:
        arguments = (self.tool, self.method, self.model.folder, self.windows, self.pattern, output)
        command = [self.python, HERE / "accuracy" / "peer.py", *arguments, "--seed", self.seed]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=offline, check=False)
        if done.returncode:
            raise RunError((done.stderr.strip().splitlines() or ["no error message"])[-1])
        for pattern in ("tokenizer*", "special_tokens_map.json"):  # so that every folder has the same tokenizer
            for file in self.model.folder.glob(pattern):
                shutil.copyfile(file, output / file.name)
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def run_job(job: Job, record: "Record", dense: float, scratch: Path, *, again: bool) -> None:
    """Prune, verify and evaluate, and add the row to the record, unless the record has it."""
    from eggs_ptp import verify

    if not again and record.holds(job):
        return
    output = scratch / "pruned"
    shutil.rmtree(output, ignore_errors=True)
    name = " ".join(f"{value}" for value in job.key.values())
    try:
        done = job.prune(output)
    except RunError as error:
        record.note_failure(name, str(error))
        return
    record.note_present(name)
    evaluation = perplexity(output, job.model)
    failures = verify(output, str(job.model.folder), pattern=job.pattern).failures
    row = {
        **job.key,
        "tool": job.tool,
        "perplexity": evaluation.value,
        "dense": dense,
        "excess": evaluation.nll - record.data["models"][job.model.name]["dense_nll"],
        "seconds": round(done["seconds"], 3),
        "cpu_seconds": round(done["cpu_seconds"], 3),
        "faults": [f"{check.name}: {check.detail}" for check in failures if check.name not in job.excused],
        "windows_sha256": job.windows_sha256,
    }
    record.add(row, {**done["versions"], **machine_metadata()}, done["settings"])
    shutil.rmtree(output)
    print(f"{name}: {evaluation.value:.3f} in {done['seconds']:.1f} s {row['faults'] or ''}", flush=True)


class Record:
    """The record: metadata of each model, and one row per run. Rows refer to lists for what many of them share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures: dict[str, str] = {}  # requested methods that could not be run
        empty = {"protocol": {}, "models": {}, **{name: [] for name in LISTS}, "not_run": {}, "rows": []}
        self.data: dict[str, Any] = {**empty, **(json.loads(path.read_text()) if path.exists() else {})}
        for row in self.data["rows"]:
            row["method"] = current_label(row["method"])

    def check(self, model: Model, protocol: dict[str, Any]) -> None:
        """Refuse to mix rows that are not comparable."""
        recorded_protocol = self.data["protocol"] or protocol
        recorded_metadata = {**model.metadata, **self.data["models"].get(model.name, {})}
        for name, recorded, new in (
            ("protocol", recorded_protocol, protocol),
            (model.name, recorded_metadata, model.metadata),
        ):
            if differing := [key for key in new if recorded[key] != new[key]]:
                sys.exit(f"{self.path}: {name} was recorded with another {', '.join(differing)}; use another --record")
        self.data["protocol"] = protocol

    def dense(self, model: Model) -> float:
        """Return the dense perplexity, measured once for each model."""
        if model.name not in self.data["models"]:
            evaluation = perplexity(model.folder, model)
            self.data["models"][model.name] = {
                **model.metadata,
                "dense": evaluation.value,
                "dense_nll": evaluation.nll,
                "targets": evaluation.tokens,
                "evaluation_windows_found": evaluation.windows,
            }
            self.save()
        return float(self.data["models"][model.name]["dense"])

    def holds(self, job: Job) -> bool:
        """Return whether the record has this job's row, with the same tokens and settings."""
        from eggs_ptp.method.aliases import with_current_names
        from eggs_ptp.method.recorded import with_later_options

        row = next((row for row in self.data["rows"] if job.key.items() <= row.items()), None)
        if row is None or row["windows_sha256"] != job.windows_sha256:
            return False
        settings = job.settings()
        recorded = self.data["settings"][row["settings"]]
        named = with_current_names(recorded, quiet=True)
        if "steps" in named:
            named["steps"] = with_later_options(named["steps"])
        return settings is None or settings == named

    def add(self, row: dict[str, Any], environment: dict[str, Any], settings: dict[str, Any]) -> None:
        """Add a row, or replace the one of the same run."""
        command = shlex.join(["python", *sys.argv])
        for name, value in zip(LISTS, (environment, command, settings), strict=True):
            values = self.data[name]
            if value not in values:
                values.append(value)
            row[name.removesuffix("s") if name != "settings" else name] = values.index(value)
        key = ("model", "pattern", "method", "seed")
        other_rows = [old for old in self.data["rows"] if any(old[part] != row[part] for part in key)]
        self.data["rows"] = [*other_rows, row]
        self.save()

    def note_present(self, label: str) -> None:
        """Remove a method or tool from those that were not run."""
        self.data["not_run"].pop(label, None)

    def note_missing(self, label: str, reason: str) -> None:
        """Report a method or tool that was not run, and record it unless there are rows from another time."""
        if not any(label in (row["method"], row["tool"]) for row in self.data["rows"]):
            self.data["not_run"][label] = reason
            self.save()
        print(f"not run: {label}: {reason}", flush=True)

    def note_failure(self, label: str, reason: str) -> None:
        """As `note_missing`, for a method that was requested."""
        self.failures[label] = reason
        self.note_missing(label, reason)

    def save(self) -> None:
        """Write the record with one line per row, so that differences are readable."""
        parts = []
        for key, value in self.data.items():
            if isinstance(value, list):
                lines = ",\n".join("  " + json.dumps(item) for item in value)
                parts.append(f" {json.dumps(key)}: [\n{lines}\n ]" if value else f" {json.dumps(key)}: []")
            else:
                parts.append(f" {json.dumps(key)}: " + json.dumps(value, indent=1).replace("\n", "\n "))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new_file = self.path.with_suffix(".new")
        new_file.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        new_file.replace(self.path)

    def print_tables(self, names: set[str] | None = None) -> None:
        """Print a table for each pattern of these models, or of all."""
        for name, model in self.data["models"].items():
            for pattern in dict.fromkeys(row["pattern"] for row in self.data["rows"] if row["model"] == name):
                if names is None or name in names:
                    rows = [row for row in self.data["rows"] if (row["model"], row["pattern"]) == (name, pattern)]
                    print_table(f"{name}, {pattern}, dense {model['dense']:.2f}", rows)


def current_label(label: str) -> str:
    """Return a method's label, such as `eggs permutation=gather`, with today's names of settings."""
    from eggs_ptp.method.aliases import current_key

    words = []
    for word in label.split(" "):
        key, equals, value = word.partition("=")
        words.append(f"{current_key(key, {}, quiet=True)}={value}" if equals else word)
    return " ".join(words)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print mean and standard deviation over the seeds as a Markdown table."""
    reference = {row["seed"]: row["excess"] for row in rows if row["method"] == REFERENCE}
    if reference and statistics.mean(reference.values()) < 0.2:
        title += ", SparseGPT's excess under 0.2: shares say little"
    print(f"\n{title}\n\n| method | perplexity | sd | excess | share of SparseGPT's | sd | seconds | CPU s | seeds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        perplexities = [row["perplexity"] for row in of_method]
        excess = statistics.mean(row["excess"] for row in of_method)
        shares = [row["excess"] / reference[row["seed"]] for row in of_method if row["seed"] in reference]
        cells = [
            method,
            f"{statistics.mean(perplexities):.2f}",
            f"{deviation(perplexities):.2f}",
            f"{excess:.3f}",
            f"{statistics.mean(shares):.3f}" if shares else "",
            f"{deviation(shares):.3f}" if shares else "",
            f"{statistics.median(row['seconds'] for row in of_method):.1f}",
            f"{statistics.median(row['cpu_seconds'] for row in of_method):.1f}",
            str(len(of_method)),
        ]
        print(f"| {' | '.join(cells)} |")
    for failure in dict.fromkeys(f"{row['method']}: {failure}" for row in rows for failure in row["faults"]):
        print(f"\nverify reports: {failure}")


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def machine_metadata() -> dict[str, Any]:
    """Return what the record states about the machine."""
    return {"threads": os.environ.get("OMP_NUM_THREADS", "default"), "machine": platform.machine()}


def commit() -> str:
    """Return the commit of this checkout."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
