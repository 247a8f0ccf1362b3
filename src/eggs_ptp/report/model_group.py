"""Model group: the runs of one dense model, with everything that was measured of them and of the dense model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eggs_ptp.report.connectivity import Connectivity
from eggs_ptp.report.quality import Perplexity, Quality, read_quality
from eggs_ptp.report.record_files import Kind, Record
from eggs_ptp.report.run_folder import Run
from eggs_ptp.report.section import Text

DENSE = "dense"


class Evaluation(NamedTuple):
    """An evaluation of a run, or of the dense model (`run_index` None)."""

    label: str
    run_index: int | None
    quality: Quality


@dataclass
class ModelGroup:
    """Runs of one model, which are compared with each other.

    Attributes:
        key: Start of ids and file names.
        runs: The runs, in the order in which they were given.
        records: Records about the dense model.
        connectivity: Connectivity by label of the run, where the weights are there.
        corner_names: Matrices whose corners are drawn.
        named: The dense model of a group that has only a comparison and no runs.
        texts: Texts that were generated for this report, as no record has one.
    """

    key: str
    runs: list[Run]
    records: list[Record]
    connectivity: dict[str, Connectivity]
    corner_names: list[str]
    named: str = ""
    texts: list[Text] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The dense model that all runs were made from."""
        return self.runs[0].model if self.runs else self.named

    def evaluations(self) -> list[Evaluation]:
        """Return all evaluations, those of the dense model first."""
        dense: list[Evaluation] = []
        pruned: list[Evaluation] = []
        owners: list[tuple[str, int | None, list[Record]]] = [(DENSE, None, self.records)]
        owners += [(run.label, index, run.all_records) for index, run in enumerate(self.runs)]
        for label, run_index, records in owners:
            for record in records:
                quality = read_quality(record)
                if quality is None:
                    continue
                evaluation = Evaluation(label, run_index, quality)
                if run_index is None:
                    dense.append(evaluation)
                else:
                    pruned.append(evaluation)
                if quality.reference and quality.against and self.is_made_from(quality.against):
                    dense.append(Evaluation(DENSE, None, quality.reference))
        return [*dense, *pruned]

    def perplexities(self) -> dict[str, dict[str, tuple[int | None, Perplexity]]]:
        """Return run index and perplexity by protocol and label; only perplexities of one protocol are comparable.

        If a label has several records of a protocol, the first counts.
        """
        by_protocol: dict[str, dict[str, tuple[int | None, Perplexity]]] = {}
        for label, run_index, quality in self.evaluations():
            if quality.perplexity is not None:
                by_label = by_protocol.setdefault(quality.perplexity.protocol, {})
                by_label.setdefault(label, (run_index, quality.perplexity))
        return by_protocol

    def is_made_from(self, model: str) -> bool:
        """Return whether the runs were made from this model."""
        source = str(self.runs[0].manifest["source"]["model"]) if self.runs else self.named
        if model == source:
            return True
        paths = [Path(name).expanduser() for name in (model, source)]
        return all(path.is_dir() for path in paths) and paths[0].resolve() == paths[1].resolve()


def attach_to_models(groups: Sequence[ModelGroup], records: Sequence[Record]) -> list[Record]:
    """Attach each record to the groups whose dense model it is about.

    Returns:
        The records that are about none of the models.
    """
    remaining = []
    for record in records:
        is_pruned = record.kind is Kind.compared_run and "recipe" in record.data  # not a result of the dense model
        matching = [
            group for group in groups if record.model is not None and not is_pruned and group.is_made_from(record.model)
        ]
        for group in matching:
            group.records.append(record)
        if not matching:
            remaining.append(record)
    return remaining
