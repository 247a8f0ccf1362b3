"""Fuzz the readers of model folders, guided by coverage: `python fuzz/readers.py --seconds 3600`; see fuzz/README.md."""

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["eggs_ptp", "json"]):
    from case import CONFIG, DATA, HEADER, INDEX, RECORD, SPLIT, join, read_all, write
    from seeds import seeds

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
CASE = int.from_bytes(os.urandom(4), "little")
VALUES: list[Any] = [
    *(0, 1, 2, 8, -1, 127, 2**31, 2**32, 2**62, 2**63, 2**64, 10**25, 0.5, 1e308, float("nan"), True, False, None),
    *("", "F32", "F16", "BF16", "F64", "I8", "U8", "I32", "I64", "BOOL", "F8_E4M3", "F4", "C64"),
    *("2:4", "1:4", "4:8", "1:2", "3:4", "1:999999999", "0.5", "nan", "int4", "int8", "eggs", "fold", "mask", "llama"),
    *("a.safetensors", "../a.safetensors", "model.safetensors", "\0", "\ud800", "weight", "scales", "order", "bits"),
    *([], {}, [0], [0, 0], [4, 8], [0, 2**62], [2**63, 0], [1] * 65, [[[]]], {"a": {}}),
]


def test_one_input(case: bytes) -> None:
    """What libFuzzer calls: only errors of this package may come."""
    write(case, FOLDER)
    for words in read_all(FOLDER):
        assert words.count("\n") <= words.count("\\n") + case.count(b"\n") + case.count(b"\\n"), words


def mutate(case: bytes, most: int, seed: int) -> bytes:
    """Now and then bytes anywhere, but mostly values of the JSON in the parts, which stays JSON."""
    draw = random.Random(seed)
    parts = [*case.split(SPLIT), *[b""] * 5][:5]
    place = draw.choice([CONFIG, CONFIG, RECORD, RECORD, INDEX, HEADER, HEADER, HEADER, DATA, DATA])
    if draw.random() < 0.15:
        return bytes(atheris.Mutate(case, most))
    if place == DATA or draw.random() < 0.1:
        parts[place] = bytes(atheris.Mutate(parts[place] or b"\0", max(1, most // 2)))
        return join(*parts)[:most]
    try:
        tree = [json.loads(parts[place])]
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(case, most))
    for _ in range(draw.randint(1, 3)):
        edit(tree, draw)
    parts[place] = json.dumps(tree[0]).encode()
    return join(*parts)[:most]


def edit(tree: list[Any], draw: random.Random) -> None:
    """Change one value of a tree in place."""
    spots = list(walk(tree))
    holder, key = draw.choice(spots)
    other, name = draw.choice(spots)
    kind, value = draw.randrange(6), holder[key]
    if kind == 0:
        holder[key] = draw.choice(VALUES)
    elif kind == 1 and type(value) is int:
        holder[key] = draw.choice([value + 1, value - 1, value * 2, value // 2, -value, value + 8])
    elif kind == 2 and len(holder) > 1:
        del holder[key]
    elif kind == 3:
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 4 and isinstance(holder, dict):
        holder[str(draw.choice(VALUES)) if draw.random() < 0.5 else f"{key}{draw.choice('.01')}"] = value
    elif isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), draw.choice(VALUES)) if holder is not tree else None
    else:
        holder[key], other[name] = other[name], holder[key]


def walk(node: Any) -> Any:
    """Every place of a tree: what holds it, and its key."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list) and node[key]:
            yield from walk(node[key])


def fuzz(seconds: int, workspace: Path) -> dict[str, Any]:
    """Fuzz in a process of its own, from the corpus and the seeds; what it did."""
    found, crashes = workspace / "corpus", workspace / "crashes"
    for folder in (found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for name, case in seeds():
        (found / name).write_bytes(case)
    before = len(list(found.iterdir()))
    limits = [
        f"-max_total_time={seconds}",
        "-max_len=8192",
        "-timeout=60",
        "-rss_limit_mb=6000",
        "-print_final_stats=1",
    ]
    words = [sys.executable, __file__, "--libfuzzer", *limits, f"-artifact_prefix={crashes}/", str(found), str(CORPUS)]
    began = time.perf_counter()
    with (workspace / "log.txt").open("w") as log:
        code = subprocess.run(words, stderr=log, stdout=log, check=False).returncode
    text = (workspace / "log.txt").read_text(errors="replace")
    last = re.findall(r"^#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)", text, re.M)[-1]
    return {
        "executions": int(last[0]),
        "seconds": round(time.perf_counter() - began, 1),
        "coverage": {"edges": int(last[1]), "features": int(last[2])},
        "inputs": {"at the start": before + len(list(CORPUS.glob("*"))), "at the end": int(last[3])},
        "exit code": code,
        "crashes": sorted(path.name for path in crashes.iterdir()),
    }


def merge(workspace: Path) -> int:
    """Put the least inputs that cover all that is covered into the corpus of the tests; their number."""
    small = workspace / "small"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir()
    words = [sys.executable, __file__, "--libfuzzer", "-merge=1", "-max_len=8192", str(small)]
    with (workspace / "merge.txt").open("w") as log:
        subprocess.run([*words, str(CORPUS), str(workspace / "corpus")], stderr=log, stdout=log, check=True)
    for path in CORPUS.glob("*"):
        path.unlink()
    for path in small.iterdir():
        shutil.copy(path, CORPUS / path.name)
    return len(list(small.iterdir()))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--workspace", type=Path, default=Path("out/fuzz"), help="corpus, crashes and log of this run")
    parser.add_argument("--record", type=Path, help="JSON file to write what was done to")
    asked = parser.parse_args()
    done = fuzz(asked.seconds, asked.workspace)
    done["corpus"] = {"inputs": merge(asked.workspace), "bytes": sum(path.stat().st_size for path in CORPUS.iterdir())}
    words = ["python", str(Path(__file__).relative_to(ROOT)), "--seconds", str(asked.seconds)]
    versions = {name: version(name) for name in ("atheris", "eggs-ptp", "safetensors", "torch")}
    record = {"command": " ".join(words), "versions": versions, "cpus used": 1, **done}
    print(json.dumps(record, indent=1))
    if asked.record:
        asked.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if "--libfuzzer" in sys.argv:
        sys.argv.remove("--libfuzzer")
        FOLDER = Path(tempfile.mkdtemp(prefix="eggs-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
        try:
            atheris.Fuzz()
        finally:
            shutil.rmtree(FOLDER, ignore_errors=True)
    else:
        main()
