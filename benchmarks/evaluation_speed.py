"""`eggs evaluate` compared with lm-eval's own loop, on the same requests and the same loaded model.

Perplexity: the windows of the built-in evaluation text as loglikelihoods of all but their first token. Tasks: the
requests of local tasks, as lm-eval builds them. lm-eval's loop (`HFLM`) runs with every batch size of --batch-sizes,
and its fastest one counts. The candidates are interleaved within a round, in random order. A ratio is lm-eval's seconds
divided by those of `eggs` in the same round, and the result is the median over the rounds: above 1, `eggs` is faster.
The likelihoods of both are compared as well.

    python benchmarks/evaluation_speed.py --data FOLDER [--model FOLDER] [--rounds 5] [--threads 1] [--record FILE]

--data has the files of the *_local tasks; --model (repeatable) adds models to the built-in one.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from eggs_ptp import api
from eggs_ptp.checkpoint.run_record import versions
from eggs_ptp.demo.builtin import builtin_documents
from eggs_ptp.evaluation.continuation import SCORE_TOKENS
from eggs_ptp.evaluation.harness import load_tasks, make_scorer, silenced_lm_eval
from eggs_ptp.evaluation.perplexity import window_losses
from eggs_ptp.evaluation.window import make_windows

TASKS = ("boolq_local", "arc_easy_local", "winogrande_local", "hellaswag_local")


def requests_of(lm: HFLM, task: Any, limit: int) -> list[Any]:
    """Return what lm-eval passes to `_loglikelihood_tokens` for the first items of a task."""
    with silenced_lm_eval():
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        return [(instance.args, *lm._encode_pair(*instance.args)) for instance in task.instances]


def candidates_of(
    name: str, data: Path, limit: int, windows: int, sizes: list[int]
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return the functions to time by workload and by candidate; each returns likelihoods."""
    model, tokenizer = api.load(name)
    with silenced_lm_eval():
        lm_eval = {
            f"lm-eval, batch {size}": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) for size in sizes
        }
        scorer = make_scorer(model, tokenizer, batch_tokens=SCORE_TOKENS, progress=None)
    text = make_windows(
        tokenizer,
        builtin_documents("evaluation"),
        protocol="packed",
        context=model.config.max_position_embeddings,
        max_windows=windows,
    )
    rolling = [(("", str(i)), ids[:1].tolist(), ids[1:].tolist()) for i, ids in enumerate(text.sequences)]
    requests_by_workload = {"perplexity": rolling}
    requests_by_workload |= {name: requests_of(scorer, task, limit) for name, task in load_tasks(TASKS, data).items()}
    candidates: dict[str, dict[str, Callable[[], Any]]] = {}
    for workload, requests in requests_by_workload.items():
        if workload == "perplexity":
            candidates[workload] = {"eggs": lambda: -window_losses(model, text)}
        else:
            candidates[workload] = {"eggs": lambda requests=requests: likelihoods(scorer, requests)}
        for name, lm in lm_eval.items():
            candidates[workload][name] = lambda lm=lm, requests=requests: likelihoods(lm, requests)
    return candidates


def likelihoods(lm: HFLM, requests: list[Any]) -> torch.Tensor:
    with silenced_lm_eval():
        results = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return torch.tensor([likelihood for likelihood, _ in results], dtype=torch.float64)


def measure(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Return the seconds of all candidates in every round but the first, which warms up, and ratios to `eggs`."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    values: dict[str, torch.Tensor] = {}
    rng = random.Random(0)  # noqa: S311
    for round_index in range(rounds + 1):
        for name in rng.sample(list(candidates), len(candidates)):
            start = time.perf_counter()
            values[name] = candidates[name]()
            if round_index:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    best = min((name for name in medians if name != "eggs"), key=medians.__getitem__)
    ratios = [slow / fast for slow, fast in zip(seconds[best], seconds["eggs"], strict=True)]
    error = ((values["eggs"] - values[best]) / values[best]).abs().max().item()
    return {
        "requests": len(values["eggs"]),
        "median_seconds": medians,
        "all_seconds": seconds,
        "fastest_lm_eval": best,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_relative_difference": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=60, help="items of a task")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--batch-sizes", default="1,8,32", help="of lm-eval")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    models: dict[str, Any] = {}
    for name in ["demo", *arguments.model]:
        models[Path(name).name] = rows = {}
        workloads = candidates_of(name, arguments.data, arguments.limit, arguments.windows, sizes)
        for workload, candidates in workloads.items():
            rows[workload] = row = measure(candidates, arguments.rounds)
            seconds = row["median_seconds"]
            fastest = row["fastest_lm_eval"]
            print(
                f"{Path(name).name:20}{workload:18}eggs {seconds['eggs']:7.3f} s, {fastest} "
                f"{seconds[fastest]:7.3f} s, ratio {row['ratio']:.2f}, "
                f"likelihoods differ by {row['largest_relative_difference']:.1e} at most"
            )
    if arguments.record:
        setting = {key: getattr(arguments, key) for key in ("rounds", "limit", "windows", "threads")}
        record = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting, "models": models}
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
