"""How much is left to gain, and does it go with perplexity? The proven bounds beside what methods come to.

    python benchmarks/bounds.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS]

Models, texts, windows and evaluation are those of `benchmarks/accuracy.py`, which has the details. Every run is pruned,
evaluated, and looked at by `eggs diagnose --bounds` on windows of the calibration text that are drawn with a seed of
their own, the same for every run of a model. A row has perplexity beside means over the matrices (of shares of what the
matrix puts out, docs/diagnose.md): the output error, the proven lower bounds of it and the best that was found, and the
error divided by the bounds. What the record holds is not run again.

Without `--model` the correlations of the record are taken anew, as `benchmarks/correlation.py` has them: over all runs
of one model and pattern, over those of methods that do not correct for drift (whose error is what they minimise), and
over those that treat kept weights alike; a setting is a method.
"""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import HERE, Model, Ours, Record, draw, each_model, perplexity, surroundings
from correlation import correlated, rank_correlation, said

METHODS = (
    "magnitude", "wanda", "ria", "ria_cp", "eggs", "ria+pcg", "ria_cp+pcg", "sparsegpt", "alps", "eggs+"
)  # fmt: skip
FIGURES = ("error", "least_unchanged", "least_updated", "over_unchanged", "over_updated")
LOOKED_AT = 101  # seed of the windows that all runs are judged on; none that methods are calibrated with
EITHER = (False, True)
GROUPS = {  # whether weights are solved for, and corrected for drift
    "all methods": (EITHER, EITHER),
    "without correction for drift": (EITHER, (False,)),
    "kept weights as they were": ((False,), EITHER),
    "kept weights solved for": ((True,), EITHER),
}
ROUNDING = 1e-6  # of what a matrix puts out


def main() -> None:
    given = parse()
    record = BoundsRecord(given.record)
    each_model(given, lambda model, scratch: measure(given, model, record, scratch))
    record.data["correlations"] = correlations(record.data)
    record.save()
    for found in record.data["correlations"]:
        print(f"{found['model']} {found['pattern']} {found['group']}, {said(found)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", metavar="MODEL", help="demo, or a folder and its texts")
    parser.add_argument("--patterns", nargs="+", default=["2:4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--looked-at", type=int, default=32, metavar="WINDOWS", help="that errors and bounds are of")
    parser.add_argument("--seqlen", type=int, default=256, help="or the model's context, where that is less")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "bounds.json")
    given = parser.parse_args()
    if LOOKED_AT in given.seeds:
        parser.error(f"--seeds {LOOKED_AT}: that seed is for the windows that runs are judged on")
    return given


class BoundsRecord(Record):
    """A record of accuracy.py's kind with errors and bounds in its rows, and correlations."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.data.setdefault("correlations", [])


def measure(given: argparse.Namespace, model: Model, record: Record, scratch: Path) -> None:
    record.check(model, {"nsamples": given.nsamples, "sampling": "packed", "looked_at": given.looked_at})
    dense = record.dense(model)
    text = text_of(model, draw(model, given.looked_at, LOOKED_AT, scratch)[0])
    for pattern in given.patterns:
        for seed in given.seeds:
            drawn = draw(model, given.nsamples, seed, scratch)
            for label in given.methods:
                job = Ours(label, label, model, pattern, seed, drawn)
                if not record.holds(job):
                    look(job, text, record, dense, scratch)


def text_of(model: Model, tokens: Path) -> Any:
    from eggs_ptp.calibration.windows import calibration_windows
    from eggs_ptp.checkpoint.calibrated import Text
    from eggs_ptp.engine.place import find_device, find_dtype
    from eggs_ptp.models.folder import read_config
    from eggs_ptp.recipe.recipe import CalibrationSpec

    vocabulary = int(read_config(model.folder)["vocab_size"])
    windows = calibration_windows(
        CalibrationSpec(text=str(tokens)), None, seqlen=model.seqlen, seed=0, vocab_size=vocabulary
    )
    return Text(windows, find_device("cpu"), find_dtype("auto"))


def look(job: Ours, text: Any, record: Record, dense: float, scratch: Path) -> None:
    """Prune, evaluate, diagnose, and note the row."""
    from eggs_ptp.checkpoint.diagnosis import Ask, diagnose_folder

    output = scratch / "pruned"
    shutil.rmtree(output, ignore_errors=True)
    done = job.prune(output)
    found = perplexity(output, job.model)
    solved = bool(job.settings()["steps"].get("update"))
    matrices = diagnose_folder(output, job.model.folder, ask=Ask(bounds=True, text=text)).matrices
    row = {
        **job.key,
        "solved": solved,
        "perplexity": found.value,
        "dense": dense,
        "excess": found.nll - record.data["models"][job.model.name]["dense_nll"],
        "figures": figures(matrices, solved),
        "roles": roles(matrices, solved),
        "seconds": round(done["seconds"], 3),
        "windows_sha256": job.tokens,
    }
    record.add(row, {**done["versions"], **surroundings()}, done["settings"])
    print(f"{' '.join(map(str, job.key.values()))}: {row['perplexity']:.3f} {row['figures']}", flush=True)


def figures(matrices: Any, solved: bool) -> dict[str, float]:
    """Means over the matrices, and ratios of means: a mean of ratios would be of the matrices with next to no bound."""
    error = [one.calibrated["output_error"] for one in matrices]
    bounds = {key: [one.bounds[key] for one in matrices] for key in matrices[0].bounds}
    own = bounds["least_updated" if solved else "least_unchanged"]
    mean = {"error": statistics.mean(error)} | {key: statistics.mean(values) for key, values in bounds.items()}
    values = {
        **mean,
        "over_unchanged": mean["error"] / mean["least_unchanged"],
        "over_updated": mean["error"] / mean["least_updated"],
        "matrices": len(matrices),
        "below": sum(lost < least - ROUNDING for lost, least in zip(error, own, strict=True)),
        "across_matrices": rank_correlation(np.array(own), np.array(error)),
    }
    return {name: round(value, 6) for name, value in values.items()}


def roles(matrices: Any, solved: bool) -> dict[str, dict[str, float]]:
    """Error, bound and best found of what is allowed to the method, by the linear's name: means over the blocks."""
    kind = "updated" if solved else "unchanged"
    groups: dict[str, list[Any]] = {}
    for one in matrices:
        groups.setdefault(one.name.rpartition(".")[2], []).append(one)
    return {
        role: {
            "error": round(statistics.mean(one.calibrated["output_error"] for one in each), 6),
            "least": round(statistics.mean(one.bounds[f"least_{kind}"] for one in each), 6),
            "best": round(statistics.mean(one.bounds[f"best_{kind}"] for one in each), 6),
        }
        for role, each in groups.items()
    }


def correlations(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every figure with the excess, over groups of the methods of one model and pattern."""
    found = []
    for model, pattern in dict.fromkeys((row["model"], row["pattern"]) for row in data["rows"]):
        for group, (solved, corrected) in GROUPS.items():
            runs = [
                row
                for row in data["rows"]
                if (row["model"], row["pattern"]) == (model, pattern)
                and row["solved"] in solved
                and ("correct" in data["settings"][row["settings"]]["steps"]) in corrected
            ]
            values = {figure: [row["figures"][figure] for row in runs] for figure in FIGURES}
            each = correlated(values, [row["method"] for row in runs], [row["excess"] for row in runs])
            found += [{"model": model, "pattern": pattern, "group": group, **one} for one in each]
    return found


if __name__ == "__main__":
    main()
