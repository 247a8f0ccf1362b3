"""Every supported architecture: pruned to 2:4, verified, loaded, packed, and generating from the packed folder.

    python benchmarks/family_table.py [--only NAME ...] [--method METHOD] [--keep FOLDER] [--record FILE.json]

The models are those of the tests (`tests/tiny.py`): two blocks with random weights, of every model type with a family,
some in several variants, and of four without. Linears are counted in the checkpoint, not in the family: every tensor of
a block with two or more axes, except routers of experts; fused experts count as that many matrices. `--keep` stores
each model with its pruned and packed folders, to try `eggs` on.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

ROUTERS = ("gate.weight", "shared_expert_gate.weight")  # of experts; never pruned
PROMPT = "The function returns"
NEW_TOKENS = 12
HEADS = ("model", "type", "family", "linears pruned", "folds", "verified", "packed against dense", "generates")


def main() -> None:
    import tiny

    from eggs_ptp.checkpoint.run_record import versions

    names = [*tiny.FAMILIES, *tiny.OTHERS, *tiny.MIXTURES, *tiny.UNKNOWN]
    arguments = parse(names)
    rows = []
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only or names:
            folder = (arguments.keep or Path(scratch)) / name
            rows.append(check_model(tiny.tiny_model(folder / "model", name), folder, name, arguments.method))
            print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
    if arguments.record:
        command = shlex.join(["python", *sys.argv])
        record = {"command": command, "versions": versions(), "method": arguments.method, "rows": rows}
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(has_failed(row) for row in rows) else 0)


def parse(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--method", default="eggs+")
    parser.add_argument("--keep", type=Path, help="store the folders here")
    parser.add_argument("--record", type=Path)
    return parser.parse_args()


@torch.no_grad()
def check_model(source: Path, folder: Path, name: str, method: str) -> dict[str, Any]:
    """Prune, verify, pack and run one model; return its row of the table."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.packed import export
    from eggs_ptp.models.load import load_skeleton
    from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

    text = CalibrationSpec(text=str(HERE.parent / "docs" / "architecture.md"), nsamples=8, seqlen=64)
    skeleton = load_skeleton(source)
    pruned, packed = folder / "pruned", folder / "packed"
    record = api.prune(str(source), pruned, Recipe(method=method, pattern="2:4", calibration=text), overwrite=True)
    verification = api.verify(pruned, str(source), pattern="2:4" if record.permutations == "fold" else None)
    matrices = matrices_in_blocks(source, skeleton.family.blocks)
    missed = sorted(matrices.keys() - {matrix["name"] for matrix in record.matrices})
    export(pruned, packed, "packed", overwrite=True)
    dense_logits, dense_tokens = run(pruned)
    packed_logits, packed_tokens = run(packed)
    permutations = pruned / "eggs" / "orders.safetensors"
    folded = [key.rpartition(".")[2] for key in load_file(permutations)] if record.permutations == "fold" else []
    return {
        "name": name,
        "model_type": skeleton.model.config.model_type,
        "known": skeleton.family.known,
        "linears": sum(matrices.values()),
        "pruned": len(record.matrices),
        "missed": missed,
        "folds": list(dict.fromkeys(space.partition("[")[0] for space in folded)),
        "checks": len(verification.checks),
        "failures": [f"{check.name}: {check.detail}" for check in verification.failures],
        "apart": float((packed_logits - dense_logits).abs().max() / dense_logits.abs().max()),
        "new_tokens": len(packed_tokens),
        "same_tokens": packed_tokens == dense_tokens,
    }


def matrices_in_blocks(source: Path, blocks: str) -> dict[str, int]:
    """Return the number of matrices in each tensor of the blocks that is not a vector or router, by name."""
    counts = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.startswith(f"{blocks}.") and tensor.ndim > 1 and not name.endswith(ROUTERS):
            counts[name.removesuffix(".weight")] = len(tensor) if tensor.ndim == 3 else 1
    return counts


def run(folder: Path) -> tuple[torch.Tensor, list[int]]:
    """Return logits for fixed tokens, in float32, and the tokens that transformers generates after the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(torch.arange(48).view(2, 24), use_cache=False).logits
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt", return_token_type_ids=False)
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 257}
    return logits, model.generate(**ids, **settings)[0, ids["input_ids"].shape[1] :].tolist()


def has_failed(row: dict[str, Any]) -> bool:
    return bool(row["missed"] or row["failures"] or row["pruned"] != row["linears"] or row["apart"] > 1e-4)


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row as text."""
    return [
        row["name"],
        row["model_type"],
        "yes" if row["known"] else "no, discovered",
        f"{row['pruned']} of {row['linears']}",
        ", ".join(row["folds"]) or "none",
        f"{row['checks']} checks" if not row["failures"] else "; ".join(row["failures"]),
        f"{row['apart']:.1e}",
        f"{row['new_tokens']} tokens, {'as dense' if row['same_tokens'] else 'different from dense'}",
    ]


if __name__ == "__main__":
    main()
