"""The section about recipe and provenance: what it takes to do a run again."""

from typing import Any

from eggs_ptp.recipe.write import toml_of
from eggs_ptp.report.group import Group
from eggs_ptp.report.run import Run
from eggs_ptp.report.section import Section, Table
from eggs_ptp.report.words import bytes_text, seconds_text


def provenance(group: Group) -> Section:
    """Recipes, versions, hashes, and the files that this report was made from."""
    section = Section(f"{group.key}-provenance", "Recipe and provenance")
    facts = [_facts(run) for run in group.runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    rows = [[name, *(found.get(name, "–") for found in facts)] for name in names]
    section.tables.append(Table("How they were made", ["what", *(run.label for run in group.runs)], rows))
    for run in group.runs:
        section.code.append((f"Recipe of {run.label}", toml_of(_known(run.manifest.get("recipe", {})))))
    records = [(run.label, record) for run in group.runs for record in run.all_records]
    records += [("dense", record) for record in group.records]
    if records:
        files = [[record.path.name, str(record.kind), label] for label, record in records]
        section.folded.append(Table("Records that were read", ["file", "written by", "about"], files))
    return section


def _facts(run: Run) -> dict[str, str]:
    manifest = run.manifest
    versions = manifest.get("versions", {})
    form = "packed" if run.packed else "dense with zeros"
    return {
        "folder": str(run.folder),
        "made from": run.model,
        "architecture": str(manifest["source"].get("model_type", "–")),
        "method": run.method,
        "pattern": run.pattern,
        "matrices": str(len(run.matrices)),
        "channel orders": str(manifest.get("orders") or "the source's"),
        "stored": f"{bytes_text(run.stored)}, {form}" if run.stored else "weights are not in the folder",
        "calibration": _calibration(manifest.get("calibration")),
        "device, type": f"{manifest.get('device', '–')}, {manifest.get('dtype', '–')}",
        "time": seconds_text(float(manifest.get("seconds", 0.0))),
        "peak memory": bytes_text(manifest.get("peak_memory_bytes")),
        "recipe SHA-256": str(manifest.get("recipe_sha256", "–")),
        "eggs.json SHA-256": run.sha256,
        **{f"{name} version": str(version) for name, version in versions.items()},
    }


def _calibration(found: dict[str, Any] | None) -> str:
    if not found:
        return "none needed"
    return (
        f"{found.get('nsamples')} windows of {found.get('seqlen')} tokens, {found.get('source')}, "
        f"SHA-256 {found.get('sha256', '–')}"
    )


def _known(recipe: dict[str, Any]) -> dict[str, Any]:
    """Without what was left to its default as null, which TOML cannot say."""
    tables = {key: _known(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    return {key: value for key, value in tables.items() if value is not None and value not in ({}, [])}
