"""The model card of a pruned checkpoint."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.run_record import RunRecord, versions
from eggs_ptp.errors import CheckpointError
from eggs_ptp.sparse.packed_config import PackedConfig

_FORMAT_SENTENCE = re.compile(r"The weights are (?:stored dense with zeros|packed)[^\n]*")  # to the end of its line
_FOLD_SENTENCE = re.compile(r"The channels of the model are permuted compared with the base model[^\n]*")
_VALUE_KINDS = {"int8": "int8 with a scale for every row", "int4": "int4 with a scale for every 64 of a row"}


def check_base_model(name: str | None) -> None:
    """Refuse a base model that the hub would not accept in a card.

    Args:
        name: `owner/name`; None for none.

    Raises:
        CheckpointError: It is no name of the hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"--base-model: expected a name of the hub such as owner/name, got {name!r} ({reason})"
        ) from None


def write_card(
    record: RunRecord,
    config: dict[str, Any],
    source_card: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> str:
    """Render `README.md`: what was done to which matrices, and how to load and check the result.

    Args:
        record: The record of the run.
        config: The model's `config.json`.
        source_card: Licence, languages, data sets and base model that the source's card names.
        base_model: Hub name of the dense model, in place of the one that the source or its card has.
    """
    patterns = sorted({matrix["pattern"] for matrix in record.matrices})
    methods = sorted({matrix["method"] for matrix in record.matrices})
    base = str(record.source["model"])
    kept = sum(_size(matrix) * matrix["density"] for matrix in record.matrices)
    weights = sum(_size(matrix) for matrix in record.matrices)
    errors = [matrix["output_error"] for matrix in record.matrices if matrix["output_error"] is not None]
    mean_error = f"{sum(errors) / len(errors):.4f}" if errors else "not measured"
    description = f"One-shot pruning with **{', '.join(methods)}**"
    if mask := record.recipe.get("mask"):
        methods = ["given masks"]
        description = f"Pruned with the masks of `{Path(mask).name}`, and the steps that `eggs.json` lists,"
    lines = [
        *_front_matter(base, source_card or {}, base_model, ["pruned", "sparse", *patterns, *methods, "eggs-ptp"]),
        "",
        f"# {Path(base).name}, pruned to {' and '.join(patterns)}",
        "",
        f"{description} by eggs-ptp {versions()['eggs-ptp']}. N:M keeps N of every M "
        f"consecutive inputs of a row. {_format_sentence(config, None)}",
        "",
        "| what | value |",
        "|---|---|",
        f"| matrices pruned | {len(record.matrices)} |",
        f"| weights kept in them | {kept / weights:.4f} of {weights} |",
        f"| mean relative output error | {mean_error} |",
        f"| calibration | {_calibration(record)} |",
        f"| recipe sha256 | `{record.recipe_sha256}` |",
        *_permutation_lines(record),
        "",
        "`eggs.json` records the whole run; `eggs verify` checks this folder against it.",
        "",
    ]
    return "\n".join(lines)


def update_card_format(card: str, config: dict[str, Any], packed_config: PackedConfig | None) -> str:
    """Return a card whose sentence about the storage format is that of another format.

    Args:
        card: Text of the card.
        config: The model's `config.json`.
        packed_config: Describes the packed matrices; None for a dense folder.
    """
    return _FORMAT_SENTENCE.sub(lambda _: _format_sentence(config, packed_config), card, count=1)


def update_card_permutation(card: str, permuted: int) -> str:
    """Return the card of a folder with folded permutations, changed for the same weights in the source's channels.

    Args:
        card: Text of the card.
        permuted: How many matrices satisfy their pattern in a permutation only.
    """
    sentence = _base_sentence(permuted)
    changed, found = _FOLD_SENTENCE.subn(lambda _: sentence, card, count=1)
    return changed if found else f"{card.rstrip()}\n\n{sentence}\n"


def _front_matter(base: str, source_card: Mapping[str, Any], base_model: str | None, tags: list[str]) -> list[str]:
    """The metadata that the hub reads; a local model is not named as base model, but the one that its card names is."""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    carried = dict(source_card)
    is_hub_name = base.count("/") == 1 and not Path(base).expanduser().exists()
    if base_model or is_hub_name:
        lines.append(f"base_model: {base_model or base}")
        carried.pop("base_model", None)
    lines += [f"{key}: {json.dumps(value, default=str)}" for key, value in carried.items()]
    return [*lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"]


def _permutation_lines(record: RunRecord) -> list[str]:
    permuted = sum(matrix["permuted"] for matrix in record.matrices)
    if record.permutations == "fold":
        return [
            "",
            "The channels of the model are permuted compared with the base model: every N:M matrix satisfies its "
            "pattern in the column order that it is stored in. The permutation alone changes no output of the model, "
            "but whatever was made for the base model and has its channels (LoRA adapters, merges, steering vectors, "
            "draft heads, classifier heads) meets other channels here: `eggs adapt` permutes a LoRA adapter for this "
            "model, and `eggs export --permutation base` writes the model in the base model's channels. "
            "`eggs/orders.safetensors` has the permutations, and `eggs verify --against` undoes them to compare.",
        ]
    if permuted:
        return ["", _base_sentence(permuted)]
    return []


def _base_sentence(permuted: int) -> str:
    return (
        f"{permuted} matrices satisfy their pattern in a channel permutation, which `eggs/orders.safetensors` has: "
        "the groups of `weight[:, permutation]` are consecutive. The weights here are in their original order, so "
        "the model runs as usual."
    )


def _format_sentence(config: dict[str, Any], packed_config: PackedConfig | None) -> str:
    tools = f"every tool that loads the base model ({config.get('model_type')})"
    if packed_config is None:
        return (
            f"The weights are stored dense with zeros, so {tools} loads this one; it is neither smaller nor faster "
            "until it is packed."
        )
    kinds = " and ".join(_VALUE_KINDS[kind] for kind in sorted(set(packed_config.values.values())))
    quantised = f"; kept values are {kinds}" if kinds else ""
    return (
        f"The weights are packed, without their zeros{quantised}. transformers loads this folder after `import "
        "eggs_ptp`, and refuses it otherwise; no other tool reads it. `eggs export --format dense` turns it into a "
        f"folder for {tools}."
    )


def _size(matrix: dict[str, Any]) -> int:
    return int(matrix["shape"][0]) * int(matrix["shape"][1])


def _calibration(record: RunRecord) -> str:
    calibration = record.calibration
    if calibration is None:
        return "none needed"
    begin = ", begin token first" if calibration.get("begin_tokens") else ""
    windows = f"{calibration['nsamples']} windows of {calibration['seqlen']} tokens ({calibration['sampling']}{begin})"
    return f"{windows}, {Path(calibration['source']).name}"
