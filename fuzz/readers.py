#!/usr/bin/env python
"""Coverage-guided fuzzing of the readers of model folders: `python fuzz/readers.py --seconds 3600`; see README.md."""

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
    from case import (
        CONFIG,
        DATA,
        HEADER,
        INDEX,
        PERMUTATIONS,
        PERMUTATIONS_DATA,
        RECORD,
        SPLIT,
        parts_of,
        read_all,
        write,
    )
    from seeds import seeds

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
FOLDER_VARIABLE = "EGGS_FUZZING"  # set in libFuzzer's process: the folder that it writes each input to
MEMORY_DISK = Path("/dev/shm")  # where folders are written, if it exists
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
    """Test one input, for libFuzzer: only errors of this package may be raised."""
    write(case, FOLDER)
    for message in read_all(FOLDER):
        assert message


def mutate(case: bytes, max_size: int, seed: int) -> bytes:
    """Mutate an input: mostly values inside the JSON of a part, which stays valid JSON, sometimes any bytes."""
    rng = random.Random(seed)
    parts = parts_of(case)
    part = rng.choice([CONFIG, RECORD, INDEX, HEADER, HEADER, DATA, DATA, PERMUTATIONS, PERMUTATIONS_DATA])
    if rng.random() < 0.1:
        return bytes(atheris.Mutate(case, max_size))
    if part in (DATA, PERMUTATIONS_DATA) or rng.random() < 0.1:
        parts[part] = bytes(atheris.Mutate(parts[part] or b"\0", max(1, max_size // 4)))
        return SPLIT.join(parts)[:max_size]
    try:
        tree = [json.loads(parts[part])]
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(case, max_size))
    for _ in range(rng.randint(1, 3)):
        mutate_value(tree, rng)
    parts[part] = json.dumps(tree[0]).encode()
    return SPLIT.join(parts)[:max_size]


def mutate_value(tree: list[Any], rng: random.Random) -> None:
    """Change one value of a JSON tree in place."""
    nodes = list(nodes_of(tree))
    parent, key = rng.choice(nodes)
    other_parent, other_key = rng.choice(nodes)
    kind = rng.randrange(6)
    value = parent[key]
    if kind == 0:
        parent[key] = copy_of(rng.choice(VALUES))
    elif kind == 1 and type(value) is int:
        parent[key] = rng.choice([value + 1, value - 1, value * 2, value // 2, -value, value + 8])
    elif kind == 2 and len(parent) > 1:
        del parent[key]
    elif kind == 3:
        parent[key] = copy_of(other_parent[other_key])
    elif kind == 4 and isinstance(parent, dict):
        new_key = str(rng.choice(VALUES)) if rng.random() < 0.5 else f"{key}{rng.choice('.01')}"
        parent[new_key] = copy_of(value)
    elif kind == 5 and isinstance(parent, list) and parent is not tree:
        parent.insert(rng.randrange(len(parent) + 1), copy_of(rng.choice(VALUES)))
    else:
        parent[key] = copy_of(rng.choice(VALUES))


def copy_of(value: Any) -> Any:
    """Return a deep copy of a JSON value."""
    return json.loads(json.dumps(value))


def nodes_of(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every node of a JSON tree as its parent and its key in the parent."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list) and tree[key]:
            yield from nodes_of(tree[key])


def fuzz(seconds: int, workspace: Path) -> dict[str, Any]:
    """Fuzz in a separate process, starting from the corpus and the seeds; return its statistics."""
    new_corpus = workspace / "corpus"
    crashes = workspace / "crashes"
    for folder in (new_corpus, crashes, CORPUS):
        folder.mkdir(parents=True, exist_ok=True)
    for name, case in seeds():
        (new_corpus / name).write_bytes(case)
    initial_inputs = len(list(new_corpus.iterdir())) + len(list(CORPUS.iterdir()))
    start = time.perf_counter()
    log = workspace / "log.txt"
    arguments = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", str(new_corpus), str(CORPUS)]
    code = libfuzzer(log, *arguments)
    lines = re.findall(r"^#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)", log.read_text(errors="replace"), re.M)
    last = lines[-1] if lines else (0, 0, 0, 0)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "executions": int(last[0]),
        "edges covered": int(last[1]),
        "features covered": int(last[2]),
        "inputs at the start": initial_inputs,
        "inputs at the end": int(last[3]),
        "exit code": code,
        "crashes, timeouts and lack of memory": sorted(path.name for path in crashes.iterdir()),
    }


def merge(workspace: Path) -> dict[str, int]:
    """Replace the corpus of the tests by the smallest inputs that cover everything covered."""
    merged = workspace / "small"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    if libfuzzer(workspace / "merge.txt", *LIMITS, "-merge=1", *map(str, (merged, CORPUS, workspace / "corpus"))):
        sys.exit(f"the inputs could not be merged; see {workspace / 'merge.txt'}")
    for path in CORPUS.iterdir():
        path.unlink()
    for path in merged.iterdir():
        shutil.copy(path, CORPUS / path.name)
    return {"inputs": len(list(CORPUS.iterdir())), "bytes": sum(path.stat().st_size for path in CORPUS.iterdir())}


def libfuzzer(log: Path, *arguments: str) -> int:
    """Run this file as a fuzzer. For merging, libFuzzer runs it by its name, with the first Python in PATH."""
    memory_disk = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with log.open("w") as file, tempfile.TemporaryDirectory(prefix="eggs-fuzz-", dir=memory_disk) as folder:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, FOLDER_VARIABLE: f"{folder}/model", "PATH": path}
        command = [__file__, *arguments]
        return subprocess.run(command, env=environment, stderr=file, stdout=file, check=False).returncode


def main() -> None:
    """Fuzz, merge, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--workspace", type=Path, default=Path("out/fuzz"), help="corpus, crashes and log of this run")
    parser.add_argument("--record", type=Path, help="JSON file for the statistics")
    arguments = parser.parse_args()
    statistics = fuzz(arguments.seconds, arguments.workspace)
    record = {
        "command": f"python fuzz/readers.py --seconds {arguments.seconds}",
        "versions": {name: version(name) for name in ("atheris", "eggs-ptp", "safetensors", "torch", "transformers")},
        **statistics,
        "corpus": merge(arguments.workspace),
    }
    print(json.dumps(record, indent=1))
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if FOLDER_VARIABLE in os.environ:
        FOLDER = Path(os.environ[FOLDER_VARIABLE])
        atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
        atheris.Fuzz()
    else:
        main()
