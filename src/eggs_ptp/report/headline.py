"""The headline: quality, size and speed at a glance."""

from collections.abc import Sequence

from eggs_ptp.report.group import DENSE, Group
from eggs_ptp.report.quality import Perplexity
from eggs_ptp.report.record import Kind
from eggs_ptp.report.run import Run
from eggs_ptp.report.section import Card, Section, Table
from eggs_ptp.report.speed import Ratio, ratio
from eggs_ptp.report.words import bytes_text, plain, seconds_text, with_error

_HEADS = ("run", "method", "pattern", ">perplexity", ">× dense", ">output error", ">kept", ">stored", ">speed")


def headline(group: Group) -> Section:
    """Three cards, of the best where there are several runs, which have a line each in a table then."""
    section = Section(f"{group.key}-headline", "At a glance")
    protocol, found = _measured(group)
    runs = {run.label: run for run in group.runs}
    measured = [label for label in runs if label in found]
    best = min(measured, key=lambda label: found[label].figure.value) if measured else group.runs[0].label
    section.cards = [_quality(runs[best], found, protocol, len(runs)), _size(group.runs), _speed(group.runs)]
    if len(runs) > 1:
        how = f"Perplexity: {protocol}. " if protocol else ""
        section.tables.append(
            Table(
                f"{how}Output error: mean over matrices. Kept: share of the weights of pruned matrices. Speed: text "
                "generation, packed over the fastest dense form; ?: samples spread too far to be trusted.",
                [*_HEADS, ">time to prune"],
                [_row(run, found) for run in group.runs],
            )
        )
    return section


def _measured(group: Group) -> tuple[str, dict[str, Perplexity]]:
    """The way of measuring perplexity that most runs share, and what came of it by label."""
    ways = group.perplexities()
    if not ways:
        return "", {}
    protocol = max(ways, key=lambda way: len(ways[way].keys() - {DENSE}))
    return protocol, {label: perplexity for label, (_, perplexity) in ways[protocol].items()}


def _row(run: Run, found: dict[str, Perplexity]) -> list[str]:
    perplexity = found.get(run.label)
    fast = _ratio(run)
    return [
        run.label,
        run.method,
        run.pattern,
        with_error(perplexity.figure.value, perplexity.figure.error) if perplexity else "–",
        _times(perplexity, found.get(DENSE)),
        plain(run.error),
        f"{run.kept:.1%}",
        bytes_text(run.stored),
        fast.text if fast else "–",
        seconds_text(float(run.manifest.get("seconds", 0.0))),
    ]


def _times(perplexity: Perplexity | None, dense: Perplexity | None) -> str:
    return f"{perplexity.figure.value / dense.figure.value:.3f}" if perplexity and dense else "–"


def _quality(run: Run, found: dict[str, Perplexity], protocol: str, runs: int) -> Card:
    error = f"mean output error {plain(run.error)}" if run.error is not None else "no output error was recorded"
    if run.label not in found:
        return Card("Quality", "not evaluated", [error, "eggs evaluate measures perplexity"])
    perplexity, dense = found[run.label], found.get(DENSE)
    value = with_error(perplexity.figure.value, perplexity.figure.error)
    notes = [protocol, error]
    if dense:
        whole = with_error(dense.figure.value, dense.figure.error)
        notes.insert(0, f"{_times(perplexity, dense)} times the dense model's {whole}")
    if runs == 1:
        return Card("Perplexity", value, notes)
    missing = runs - len(found.keys() - {DENSE})
    among = [f"among {runs - missing} of {runs} runs, those that were measured alike"] if missing else []
    return Card("Lowest perplexity", value, [f"{run.label}: {run.method}", *notes[:-1], *among])


def _size(runs: Sequence[Run]) -> Card:
    kept = _range([f"{share:.1%}" for share in sorted({run.kept for run in runs})])
    largest = max(runs, key=lambda run: run.weights)
    weights = f"{largest.weights:,}".replace(",", "\u202f")
    notes = [f"of {weights} weights in {len(largest.matrices)} pruned matrices"]
    sizes = sorted({run.stored for run in runs if run.stored is not None})
    forms = " and ".join(sorted({"packed" if run.packed else "dense with zeros" for run in runs}))
    notes += [f"{_range([bytes_text(size) for size in sizes])} stored, {forms}" if sizes else "weights are not there"]
    for run in runs:
        for record in run.of(Kind.bench):
            if held := (record.data.get("generate") or {}).get("linears_bytes"):
                notes.append(
                    f"linears in memory: {bytes_text(held['packed'])} packed, {bytes_text(held['dense'])} dense"
                )
    patterns = " and ".join(sorted({run.pattern for run in runs}))
    return Card(f"Kept, {patterns}", kept, list(dict.fromkeys(notes)))


def _speed(runs: Sequence[Run]) -> Card:
    pruned = _range([seconds_text(each) for each in sorted(float(run.manifest.get("seconds", 0.0)) for run in runs)])
    rates = {run.label: fast for run in runs if (fast := _ratio(run)) is not None}
    if not rates:
        return Card("Speed", "not measured", ["eggs bench DIR --record measures it", f"pruned in {pruned}"])
    label = max(rates, key=lambda each: rates[each].value)
    doubt = [] if rates[label].trusted else ["?: samples spread too far to be trusted"]
    whose = [label] if len(runs) > 1 else []
    notes = [*whose, f"over {rates[label].over}, the fastest dense form", *doubt, f"pruned in {pruned}"]
    return Card("Speed of text, packed", rates[label].text, notes)


def _ratio(run: Run) -> Ratio | None:
    return next((found for record in run.of(Kind.bench) if (found := ratio(record)) is not None), None)


def _range(texts: Sequence[str]) -> str:
    """Texts of ascending numbers: the first and the last, or the one that both are."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
