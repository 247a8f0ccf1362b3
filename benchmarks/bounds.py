"""How much is left to gain, and is it related to perplexity? Proven bounds compared with the errors of methods.

    python benchmarks/bounds.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS]

Models, texts, windows and evaluation are those of `benchmarks/accuracy.py`, which describes them. Every run is pruned,
evaluated, and diagnosed by `eggs diagnose --bounds` on windows of the calibration text that are drawn with their own
seed, the same for all runs of a model. A row has the perplexity, and means over the matrices (of shares of a matrix's
output energy, docs/diagnose.md): the output error, its proven lower bounds and the smallest errors found, and the error
divided by the bounds. Rows that the record has are not measured again.

Without `--model` the correlations of the record are computed again, as in `benchmarks/correlation.py`: over all runs of
one model and pattern, over methods that do not correct for drift (whose error is what they minimise), and over methods
that treat kept weights alike; a setting is a method.
"""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import HERE, Model, OwnJob, Record, draw_windows, each_model, machine_metadata, perplexity
from correlation import correlated, line_of, rank_correlation

METHODS = (
    "magnitude", "wanda", "ria", "ria_cp", "eggs", "ria+pcg", "ria_cp+pcg", "sparsegpt", "alps", "eggs+"
)  # fmt: skip
METRICS = ("error", "least_unchanged", "least_updated", "over_unchanged", "over_updated")
DIAGNOSIS_SEED = 101  # of the windows that all runs are diagnosed on; no method is calibrated with it
ANY = (False, True)
GROUPS = {  # whether kept weights are solved for, and whether the method corrects for drift
    "all methods": (ANY, ANY),
    "without correction for drift": (ANY, (False,)),
    "kept weights as they were": ((False,), ANY),
    "kept weights solved for": ((True,), ANY),
}
ROUNDING = 1e-6  # as a share of a matrix's output energy


def main() -> None:
    arguments = parse()
    record = BoundsRecord(arguments.record)
    each_model(arguments, lambda model, scratch: measure(arguments, model, record, scratch))
    record.data["correlations"] = correlations(record.data)
    record.save()
    for correlation in record.data["correlations"]:
        group = f"{correlation['model']} {correlation['pattern']} {correlation['group']}"
        print(f"{group}, {line_of(correlation)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", metavar="MODEL", help="demo, or a folder and its texts")
    parser.add_argument("--patterns", nargs="+", default=["2:4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument(
        "--diagnosed-windows", "--looked-at", type=int, default=32, metavar="WINDOWS", help="for errors and bounds"
    )
    parser.add_argument("--seqlen", type=int, default=256, help="or the model's context, if that is shorter")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "bounds.json")
    arguments = parser.parse_args()
    if DIAGNOSIS_SEED in arguments.seeds:
        parser.error(f"--seeds {DIAGNOSIS_SEED}: that seed is for the windows that all runs are diagnosed on")
    return arguments


class BoundsRecord(Record):
    """A record like that of accuracy.py, with errors and bounds in its rows, and correlations."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.data.setdefault("correlations", [])


def measure(arguments: argparse.Namespace, model: Model, record: Record, scratch: Path) -> None:
    windows = arguments.diagnosed_windows
    record.check(model, {"nsamples": arguments.nsamples, "sampling": "packed", "looked_at": windows})
    dense = record.dense(model)
    text = calibration_text(model, draw_windows(model, windows, DIAGNOSIS_SEED, scratch)[0])
    for pattern in arguments.patterns:
        for seed in arguments.seeds:
            drawn = draw_windows(model, arguments.nsamples, seed, scratch)
            for label in arguments.methods:
                job = OwnJob(label, label, model, pattern, seed, drawn)
                if not record.holds(job):
                    run_job(job, text, record, dense, scratch)


def calibration_text(model: Model, tokens: Path) -> Any:
    """Return the windows of a file of token ids as the text of a diagnosis."""
    from eggs_ptp.calibration.windows import calibration_windows
    from eggs_ptp.engine.planning.device import find_device, find_dtype
    from eggs_ptp.models.folder import read_config
    from eggs_ptp.recipe.recipe import CalibrationSpec
    from eggs_ptp.research.diagnosis.calibration_metrics import CalibrationText

    vocabulary = int(read_config(model.folder)["vocab_size"])
    windows = calibration_windows(
        CalibrationSpec(text=str(tokens)), None, seqlen=model.seqlen, seed=0, vocab_size=vocabulary
    )
    return CalibrationText(windows, find_device("cpu"), find_dtype("auto"))


def run_job(job: OwnJob, text: Any, record: Record, dense: float, scratch: Path) -> None:
    """Prune, evaluate and diagnose, and add the row to the record."""
    from eggs_ptp.research.diagnosis.diagnosis import DiagnosisOptions, diagnose_folder

    output = scratch / "pruned"
    shutil.rmtree(output, ignore_errors=True)
    done = job.prune(output)
    evaluation = perplexity(output, job.model)
    solved = bool(job.settings()["steps"].get("update"))
    options = DiagnosisOptions(bounds=True, text=text)
    matrices = diagnose_folder(output, job.model.folder, options=options).matrices
    row = {
        **job.key,
        "solved": solved,
        "perplexity": evaluation.value,
        "dense": dense,
        "excess": evaluation.nll - record.data["models"][job.model.name]["dense_nll"],
        "figures": metrics_of(matrices, solved),
        "roles": roles(matrices, solved),
        "seconds": round(done["seconds"], 3),
        "windows_sha256": job.windows_sha256,
    }
    record.add(row, {**done["versions"], **machine_metadata()}, done["settings"])
    print(f"{' '.join(map(str, job.key.values()))}: {row['perplexity']:.3f} {row['figures']}", flush=True)


def metrics_of(matrices: Any, solved: bool) -> dict[str, float]:
    """Return means over the matrices, and ratios of means, as a mean of ratios is dominated by bounds close to 0."""
    errors = [matrix.calibrated["output_error"] for matrix in matrices]
    bounds = {key: [matrix.bounds[key] for matrix in matrices] for key in matrices[0].bounds}
    applicable = bounds["least_updated" if solved else "least_unchanged"]
    means = {"error": statistics.mean(errors)} | {key: statistics.mean(values) for key, values in bounds.items()}
    metrics = {
        **means,
        "over_unchanged": means["error"] / means["least_unchanged"],
        "over_updated": means["error"] / means["least_updated"],
        "matrices": len(matrices),
        "below": sum(error < least - ROUNDING for error, least in zip(errors, applicable, strict=True)),
        "across_matrices": rank_correlation(np.array(applicable), np.array(errors)),
    }
    return {name: round(value, 6) for name, value in metrics.items()}


def roles(matrices: Any, solved: bool) -> dict[str, dict[str, float]]:
    """Return means over the blocks by the linear's name: error, and the applicable bound and best error found."""
    kind = "updated" if solved else "unchanged"
    by_role: dict[str, list[Any]] = {}
    for matrix in matrices:
        by_role.setdefault(matrix.name.rpartition(".")[2], []).append(matrix)
    return {
        role: {
            "error": round(statistics.mean(matrix.calibrated["output_error"] for matrix in of_role), 6),
            "least": round(statistics.mean(matrix.bounds[f"least_{kind}"] for matrix in of_role), 6),
            "best": round(statistics.mean(matrix.bounds[f"best_{kind}"] for matrix in of_role), 6),
        }
        for role, of_role in by_role.items()
    }


def correlations(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Correlate every metric with the excess, over groups of the methods of one model and pattern."""
    result = []
    for model, pattern in dict.fromkeys((row["model"], row["pattern"]) for row in data["rows"]):
        for group, (solved, corrected) in GROUPS.items():
            runs = [
                row
                for row in data["rows"]
                if (row["model"], row["pattern"]) == (model, pattern)
                and row["solved"] in solved
                and ("correct" in data["settings"][row["settings"]]["steps"]) in corrected
            ]
            values = {metric: [row["figures"][metric] for row in runs] for metric in METRICS}
            methods = [row["method"] for row in runs]
            excess = [row["excess"] for row in runs]
            key = {"model": model, "pattern": pattern, "group": group}
            result += [{**key, **correlation} for correlation in correlated(values, methods, excess)]
    return result


if __name__ == "__main__":
    main()
