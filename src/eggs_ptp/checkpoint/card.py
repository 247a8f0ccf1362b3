"""The model card of a pruned checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.record import RunRecord, versions
from eggs_ptp.sparse.contents import Contents

_FORM = re.compile(r"The weights are (?:stored dense with zeros|packed)[^\n]*")  # to the end of its line


def write_card(record: RunRecord, config: dict[str, Any]) -> str:
    """Render README.md: what was done, to which matrices, how to load and check it."""
    patterns = sorted({matrix["pattern"] for matrix in record.matrices})
    methods = sorted({matrix["method"] for matrix in record.matrices})
    base = str(record.source["model"])
    kept = sum(_size(matrix) * matrix["density"] for matrix in record.matrices)
    weights = sum(_size(matrix) for matrix in record.matrices)
    errors = [matrix["output_error"] for matrix in record.matrices if matrix["output_error"] is not None]
    permuted = sum(matrix["permuted"] for matrix in record.matrices)
    how = f"One-shot pruning with **{', '.join(methods)}**"
    if given := record.recipe.get("mask"):
        methods, how = (
            ["given masks"],
            f"Pruned with the masks of `{Path(given).name}`, and what `eggs.json` says ran on them,",
        )
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if base.count("/") == 1 and not Path(base).expanduser().exists():
        front.append(f"base_model: {base}")
    tags = ["pruned", "sparse", *patterns, *methods, "eggs-ptp"]
    front += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"]
    lines = [
        *front,
        "",
        f"# {Path(base).name}, pruned to {' and '.join(patterns)}",
        "",
        f"{how} by eggs-ptp {versions()['eggs-ptp']}. N:M keeps N of every M "
        f"consecutive inputs of a row. {_form(config, None)}",
        "",
        "| what | value |",
        "|---|---|",
        f"| matrices pruned | {len(record.matrices)} |",
        f"| weights kept in them | {kept / weights:.4f} of {weights} |",
        f"| mean relative output error | {f'{sum(errors) / len(errors):.4f}' if errors else 'not measured'} |",
        f"| calibration | {_calibration(record)} |",
        f"| recipe sha256 | `{record.recipe_sha256}` |",
    ]
    if record.orders == "fold":
        lines += [
            "",
            "The channels of the model stand in another order than the base model's, which changes nothing that it "
            "computes: every N:M matrix satisfies its pattern in the column order that it is stored in. The orders "
            "are kept in `eggs/orders.safetensors`, and `eggs verify --against` undoes them to compare.",
        ]
    elif permuted:
        lines += [
            "",
            f"{permuted} matrices satisfy their pattern in a channel order of their own, kept in "
            "`eggs/orders.safetensors`: `weight[:, order]` has its groups side by side. The weights here are in their "
            "original order, so the model computes what it always did, with zeros.",
        ]
    lines += ["", "Everything about the run is in `eggs.json`; `eggs verify` checks this folder against it.", ""]
    return "\n".join(lines)


def card_of(text: str, config: dict[str, Any], contents: Contents | None) -> str:
    """The card of a folder whose form has changed: packed, which `contents` describes, or dense."""
    return _FORM.sub(lambda _found: _form(config, contents), text, count=1)


def _form(config: dict[str, Any], contents: Contents | None) -> str:
    tools = f"every tool that loads the base model ({config.get('model_type')})"
    if contents is None:
        return (
            f"The weights are stored dense with zeros, so {tools} loads this one; it is neither smaller nor faster "
            "until it is packed."
        )
    kinds = {"int8": "int8 with a scale for every row", "int4": "int4 with a scale for every 64 of a row"}
    kept = " and ".join(kinds[kind] for kind in sorted(set(contents.values.values())))
    return (
        f"The weights are packed, without their zeros{f'; kept values are {kept}' if kept else ''}. transformers loads "
        "this folder after `import eggs_ptp`, and refuses it without; no other tool reads it. `eggs export --format "
        f"dense` turns it into a folder for {tools}."
    )


def _size(matrix: dict[str, Any]) -> int:
    return int(matrix["shape"][0]) * int(matrix["shape"][1])


def _calibration(record: RunRecord) -> str:
    given = record.calibration
    if given is None:
        return "none needed"
    return (
        f"{given['nsamples']} windows of {given['seqlen']} tokens ({given['sampling']}), {Path(given['source']).name}"
    )
