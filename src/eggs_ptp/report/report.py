"""Report: runs and records brought together, and written as a page, Markdown or pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eggs_ptp.errors import EggsError
from eggs_ptp.report.accuracy import accuracy, compared, comparisons, text_samples, texts
from eggs_ptp.report.connectivity import MOST_WEIGHTS, Connectivity, choose, connectivity
from eggs_ptp.report.group import Group, about
from eggs_ptp.report.headline import headline
from eggs_ptp.report.layers import connections, diagnosed, layers, left_to_gain
from eggs_ptp.report.picture import Picture
from eggs_ptp.report.provenance import provenance
from eggs_ptp.report.quality import quality
from eggs_ptp.report.record import Record, Skipped, read_records
from eggs_ptp.report.run import Run, attach, by_model, read_runs
from eggs_ptp.report.section import Section
from eggs_ptp.report.speed import speed, timed

Progress = Callable[[int, int], None]
_PARTS = (headline, accuracy, layers, connections, speed, comparisons, texts, provenance)


@dataclass(frozen=True)
class Report:
    """The groups, one a model, with their sections; and what could not be read."""

    groups: Sequence[tuple[Group, Sequence[Section]]]
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
    progress: Progress | None = None,
) -> Report:
    """Read pruned folders and the records of other verbs, and draw what they say.

    `records` are files or folders of them; those beside a folder and named for it are found without. `matrices` are
    names or globs of those whose pattern is drawn. Of large runs the degrees of some blocks are read, with `all_blocks`
    of all. Runs of different models come in groups of their own and are not compared.

    Raises:
        CheckpointError: no folder has a record that can be read.
        ModelError: no matrix has such a name.
        BackendError: matplotlib or jinja2 is not installed.
    """
    runs, skipped = read_runs(folders)
    found, broken = read_records(records, [run.folder for run in runs])
    skipped += broken
    found = [record for record in found if _is_sound(record, skipped)]
    left = attach(runs, found)
    groups = []
    for index, members in enumerate(by_model(runs)):
        chosen = choose(runs if matrices else members, matrices)
        groups.append(Group(f"m{index}", members, [], {}, chosen))
    stray = about(groups, left)
    skipped += [
        Skipped(each.path, f"{each.kind}: about {each.model or 'a model that it does not name'}, no run of this report")
        for each in stray
    ]
    done = 0
    for group in groups:
        for run in group.runs:
            if (seen := _look(run, group.chosen, all_blocks, skipped)) is not None:
                group.connectivity[run.label] = seen
            done += 1
            if progress:
                progress(done, len(runs))
    drawn = []
    for group in groups:
        sections = [part(group) for part in _PARTS]
        drawn.append((group, [section for section in sections if not section.is_empty]))
    return Report(drawn, skipped)


def _is_sound(record: Record, skipped: list[Skipped]) -> bool:
    """Whether every part that reads such a record finds in it what it needs."""
    try:
        for part in (quality, text_samples, compared, timed, diagnosed, left_to_gain):
            part(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"not what {record.kind} writes: {type(error).__name__} at {error}"
        skipped.append(Skipped(record.path, reason))
        return False
    return True


def _look(run: Run, chosen: Sequence[str], all_blocks: bool, skipped: list[Skipped]) -> Connectivity | None:
    """Its masks; a folder whose weights are broken is still worth its record."""
    try:
        return connectivity(run, chosen, max(run.weights, 1) if all_blocks else MOST_WEIGHTS)
    except EggsError as error:
        skipped.append(Skipped(run.folder, f"its weights: {error}"))
        return None
