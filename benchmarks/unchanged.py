"""Prove that a change of the code changes nothing that it computes: write a list of results, or compare with one.

    python benchmarks/unchanged.py --write before.json            # at the commit before
    python benchmarks/unchanged.py --compare before.json          # after the change, on the same machine

The list has the SHA-256 of the weights that `eggs prune demo` writes, for every method of the catalogue at 2:4 and,
for those that need no N:M pattern, at 0.5, seeds 0 and 1; of `--model` (such as a folder with tinystories-656k)
pruned by `eggs+` and `eggs-max`; of packed and quantised exports; and the perplexities of `eggs evaluate`. A hash
covers the name, type, shape and bytes of every tensor. Bits depend on the processor and the number of threads, so both
lists must come from one machine with one value of OMP_NUM_THREADS. Exit code 1: something differs.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXPORTS = {
    "packed": ("--format", "packed"),
    "packed int8": ("--format", "packed", "--values", "int8"),
    "packed int4": ("--format", "packed", "--values", "int4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the list to this file")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare with the list in this file")
    parser.add_argument("--model", nargs=3, metavar=("FOLDER", "CALIBRATION", "TEXT"), help="a second model")
    parser.add_argument("--only", default="", metavar="TEXT", help="only entries whose name contains this")
    given = parser.parse_args()
    if not given.write and not given.compare:
        parser.error("expected --write FILE or --compare FILE")
    before = json.loads(given.compare.read_text())["entries"] if given.compare else {}
    entries = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, measure in jobs(Path(scratch), given.model):
            if given.only in name:
                start = time.perf_counter()
                entries[name] = measure()
                verdict = "" if name not in before else "equal" if before[name] == entries[name] else "DIFFERENT"
                print(f"{name}: {entries[name][:16]} {verdict} ({time.perf_counter() - start:.1f} s)", flush=True)
    if given.write:
        given.write.write_text(json.dumps({"machine": platform.machine(), "entries": entries}, indent=1) + "\n")
    if given.compare:
        sys.exit(verdict_of(before, entries, given.only))


def verdict_of(before: dict[str, str], now: dict[str, str], only: str) -> int:
    wanted = {name: value for name, value in before.items() if only in name}
    different = sorted(name for name in wanted if now.get(name) != wanted[name])
    added = len(now.keys() - wanted.keys())
    print(f"{len(wanted) - len(different)} of {len(wanted)} equal, {added} without a value before")
    for name in different:
        print(f"different: {name}")
    return 1 if different else 0


def jobs(scratch: Path, model: list[str] | None) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each entry's name, and the function that measures it."""
    from eggs_ptp.method.catalogue import METHODS

    for method in METHODS:
        for seed in (0, 1):
            for pattern in ("2:4", "0.5"):
                yield (
                    f"demo {method} {pattern} seed {seed}",
                    lambda m=method, p=pattern, s=seed: pruned(scratch, m, p, s),
                )
    for name, options in EXPORTS.items():
        yield f"demo eggs+ 2:4, exported as {name}", lambda options=options: exported(scratch, options)
    yield "demo eggs+ 2:4, packed and exported as dense", lambda: exported(scratch, ("--format", "dense"), packed=True)
    yield "demo, perplexity", lambda: perplexity("demo", "builtin")
    yield "demo eggs+ 2:4, perplexity", lambda: perplexity(str(ready(scratch)), "builtin")
    if model:
        folder, calibration, text = model
        for method in ("eggs+", "eggs-max"):
            for seed in (0, 1):
                yield (
                    f"{Path(folder).name} {method} 2:4 seed {seed}",
                    lambda m=method, s=seed: pruned(scratch, m, "2:4", s, model=folder, calibration=calibration),
                )
        yield f"{Path(folder).name}, perplexity", lambda: perplexity(folder, text)


def pruned(scratch: Path, method: str, pattern: str, seed: int, model: str = "demo", **settings: str) -> str:
    from eggs_ptp import EggsError, prune

    try:
        prune(model, scratch / "out", method=method, pattern=pattern, seed=seed, overwrite=True, **settings)
    except EggsError as error:
        return f"refused: {type(error).__name__}"
    return digest_of(scratch / "out")


def ready(scratch: Path) -> Path:
    from eggs_ptp import prune

    folder = scratch / "plus"
    if not folder.exists():
        prune("demo", folder, method="eggs+", pattern="2:4")
    return folder


def exported(scratch: Path, options: tuple[str, ...], *, packed: bool = False) -> str:
    source, output = ready(scratch), scratch / "exported"
    if packed:
        source = export(source, scratch / "packed", EXPORTS["packed"])
    return digest_of(export(source, output, options))


def export(source: Path, output: Path, options: tuple[str, ...]) -> Path:
    command = [sys.executable, "-m", "eggs_ptp", "export", source, "-o", output, "--overwrite", *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"eggs export {source} {' '.join(options)}: {done.stderr}")
    return output


def perplexity(model: str, text: str) -> str:
    from eggs_ptp import evaluate

    if text == "builtin":
        from eggs_ptp.demo.builtin import builtin_documents

        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in builtin_documents("evaluation"))
            file.flush()
            return repr(evaluate(model, file.name, max_windows=60).value)
    return repr(evaluate(model, text, max_windows=60).value)


def digest_of(folder: Path) -> str:
    """SHA-256 of all tensors of the folder's weights, by name."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name).contiguous()
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
