"""What `eggs reproduce` prints without a model: the papers' tables and figures, and their numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from eggs_ptp.research.reproduction.published import Published
    from eggs_ptp.research.reproduction.reproduction import ProtocolSettings

_REQUIREMENTS = {
    "perplexity": "hub, GPU",
    "accuracy": "hub, GPU, lm-eval",
    "speed": "hub, A100",
    "picture": "hub, matplotlib",
}


def list_published(
    model: str | None, settings: "ProtocolSettings", records: Path | None, device: dict[str, Any], json: bool
) -> None:
    """Print all tables and figures; with a model and a records folder, how many runs of each are recorded.

    Args:
        model: The model whose recorded runs are counted.
        settings: How the runs differ from the paper's protocol.
        records: Folder of the records.
        device: Arguments `device` and `dtype` of the runs.
        json: Print JSON.

    Raises:
        BadParameter: Only one of `model` and `records` is given.
    """
    from eggs_ptp.cli.terminal import print_json, print_line, print_table
    from eggs_ptp.research.reproduction.published import published

    if (model is None) != (records is None):
        raise typer.BadParameter("to list recorded runs, give --model and -o; to run, name a table or figure")
    items = []
    for item in published().values():
        count_recorded_runs = _recorded_runs(item, model, settings, records, device) if model and records else None
        items.append(
            {
                "name": item.name,
                "paper": item.paper.title,
                "arxiv": item.paper.arxiv,
                "place": item.place,
                "title": item.title,
                "measure": item.measure,
                "models": [paper_model.title for paper_model in item.models],
                "numbers": len(item.numbers),
                "needs": _REQUIREMENTS[item.measure],
                "recorded": count_recorded_runs,
            }
        )
    if json:
        print_json({"items": items, "model": model})
        return
    columns = ["name", "paper", "table or figure", ">numbers", "requires"]
    if model:
        columns.append(">recorded")
    print_table(columns, [_row(item, with_recorded=model is not None) for item in items])
    print_line(
        "numbers: how many of the paper's numbers are stored here. hub: the papers' models, C4, WikiText-2 and, for "
        "accuracy, tasks; GPU: for models of their size. demo and small models with local texts need neither."
    )
    print_line(
        "eggs reproduce NAME shows the paper's numbers; eggs reproduce NAME --model MODEL runs the table on any model."
    )


def _row(item: dict[str, Any], *, with_recorded: bool) -> list[str]:
    row = [
        item["name"],
        item["paper"],
        item["place"],
        str(item["numbers"]),
        item["needs"],
    ]
    return [*row, item["recorded"] or "-"] if with_recorded else row


def _recorded_runs(
    item: "Published", model: str, settings: "ProtocolSettings", records: Path, device: dict[str, Any]
) -> str | None:
    from dataclasses import replace

    from eggs_ptp import api
    from eggs_ptp.comparison.runner import count_recorded_runs
    from eggs_ptp.models.folder import read_config
    from eggs_ptp.research.reproduction.published import known_model
    from eggs_ptp.research.reproduction.reproduction import build_grid

    if not item.grid:
        return None
    if item.measure != "accuracy":
        settings = replace(settings, data=None, limit=None)
    grid, tasks = build_grid(item, model, settings)
    known = known_model(model, read_config(api.find(model)))
    evaluation = settings.evaluation(known[0] if known else None)
    done, total = count_recorded_runs(grid, model, records, tasks=tasks, **evaluation, **device)
    return f"{done} of {total} runs"


def show_published(item: "Published", json: bool) -> None:
    """Print the paper's numbers of one table."""
    from eggs_ptp.cli.terminal import print_json, print_line

    command = f"eggs reproduce {item.name} --model {item.models[0].hub}"
    if json:
        numbers = [
            {"model": model, "row": list(row), "column": column, "paper": value, "source": item.source}
            for (model, row, column), value in item.numbers.items()
        ]
        print_json({"name": item.name, "source": item.source, "numbers": numbers, "notes": item.notes, "run": command})
        return
    print_line(f"{item.source}: {item.title}", style="bold")
    _print_numbers(item)
    for claim in item.claims:
        print_line(
            f"perplexity of {' '.join(claim.row)} {claim.lower_percent} % lower than that of {' '.join(claim.than)}, "
            "mean over the paper's models"
        )
    for note in (*item.notes, f"source of the numbers: {item.paper.source}"):
        print_line(f"- {note}")
    print_line(f"run it: {command}   (or any other model, such as demo)")


def _print_numbers(item: "Published") -> None:
    """Print one table with a column per model, or one table per model where each model has several columns."""
    from eggs_ptp.cli.terminal import print_line, print_table

    labels = list(dict.fromkeys(row for _, row, _ in item.numbers))
    if not labels:
        return
    table_per_model = len(item.columns) > 1
    tables = [(model,) for model in item.models] if table_per_model else [item.models]
    for models in tables:
        if table_per_model:
            print_line(models[0].title)
            columns = [f">{column}" for column in item.columns]
        else:
            columns = [f">{model.title}" for model in models]
        rows = []
        for label in labels:
            numbers = [item.numbers.get((model.key, label, column), "") for model in models for column in item.columns]
            rows.append([" ".join(label) or "Dense", *numbers])
        print_table(["", *columns], rows)
