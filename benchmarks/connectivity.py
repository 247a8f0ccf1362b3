"""Does connectivity help? EGGS blocks from none to all, of three kinds, with kept weights unchanged and solved for.

    python benchmarks/connectivity.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS]
    python benchmarks/connectivity.py --model ... --sweep docs/results/b-sweep.json

Models, texts, windows and evaluation are those of `benchmarks/accuracy.py`, which describes them. Every run is pruned,
evaluated, and diagnosed by `eggs diagnose` with spectra; a row has the perplexity, the fewest connections of inputs,
dead inputs, the inequality of degrees, spectra and output errors. With `--sweep`, the rows of that record of
accuracy.py that name a B are run again in place of the grid here, but not evaluated again: their perplexities are
copied if weights, texts and calibration tokens are the same. Rows that the record has are not measured again.

Without `--model` the correlations of the record are computed again, as in `benchmarks/correlation.py`: over the runs of
one model, pattern and treatment of the weights. A setting is B and kind, with all of its seeds.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from accuracy import HERE, Model, OwnJob, Record, current_label, draw_windows, each_model, machine_metadata, perplexity
from correlation import correlated, line_of

BLOCKS = (0, 1, 2, 5, 10, 20, 50, 100)
KINDS = ("circulant", "staircase", "best")
LABELS = {  # by whether kept weights are solved for
    False: "eggs permutation=gather steps.select.B={B} steps.select.diagonal={kind}",
    True: "ria_cp+connect+pcg permutation=gather steps.update.B={B} steps.update.diagonal={kind}",
}
LABEL = re.compile(r"(?P<method>\S+) .*?steps\.(?:select|update)\.B=(?P<B>\d+)(?:.*?diagonal=(?P<kind>\w+))?")
METRICS = (
    "least_degree", "mean_least_degree", "least_share", "dead_inputs", "gini", "sigma2_over_edge", "output_error"
)  # fmt: skip


def main() -> None:
    arguments = parse()
    record = ConnectivityRecord(arguments.record)
    each_model(arguments, lambda model, scratch: measure(arguments, model, record, scratch))
    record.data["correlations"] = correlations(record.data["rows"])
    record.save()
    for correlation in record.data["correlations"]:
        kept = "solved for" if correlation["solved"] else "unchanged"
        group = f"{correlation['model']} {correlation['pattern']}, kept weights {kept}"
        print(f"{group}, {line_of(correlation)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", metavar="MODEL", help="demo, or a folder and its texts")
    parser.add_argument("--patterns", nargs="+", default=["2:4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS), metavar="B")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND")
    parser.add_argument("--sweep", type=Path, help="a record of accuracy.py: run its rows that name a B")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256, help="or the model's context, if that is shorter")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "connectivity.json")
    return parser.parse_args()


class ConnectivityRecord(Record):
    """A record like that of accuracy.py, with metrics of the graph in its rows, and correlations."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.data.setdefault("correlations", [])


def measure(arguments: argparse.Namespace, model: Model, record: ConnectivityRecord, scratch: Path) -> None:
    record.check(model, {"nsamples": arguments.nsamples, "sampling": "packed"})
    dense = record.dense(model)
    known_rows = sweep_rows(arguments.sweep, model) if arguments.sweep else []
    for pattern, seed, label in requested_runs(arguments, known_rows):
        job = OwnJob(label, label, model, pattern, seed, draw_windows(model, arguments.nsamples, seed, scratch))
        if record.holds(job):
            continue
        known_row = next((row for row in known_rows if job.key.items() <= row.items()), None)
        if known_row is not None and known_row["windows_sha256"] != job.windows_sha256:
            known_row = None
        run_job(job, known_row, record, dense, scratch)


def requested_runs(arguments: argparse.Namespace, known_rows: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Return pattern, seed and label of every run: those of the sweep, or of the grid, where B = 0 has no kind."""
    if arguments.sweep:
        return [(row["pattern"], row["seed"], row["method"]) for row in known_rows]
    labels = [
        LABELS[solved].format(B=blocks, kind=kind)
        for solved in (False, True)
        for blocks in arguments.blocks
        for kind in (arguments.kinds if blocks else arguments.kinds[-1:])
    ]
    return [(pattern, seed, label) for pattern in arguments.patterns for seed in arguments.seeds for label in labels]


def sweep_rows(path: Path, model: Model) -> list[dict[str, Any]]:
    """Return a model's rows that name a B; refuse a record with other weights or texts under its name."""
    sweep = json.loads(path.read_text())
    recorded = sweep["models"].get(model.name)
    if recorded is None:
        return []
    if differing := [key for key, value in model.metadata.items() if recorded[key] != value]:
        sys.exit(
            f"{path}: {model.name} was recorded with another {', '.join(differing)}; pass the model and texts of the "
            "sweep"
        )
    rows = [row for row in sweep["rows"] if row["model"] == model.name and LABEL.match(row["method"])]
    return [{**row, "method": current_label(row["method"])} for row in rows]


def run_job(job: OwnJob, known_row: dict[str, Any] | None, record: Record, dense: float, scratch: Path) -> None:
    """Prune, diagnose, and evaluate unless the perplexity is known; add the row to the record."""
    from eggs_ptp.research.diagnosis.diagnosis import diagnose_folder

    output = scratch / "pruned"
    shutil.rmtree(output, ignore_errors=True)
    done = job.prune(output)
    label = LABEL.match(job.label)
    assert label
    evaluation = known_row or evaluate(output, job, record)
    row = {
        **job.key,
        "B": int(label["B"]),
        "kind": label["kind"] or "best",
        "solved": "connect" in job.label,
        "perplexity": evaluation["perplexity"],
        "dense": dense,
        "excess": evaluation["excess"],
        "evaluated": "taken from the sweep" if known_row else "here",
        "graph": metrics_of(diagnose_folder(output, spectra=True)),
        "seconds": round(done["seconds"], 3),
        "windows_sha256": job.windows_sha256,
    }
    record.add(row, {**done["versions"], **machine_metadata()}, done["settings"])
    print(f"{' '.join(map(str, job.key.values()))}: {row['perplexity']:.3f} {row['graph']}", flush=True)


def evaluate(output: Path, job: OwnJob, record: Record) -> dict[str, float]:
    evaluation = perplexity(output, job.model)
    dense_nll = record.data["models"][job.model.name]["dense_nll"]
    return {"perplexity": evaluation.value, "excess": evaluation.nll - dense_nll}


def metrics_of(diagnosis: Any) -> dict[str, float]:
    """Summarise the graphs of a folder's matrices, one number per metric; see docs/diagnose.md."""
    matrices = diagnosis.matrices
    least = [matrix.input_degrees["min"] for matrix in matrices]
    sigma2 = [matrix.spectrum["sigma2"] for matrix in matrices]
    edges = [matrix.spectrum["pattern_edge"] or matrix.spectrum["random_edge"] for matrix in matrices]
    summary = diagnosis.summary
    metrics = {
        "least_degree": min(least),
        "mean_least_degree": statistics.mean(least),
        "least_share": statistics.mean(low / matrix.outputs for low, matrix in zip(least, matrices, strict=True)),
        "dead_inputs": summary["dead_inputs"],
        "gini": statistics.mean(matrix.input_degrees["gini"] for matrix in matrices),
        "sigma2": statistics.mean(sigma2),
        "sigma2_over_edge": statistics.mean(value / edge for value, edge in zip(sigma2, edges, strict=True)),
        "output_error": summary["mean_output_error"],
    }
    return {name: round(value, 6) for name, value in metrics.items()}


def correlations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correlate every metric with the excess, over the runs of one model, pattern and treatment of the kept weights."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["pattern"], row["solved"]), []).append(row)
    result = []
    for (model, pattern, solved), runs in groups.items():
        values = {metric: [row["graph"][metric] for row in runs] for metric in METRICS}
        settings = [f"{row['B']} {row['kind']}" for row in runs]
        excess = [row["excess"] for row in runs]
        error = [row["graph"]["output_error"] for row in runs]
        key = {"model": model, "pattern": pattern, "solved": solved}
        result += [{**key, **correlation} for correlation in correlated(values, settings, excess, error)]
    return result


if __name__ == "__main__":
    main()
