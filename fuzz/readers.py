#!/usr/bin/env python
"""Fuzz the readers of model folders, guided by coverage: `python fuzz/readers.py --seconds 3600`; see README.md."""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["eggs_ptp"]):
    from case import CONFIG, DATA, HEADER, INDEX, ORDERS, ORDERS_DATA, RECORD, SPLIT, parts_of, read_all, write
    from seeds import seeds

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
INSIDE = "EGGS_FUZZING"  # where this file is libFuzzer's own process, the folder that it makes of each input
MEMORY = Path("/dev/shm")  # where folders are made, if there is one
LIMITS = ("-max_len=8192", "-timeout=60", "-rss_limit_mb=6000")
VALUES: list[Any] = [
    *(0, 1, 2, 8, -1, 127, 2**31, 2**32, 2**62, 2**63, 2**64, 10**25, 0.5, 1e308, float("nan"), True, False, None),
    *("", "F32", "F16", "BF16", "F64", "I8", "U8", "I32", "I64", "BOOL", "F8_E4M3", "F4", "C64"),
    *("2:4", "1:4", "4:8", "1:2", "3:4", "1:999999999", "0.5", "nan", "int4", "int8", "eggs", "fold", "mask", "llama"),
    *("a.safetensors", "../a.safetensors", "model.safetensors", "\0", "\ud800", "weight", "scales", "order", "bits"),
    *("residual", "model.layers.0.mlp", "model.layers.0.heads", "model.layers.0.mlp.down_proj", "format", "values"),
    *([], {}, [0], [0, 0], [4, 8], [0, 2**62], [2**63, 0], [1] * 65, [[[]]], {"a": {}}),
]


def test_one_input(case: bytes) -> None:
    """What libFuzzer calls: only errors of this package may come."""
    write(case, FOLDER)
    for words in read_all(FOLDER):
        assert words


def mutate(case: bytes, most: int, seed: int) -> bytes:
    """Now and then bytes anywhere, but mostly values of the JSON in the parts, which stays JSON."""
    draw = random.Random(seed)
    parts = parts_of(case)
    place = draw.choice([CONFIG, RECORD, INDEX, HEADER, HEADER, DATA, DATA, ORDERS, ORDERS_DATA])
    if draw.random() < 0.1:
        return bytes(atheris.Mutate(case, most))
    if place in (DATA, ORDERS_DATA) or draw.random() < 0.1:
        parts[place] = bytes(atheris.Mutate(parts[place] or b"\0", max(1, most // 4)))
        return SPLIT.join(parts)[:most]
    try:
        tree = [json.loads(parts[place])]
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(case, most))
    for _ in range(draw.randint(1, 3)):
        edit(tree, draw)
    parts[place] = json.dumps(tree[0]).encode()
    return SPLIT.join(parts)[:most]


def edit(tree: list[Any], draw: random.Random) -> None:
    """Change one value of a tree in place."""
    spots = list(walk(tree))
    holder, key = draw.choice(spots)
    other, name = draw.choice(spots)
    kind, value = draw.randrange(6), holder[key]
    if kind == 0:
        holder[key] = fresh(draw.choice(VALUES))
    elif kind == 1 and type(value) is int:
        holder[key] = draw.choice([value + 1, value - 1, value * 2, value // 2, -value, value + 8])
    elif kind == 2 and len(holder) > 1:
        del holder[key]
    elif kind == 3:
        holder[key] = fresh(other[name])
    elif kind == 4 and isinstance(holder, dict):
        holder[str(draw.choice(VALUES)) if draw.random() < 0.5 else f"{key}{draw.choice('.01')}"] = fresh(value)
    elif kind == 5 and isinstance(holder, list) and holder is not tree:
        holder.insert(draw.randrange(len(holder) + 1), fresh(draw.choice(VALUES)))
    else:
        holder[key] = fresh(draw.choice(VALUES))


def fresh(value: Any) -> Any:
    """A value that shares nothing with the one that it is a copy of."""
    return json.loads(json.dumps(value))


def walk(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree: what holds it, and its key."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list) and node[key]:
            yield from walk(node[key])


def fuzz(seconds: int, workspace: Path) -> dict[str, Any]:
    """Fuzz in a process of its own, from the corpus and the seeds; what it did."""
    found, crashes = workspace / "corpus", workspace / "crashes"
    for folder in (found, crashes, CORPUS):
        folder.mkdir(parents=True, exist_ok=True)
    for name, case in seeds():
        (found / name).write_bytes(case)
    before = len(list(found.iterdir())) + len(list(CORPUS.iterdir()))
    began = time.perf_counter()
    log = workspace / "log.txt"
    words = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", str(found), str(CORPUS)]
    code = libfuzzer(log, *words)
    lines = re.findall(r"^#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)", log.read_text(errors="replace"), re.M)
    last = lines[-1] if lines else (0, 0, 0, 0)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "executions": int(last[0]),
        "edges covered": int(last[1]),
        "features covered": int(last[2]),
        "inputs at the start": before,
        "inputs at the end": int(last[3]),
        "exit code": code,
        "crashes, timeouts and lack of memory": sorted(path.name for path in crashes.iterdir()),
    }


def merge(workspace: Path) -> dict[str, int]:
    """Put the least inputs that cover all that is covered into the corpus of the tests."""
    small = workspace / "small"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir()
    if libfuzzer(workspace / "merge.txt", *LIMITS, "-merge=1", *map(str, (small, CORPUS, workspace / "corpus"))):
        sys.exit(f"the inputs could not be merged; see {workspace / 'merge.txt'}")
    for path in CORPUS.iterdir():
        path.unlink()
    for path in small.iterdir():
        shutil.copy(path, CORPUS / path.name)
    return {"inputs": len(list(CORPUS.iterdir())), "bytes": sum(path.stat().st_size for path in CORPUS.iterdir())}


def libfuzzer(log: Path, *words: str) -> int:
    """Run this file as a fuzzer; to merge, it calls itself by its name, with the python that is found first."""
    memory = MEMORY if MEMORY.is_dir() else None
    with log.open("w") as file, tempfile.TemporaryDirectory(prefix="eggs-fuzz-", dir=memory) as folder:
        first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        here = {**os.environ, INSIDE: f"{folder}/model", "PATH": first}
        return subprocess.run([__file__, *words], env=here, stderr=file, stdout=file, check=False).returncode


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--workspace", type=Path, default=Path("out/fuzz"), help="corpus, crashes and log of this run")
    parser.add_argument("--record", type=Path, help="JSON file to write what was done to")
    asked = parser.parse_args()
    done = fuzz(asked.seconds, asked.workspace)
    record = {
        "command": f"python fuzz/readers.py --seconds {asked.seconds}",
        "versions": {name: version(name) for name in ("atheris", "eggs-ptp", "safetensors", "torch", "transformers")},
        **done,
        "corpus": merge(asked.workspace),
    }
    print(json.dumps(record, indent=1))
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if INSIDE in os.environ:
        FOLDER = Path(os.environ[INSIDE])
        atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
        atheris.Fuzz()
    else:
        main()
