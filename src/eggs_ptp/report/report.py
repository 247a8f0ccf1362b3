"""The report: runs and records, brought together and rendered as sections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eggs_ptp.errors import EggsError
from eggs_ptp.report.accuracy import (
    comparison_section,
    quality_section,
    read_comparison,
    read_texts,
    text_section,
)
from eggs_ptp.report.comparison_folder import read_comparison_folder
from eggs_ptp.report.connectivity import MAX_WEIGHTS, Connectivity, choose_matrices, read_connectivity
from eggs_ptp.report.headline import headline_section
from eggs_ptp.report.layers import connectivity_section, output_error_section, read_bounds, read_diagnosis
from eggs_ptp.report.model_group import ModelGroup, attach_to_models
from eggs_ptp.report.picture import Picture
from eggs_ptp.report.provenance import provenance_section
from eggs_ptp.report.quality import read_quality
from eggs_ptp.report.record_files import Record, Skipped, read_records
from eggs_ptp.report.run_folder import Run, attach_to_runs, group_by_model, read_runs
from eggs_ptp.report.section import Section, Text
from eggs_ptp.report.speed import read_bench, speed_section

Progress = Callable[[int, int], None]
_SECTIONS = (
    headline_section,
    quality_section,
    output_error_section,
    connectivity_section,
    speed_section,
    comparison_section,
    text_section,
    provenance_section,
)
_READERS = (read_quality, read_texts, read_comparison, read_bench, read_diagnosis, read_bounds)


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        groups: One group per dense model, with its sections.
        skipped: Files and folders that are left out.
    """

    groups: Sequence[tuple[ModelGroup, Sequence[Section]]]
    skipped: Sequence[Skipped]

    @property
    def runs(self) -> list[Run]:
        """All runs, model by model."""
        return [run for group, _ in self.groups for run in group.runs]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures."""
        return [picture for _, sections in self.groups for section in sections for picture in section.pictures]


def make_report(
    folders: Sequence[Path],
    records: Sequence[Path] = (),
    *,
    matrices: Sequence[str] = (),
    all_blocks: bool = False,
    write_texts: Callable[[ModelGroup], Sequence[Text]] = lambda _: (),
    progress: Progress | None = None,
) -> Report:
    """Read pruned folders and the records of other verbs, and render them as sections.

    Runs of different models go into separate groups and are not compared.

    Args:
        folders: Pruned folders, and folders of `eggs compare -o`.
        records: Record files, or folders of them; those in or next to a pruned folder are found without.
        matrices: Names or globs of the matrices whose masks are drawn.
        all_blocks: Read the masks of all blocks of large runs, not of some.
        write_texts: Generates texts with the models of a group; called where no record has any.
        progress: Called with the number of finished runs and of all runs.

    Raises:
        CheckpointError: No folder has a readable eggs.json.
        ModelError: No matrix has a requested name.
        BackendError: matplotlib or jinja2 is not installed.
    """
    comparisons = [record for folder in folders for record in read_comparison_folder(folder)]
    pruned = [folder for folder in folders if folder not in {record.path for record in comparisons}]
    runs, skipped = read_runs(pruned) if pruned or not comparisons else ([], [])
    readable, unreadable = read_records(records, [run.folder for run in runs])
    skipped += unreadable
    complete = [record for record in readable if _is_complete(record, skipped)]
    remaining = [*attach_to_runs(runs, complete), *(each for each in comparisons if _is_complete(each, skipped))]
    groups = []
    for index, members in enumerate(group_by_model(runs)):
        corner_names = choose_matrices(runs if matrices else members, matrices)
        groups.append(ModelGroup(f"m{index}", members, [], {}, corner_names))
    for record in remaining:
        if record in comparisons and not any(group.is_made_from(record.model or "") for group in groups):
            groups.append(ModelGroup(f"m{len(groups)}", [], [], {}, [], named=record.model or ""))
    for record in attach_to_models(groups, remaining):
        about = record.model or "a model that it does not name"
        skipped.append(Skipped(record.path, f"{record.kind}: about {about}, which is not in this report"))
    done = 0
    for group in groups:
        for run in group.runs:
            connectivity = _read_connectivity(run, group.corner_names, all_blocks, skipped)
            if connectivity is not None:
                group.connectivity[run.label] = connectivity
            done += 1
            if progress:
                progress(done, len(runs))
    groups_with_sections = []
    for group in groups:
        if group.runs and not text_section(group).texts:
            group.texts += write_texts(group)
        makers = _SECTIONS if group.runs else (comparison_section,)
        sections = [make_section(group) for make_section in makers]
        groups_with_sections.append((group, [section for section in sections if not section.is_empty]))
    return Report(groups_with_sections, skipped)


def _is_complete(record: Record, skipped: list[Skipped]) -> bool:
    """Return whether a record has everything that the sections read from it; if not, it is skipped."""
    try:
        for read in _READERS:
            read(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"not what {record.kind} writes: {type(error).__name__} at {error}"
        skipped.append(Skipped(record.path, reason))
        return False
    return True


def _read_connectivity(
    run: Run, corner_names: Sequence[str], all_blocks: bool, skipped: list[Skipped]
) -> Connectivity | None:
    """Read the masks of a run; if its weights are broken, the report still shows its record."""
    try:
        return read_connectivity(run, corner_names, max(run.weights, 1) if all_blocks else MAX_WEIGHTS)
    except EggsError as error:
        skipped.append(Skipped(run.folder, f"its weights: {error}"))
        return None
