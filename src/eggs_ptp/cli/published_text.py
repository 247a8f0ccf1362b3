"""What `eggs reproduce` prints without a model: the list of the papers' tables and figures, and their numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from eggs_ptp.comparison.published import Published
    from eggs_ptp.comparison.reproduction import Asked

_NEEDS = {
    "perplexity": "hub, GPU",
    "accuracy": "hub, GPU, lm-eval",
    "speed": "hub, A100",
    "picture": "hub, matplotlib",
}


def list_published(model: str | None, asked: "Asked", output: Path | None, where: dict[str, Any], json: bool) -> None:
    """All tables and figures; with a model and a records folder how many runs of each are recorded there.

    Raises:
        BadParameter: only one of the two.
    """
    from eggs_ptp.cli.terminal import line, print_json, table
    from eggs_ptp.comparison.published import published

    if (model is None) != (output is None):
        raise typer.BadParameter("to list what is recorded, give --model and -o; to run, name a table or figure")
    rows = []
    for item in published().values():
        recorded = _recorded(item, model, asked, output, where) if model and output else None
        rows.append(
            {
                "name": item.name,
                "paper": item.paper.title,
                "arxiv": item.paper.arxiv,
                "place": item.place,
                "title": item.title,
                "measure": item.measure,
                "models": [each.title for each in item.models],
                "numbers": len(item.numbers),
                "needs": _NEEDS[item.measure],
                "recorded": recorded,
            }
        )
    if json:
        print_json({"items": rows, "model": model})
        return
    heads = ["name", "paper", "where", "measures", "models", ">numbers", "needs", *([">recorded"] if model else [])]
    table(heads, [_listed(row, model is not None) for row in rows])
    line(
        "numbers: how many of the paper's are known here. hub: the papers' models, C4, WikiText-2 and, for "
        "accuracy, tasks; GPU: for models of their size. demo, and small models with texts of yours, need neither."
    )
    line(
        "eggs reproduce NAME shows the paper's numbers, eggs reproduce NAME --model MODEL runs the table on any model."
    )


def _listed(row: dict[str, Any], recorded: bool) -> list[str]:
    cells = [row["name"], row["paper"], row["place"], row["measure"], ", ".join(row["models"]), str(row["numbers"])]
    return [*cells, row["needs"], *([row["recorded"] or "-"] if recorded else [])]


def _recorded(item: "Published", model: str, asked: "Asked", output: Path, where: dict[str, Any]) -> str | None:
    from dataclasses import replace

    from eggs_ptp.comparison.reproduction import grid_of
    from eggs_ptp.comparison.run import recorded

    if not item.grid:
        return None
    fitting = asked if item.measure == "accuracy" else replace(asked, data=None, limit=None)
    grid, tasks = grid_of(item, model, fitting)
    done, total = recorded(grid, model, output, tasks=tasks, **fitting.evaluation(), **where)
    return f"{done} of {total} runs"


def show_published(item: "Published", json: bool) -> None:
    """The paper's numbers."""
    from eggs_ptp.cli.terminal import line, print_json

    command = f"eggs reproduce {item.name} --model {item.models[0].hub}"
    if json:
        numbers = [
            {"model": each, "row": list(row), "column": column, "paper": value, "source": item.source}
            for (each, row, column), value in item.numbers.items()
        ]
        print_json({"name": item.name, "source": item.source, "numbers": numbers, "notes": item.notes, "run": command})
        return
    line(f"{item.source}: {item.title}", style="bold")
    _show_numbers(item)
    for claim in item.claims:
        line(
            f"perplexity of {' '.join(claim.row)} {claim.lower_percent} % below that of {' '.join(claim.than)}, "
            "mean over the paper's models"
        )
    for note in (*item.notes, f"numbers read in {item.paper.source}"):
        line(f"- {note}")
    line(f"run it: {command}   (or any other model, such as demo)")


def _show_numbers(item: "Published") -> None:
    """One table, a column a model; or one a model, where each has several columns."""
    from eggs_ptp.cli.terminal import line, table

    rows = list(dict.fromkeys(row for _, row, _ in item.numbers))
    several = len(item.columns) > 1
    for models in ([(each,) for each in item.models] if several else [item.models]) if rows else []:
        places = [(each.key, column) for each in models for column in item.columns]
        heads = [f">{column}" for column in item.columns] if several else [f">{each.title}" for each in models]
        cells = [[item.numbers.get((each, row, column), "") for each, column in places] for row in rows]
        if several:
            line(models[0].title)
        table(["", *heads], [[" ".join(row) or "Dense", *found] for row, found in zip(rows, cells, strict=True)])
