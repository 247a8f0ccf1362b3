"""Does connectivity help? EGGS blocks from none to all, of three kinds, without and with solving for the kept weights.

    python benchmarks/connectivity.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS]
    python benchmarks/connectivity.py --model ... --sweep docs/results/b-sweep.json

Models, texts, windows and evaluation are those of `benchmarks/accuracy.py`, which has the details. Every run is pruned,
evaluated, and looked at by `eggs diagnose` with spectra; a row has perplexity beside the least connections of inputs,
dead inputs, inequality of degrees, spectra and output errors. With `--sweep`, the rows of that record of accuracy.py
that name a B are run again in place of the grid here, but not evaluated again: their perplexities are taken over where
weights, texts and calibration tokens are the same. What the record holds is not run again.

Without `--model` the correlations of the record are taken anew, as `benchmarks/correlation.py` has them: over the runs
of one model, pattern and treatment of weights, a setting being B and kind, with all seeds of it.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from accuracy import HERE, Model, Ours, Record, draw, each_model, perplexity, surroundings
from correlation import correlated, said

BLOCKS = (0, 1, 2, 5, 10, 20, 50, 100)
KINDS = ("circulant", "staircase", "best")
LABELS = {
    False: "eggs orders=gather steps.select.B={B} steps.select.diagonal={kind}",
    True: "ria_cp+connect+pcg orders=gather steps.update.B={B} steps.update.diagonal={kind}",
}
LABEL = re.compile(r"(?P<method>\S+) .*?steps\.(?:select|update)\.B=(?P<B>\d+)(?:.*?diagonal=(?P<kind>\w+))?")
FIGURES = (
    "least_degree", "mean_least_degree", "least_share", "dead_inputs", "gini", "sigma2_over_edge", "output_error"
)  # fmt: skip


def main() -> None:
    given = parse()
    record = ConnectivityRecord(given.record)
    each_model(given, lambda model, scratch: measure(given, model, record, scratch))
    record.data["correlations"] = correlations(record.data["rows"])
    record.save()
    for found in record.data["correlations"]:
        place = f"{found['model']} {found['pattern']} {'solved' if found['solved'] else 'as they were'}"
        print(f"{place}, {said(found)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", metavar="MODEL", help="demo, or a folder and its texts")
    parser.add_argument("--patterns", nargs="+", default=["2:4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS), metavar="B")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND")
    parser.add_argument("--sweep", type=Path, help="a record of accuracy.py: its rows that name a B, and their results")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256, help="or the model's context, where that is less")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "connectivity.json")
    return parser.parse_args()


class ConnectivityRecord(Record):
    """A record of accuracy.py's kind with figures of the graph in its rows, and correlations."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.data.setdefault("correlations", [])


def measure(given: argparse.Namespace, model: Model, record: ConnectivityRecord, scratch: Path) -> None:
    record.check(model, {"nsamples": given.nsamples, "sampling": "packed"})
    dense = record.dense(model)
    known = sweep_rows(given.sweep, model) if given.sweep else []
    for pattern, seed, label in asked_for(given, known):
        job = Ours(label, label, model, pattern, seed, draw(model, given.nsamples, seed, scratch))
        if record.holds(job):
            continue
        taken = next((row for row in known if job.key.items() <= row.items()), None)
        if taken is not None and taken["windows_sha256"] != job.tokens:
            taken = None
        look(job, taken, record, dense, scratch)


def asked_for(given: argparse.Namespace, known: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Pattern, seed and method of every run: the sweep's, or the grid's, where B = 0 has no kind."""
    if given.sweep:
        return [(row["pattern"], row["seed"], row["method"]) for row in known]
    labels = [
        LABELS[solved].format(B=blocks, kind=kind)
        for solved in (False, True)
        for blocks in given.blocks
        for kind in (given.kinds if blocks else given.kinds[-1:])
    ]
    return [(pattern, seed, label) for pattern in given.patterns for seed in given.seeds for label in labels]


def sweep_rows(path: Path, model: Model) -> list[dict[str, Any]]:
    """The rows of a model that name a B; refused where the record has other weights or texts by its name."""
    sweep = json.loads(path.read_text())
    facts = sweep["models"].get(model.name)
    if facts is None:
        return []
    if other := [key for key, value in model.facts.items() if facts[key] != value]:
        sys.exit(
            f"{path}: {model.name} was recorded with another {', '.join(other)}; pass what the sweep was made with"
        )
    return [row for row in sweep["rows"] if row["model"] == model.name and LABEL.match(row["method"])]


def look(job: Ours, taken: dict[str, Any] | None, record: Record, dense: float, scratch: Path) -> None:
    """Prune, diagnose, evaluate unless that is known, and note the row."""
    from eggs_ptp.checkpoint.diagnosis import diagnose_folder

    output = scratch / "pruned"
    shutil.rmtree(output, ignore_errors=True)
    done = job.prune(output)
    named = LABEL.match(job.label)
    assert named
    evaluated = taken or evaluate(output, job, record)
    row = {
        **job.key,
        "B": int(named["B"]),
        "kind": named["kind"] or "best",
        "solved": "connect" in job.label,
        "perplexity": evaluated["perplexity"],
        "dense": dense,
        "excess": evaluated["excess"],
        "evaluated": "taken from the sweep" if taken else "here",
        "graph": figures(diagnose_folder(output, spectra=True)),
        "seconds": round(done["seconds"], 3),
        "windows_sha256": job.tokens,
    }
    record.add(row, {**done["versions"], **surroundings()}, done["settings"])
    print(f"{' '.join(map(str, job.key.values()))}: {row['perplexity']:.3f} {row['graph']}", flush=True)


def evaluate(output: Path, job: Ours, record: Record) -> dict[str, float]:
    found = perplexity(output, job.model)
    return {"perplexity": found.value, "excess": found.nll - record.data["models"][job.model.name]["dense_nll"]}


def figures(found: Any) -> dict[str, float]:
    """What the graph of a folder is like, as one number a figure; see docs/diagnose.md."""
    each = found.matrices
    least = [one.input_degrees["min"] for one in each]
    edges = [one.spectrum["sigma2"] / (one.spectrum["pattern_edge"] or one.spectrum["random_edge"]) for one in each]
    values = {
        "least_degree": min(least),
        "mean_least_degree": statistics.mean(least),
        "least_share": statistics.mean(low / one.outputs for low, one in zip(least, each, strict=True)),
        "dead_inputs": found.whole["dead_inputs"],
        "gini": statistics.mean(one.input_degrees["gini"] for one in each),
        "sigma2": statistics.mean(one.spectrum["sigma2"] for one in each),
        "sigma2_over_edge": statistics.mean(edges),
        "output_error": found.whole["mean_output_error"],
    }
    return {name: round(value, 6) for name, value in values.items()}


def correlations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every figure with the excess, over the runs of one model, pattern and treatment of the kept weights."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["pattern"], row["solved"]), []).append(row)
    found = []
    for (model, pattern, solved), runs in groups.items():
        values = {figure: [row["graph"][figure] for row in runs] for figure in FIGURES}
        settings = [f"{row['B']} {row['kind']}" for row in runs]
        excess, error = [row["excess"] for row in runs], [row["graph"]["output_error"] for row in runs]
        place = {"model": model, "pattern": pattern, "solved": solved}
        found += [{**place, **each} for each in correlated(values, settings, excess, error)]
    return found


if __name__ == "__main__":
    main()
