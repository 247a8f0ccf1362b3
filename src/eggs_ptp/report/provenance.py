"""The section on recipe and provenance: everything that is needed to repeat a run."""

from typing import Any

from eggs_ptp.recipe.write import toml_of
from eggs_ptp.report.model_group import DENSE, ModelGroup
from eggs_ptp.report.number_format import NO_VALUE, format_bytes, format_duration
from eggs_ptp.report.run_folder import Run
from eggs_ptp.report.section import Section, Table


def provenance_section(group: ModelGroup) -> Section:
    """Show recipes, versions, hashes, and the files that the report was made from."""
    section = Section(f"{group.key}-provenance", "Recipe and provenance")
    properties_of_runs = [_properties(run) for run in group.runs]
    names = list(dict.fromkeys(name for properties in properties_of_runs for name in properties))
    rows = [[name, *(properties.get(name, NO_VALUE) for properties in properties_of_runs)] for name in names]
    section.tables.append(Table("How the runs were made", ["property", *(run.label for run in group.runs)], rows))
    for run in group.runs:
        section.code.append((f"Recipe of {run.label}", toml_of(_without_null(run.manifest.get("recipe", {})))))
    records = [(run.label, record) for run in group.runs for record in run.all_records]
    records += [(DENSE, record) for record in group.records]
    if records:
        files = [[record.path.name, str(record.kind), label] for label, record in records]
        section.collapsed.append(Table("Records in this report", ["file", "written by", "about"], files))
    return section


def _properties(run: Run) -> dict[str, str]:
    manifest = run.manifest
    form = "packed" if run.packed else "dense with zeros"
    versions = manifest.get("versions", {})
    return {
        "folder": str(run.folder),
        "made from": run.model,
        "architecture": str(manifest["source"].get("model_type", NO_VALUE)),
        "method": run.method,
        "pattern": run.pattern,
        "matrices": str(len(run.matrices)),
        "channel permutations": str(manifest.get("orders") or "none"),
        "stored": f"{format_bytes(run.stored)}, {form}" if run.stored else "no weights in the folder",
        "calibration": _calibration_text(manifest.get("calibration")),
        "device, dtype": f"{manifest.get('device', NO_VALUE)}, {manifest.get('dtype', NO_VALUE)}",
        "time": format_duration(float(manifest.get("seconds", 0.0))),
        "peak memory": format_bytes(manifest.get("peak_memory_bytes")),
        "recipe SHA-256": str(manifest.get("recipe_sha256", NO_VALUE)),
        "eggs.json SHA-256": run.sha256,
        **{f"{package} version": str(version) for package, version in versions.items()},
    }


def _calibration_text(calibration: dict[str, Any] | None) -> str:
    if not calibration:
        return "none needed"
    begin = " that begin with the begin token" if calibration.get("begin_tokens") else ""
    return (
        f"{calibration.get('nsamples')} windows of {calibration.get('seqlen')} tokens{begin}, "
        f"{calibration.get('source')}, SHA-256 {calibration.get('sha256', NO_VALUE)}"
    )


def _without_null(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without the keys that are null, which TOML cannot express, or empty."""
    tables = {key: _without_null(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    return {key: value for key, value in tables.items() if value is not None and value not in ({}, [])}
