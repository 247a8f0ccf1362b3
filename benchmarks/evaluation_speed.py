"""`eggs evaluate` beside lm-eval's own loop, on the same requests and the same loaded model.

Perplexity: the windows of the demo's evaluation text as loglikelihoods of all but their first token. Tasks: the
requests of local tasks, as lm-eval makes them. lm-eval's loop (`HFLM`) runs at every batch size of --batch-sizes and is
counted at its fastest. Contestants take turns within a round, in random order; a ratio is lm-eval's seconds over
ours in the same round, and the median over rounds is what counts: above 1, ours is faster. Likelihoods of both are
compared on the way.

    python benchmarks/evaluation_speed.py --data FOLDER [--model FOLDER] [--rounds 5] [--threads 1] [--record FILE]

--data has the files of the *_local tasks, --model (repeatable) models beside the built-in one.
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
from eggs_ptp.checkpoint.record import versions
from eggs_ptp.demo.builtin import builtin_documents
from eggs_ptp.evaluation.continuation import SCORE_TOKENS
from eggs_ptp.evaluation.harness import load_tasks, quiet, scorer_for
from eggs_ptp.evaluation.perplexity import window_losses
from eggs_ptp.evaluation.window import cut

TASKS = ("boolq_local", "arc_easy_local", "winogrande_local", "hellaswag_local")


def requests_of(lm: HFLM, task: Any, limit: int) -> list[Any]:
    """What lm-eval hands to `_loglikelihood_tokens` for the first items of a task."""
    with quiet():
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        return [(one.args, *lm._encode_pair(*one.args)) for one in task.instances]


def work(name: str, data: Path, limit: int, windows: int, sizes: list[int]) -> dict[str, dict[str, Callable[[], Any]]]:
    """By what is measured: the contestants, each returning the likelihoods that it found."""
    model, tokenizer = api.load(name)
    with quiet():
        theirs = {
            f"lm-eval, batch {size}": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) for size in sizes
        }
        ours = scorer_for(model, tokenizer, batch_tokens=SCORE_TOKENS, progress=None)
    text = cut(
        tokenizer,
        builtin_documents("evaluation"),
        protocol="packed",
        context=model.config.max_position_embeddings,
        max_windows=windows,
    )
    rolling = [(("", str(i)), ids[:1].tolist(), ids[1:].tolist()) for i, ids in enumerate(text.sequences)]
    found: dict[str, dict[str, Callable[[], Any]]] = {"perplexity": {"eggs": lambda: -window_losses(model, text)}}
    jobs = {"perplexity": rolling}
    jobs |= {name: requests_of(ours, task, limit) for name, task in load_tasks(TASKS, data).items()}
    for what, requests in jobs.items():
        if what not in found:
            found[what] = {"eggs": lambda requests=requests: likelihoods(ours, requests)}
        found[what] |= {who: lambda lm=lm, requests=requests: likelihoods(lm, requests) for who, lm in theirs.items()}
    return found


def likelihoods(lm: HFLM, requests: list[Any]) -> torch.Tensor:
    with quiet():
        found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return torch.tensor([likelihood for likelihood, _ in found], dtype=torch.float64)


def measure(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds of everyone in every round but the first, which warms up, and ratios to lm-eval at its fastest."""
    seconds: dict[str, list[float]] = {who: [] for who in contestants}
    values: dict[str, torch.Tensor] = {}
    order = random.Random(0)  # noqa: S311
    for turn in range(rounds + 1):
        for who in order.sample(list(contestants), len(contestants)):
            start = time.perf_counter()
            values[who] = contestants[who]()
            if turn:
                seconds[who].append(time.perf_counter() - start)
    medians = {who: statistics.median(each) for who, each in seconds.items()}
    best = min((who for who in medians if who != "eggs"), key=medians.__getitem__)
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
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes = [int(size) for size in given.batch_sizes.split(",")]
    models: dict[str, Any] = {}
    for name in ["demo", *given.model]:
        models[Path(name).name] = rows = {}
        for what, contestants in work(name, given.data, given.limit, given.windows, sizes).items():
            rows[what] = row = measure(contestants, given.rounds)
            print(
                f"{Path(name).name:20}{what:18}eggs {row['median_seconds']['eggs']:7.3f} s, {row['fastest_lm_eval']} "
                f"{row['median_seconds'][row['fastest_lm_eval']]:7.3f} s, ratio {row['ratio']:.2f}, "
                f"likelihoods differ by {row['largest_relative_difference']:.1e} at most"
            )
    if given.record:
        setting = {key: getattr(given, key) for key in ("rounds", "limit", "windows", "threads")}
        whole = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting, "models": models}
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
