"""Group: the runs of one model, with what was measured of the dense one: all that can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eggs_ptp.report.connectivity import Connectivity
from eggs_ptp.report.quality import Perplexity, Quality, quality
from eggs_ptp.report.record import Record
from eggs_ptp.report.run import Run

DENSE = "dense"


@dataclass
class Group:
    """Runs of one model in the order they were given. `key` is what ids and names of files begin with."""

    key: str
    runs: list[Run]
    records: list[Record]  # about the model itself, dense
    connectivity: dict[str, Connectivity]  # by label, of those whose weights are there
    chosen: list[str]  # matrices to look at

    @property
    def model(self) -> str:
        """What all were made from."""
        return self.runs[0].model

    def measured(self) -> list[tuple[str, int | None, Quality]]:
        """Label, place and quality of every evaluation, those of the dense model first."""
        dense: list[tuple[str, int | None, Quality]] = []
        pruned: list[tuple[str, int | None, Quality]] = []
        owners = [(DENSE, None, self.records), *((run.label, at, run.all_records) for at, run in enumerate(self.runs))]
        for label, place, records in owners:
            for found in (quality(record) for record in records):
                if found is None:
                    continue
                (dense if place is None else pruned).append((label, place, found))
                if found.reference and found.against and names(self, found.against):
                    dense.append((DENSE, None, found.reference))
        return [*dense, *pruned]

    def perplexities(self) -> dict[str, dict[str, tuple[int | None, Perplexity]]]:
        """By protocol, as only these compare, and label; of several records the first one."""
        found: dict[str, dict[str, tuple[int | None, Perplexity]]] = {}
        for label, place, measured in self.measured():
            if measured.perplexity is not None:
                found.setdefault(measured.perplexity.protocol, {}).setdefault(label, (place, measured.perplexity))
        return found


def about(groups: Sequence[Group], records: Sequence[Record]) -> list[Record]:
    """Give each record to the groups whose model it names; those that no group has are returned."""
    left = []
    for record in records:
        homes = [group for group in groups if record.model is not None and names(group, record.model)]
        for group in homes:
            group.records.append(record)
        if not homes:
            left.append(record)
    return left


def names(group: Group, model: str) -> bool:
    """Whether the model is the one that the group's runs were made from."""
    source = str(group.runs[0].manifest["source"]["model"])
    if model == source:
        return True
    both = Path(model).expanduser(), Path(source).expanduser()
    return all(path.is_dir() for path in both) and both[0].resolve() == both[1].resolve()
