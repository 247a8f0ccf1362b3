"""`eggs methods`: the catalogue, and each method taken apart."""

import inspect
import typing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.method.method import Method
    from eggs_ptp.method.step import Bound


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method to explain.", show_default=False)] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Print NAME as a recipe file, every option spelled out.")
    ] = False,
    json: flags.Json = False,
) -> None:
    """List the methods, or explain one: its formulas, options, statistics and source."""
    from eggs_ptp.cli.terminal import print_json
    from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS, find_method
    from eggs_ptp.method.step import SLOTS, names

    if recipe:
        _print_recipe(name)
        return
    if name is not None:
        explained = _explain(find_method(name))
        print_json(explained) if json else _print_method(explained)
        return
    rows = [
        {
            "name": method.name,
            "title": method.title,
            "statistics": sorted(method.bind().statistics),
            "source": method.source,
            "default": method.name == DEFAULT_METHOD,
        }
        for method in METHODS.values()
    ]
    steps = {slot: list(names(slot)) for slot in SLOTS}
    print_json({"methods": rows, "steps": steps}) if json else _print_list(rows, steps)


def _print_recipe(name: str | None) -> None:
    from eggs_ptp.errors import MethodError
    from eggs_ptp.recipe.recipe import Recipe

    if name is None:
        raise MethodError("--recipe prints one method; expected its name, as in `eggs methods eggs+ --recipe`")
    method = Recipe(method=name).bound().method
    typer.echo(f"# {method.title}. eggs prune MODEL -o FOLDER --recipe THIS_FILE")
    typer.echo(Recipe(method=name, steps=method.to_dict()["steps"]).to_toml(), nl=False)


def _explain(method: "Method") -> dict[str, Any]:
    from eggs_ptp.core.stats import STATISTICS

    bound = method.bind()
    return {
        "name": method.name,
        "title": method.title,
        "source": method.source,
        "statistics": {name: STATISTICS[name].formula for name in sorted(bound.statistics)},
        "steps": [_explain_step(step) for step in bound.links],
    }


def _explain_step(step: "Bound") -> dict[str, Any]:
    from eggs_ptp.cli.docstring import take_apart

    text = take_apart(step.function.__doc__ or "")
    hints = typing.get_type_hints(step.function, include_extras=True)
    defaults = {name: found.default for name, found in inspect.signature(step.function).parameters.items()}
    return {
        "slot": step.slot,
        "name": step.name,
        "function": f"{step.function.__module__}:{step.function.__name__}",
        "data": list(step.data),
        "formula": text.formula,
        "options": [
            {
                "name": name,
                "value": value,
                "default": defaults[name],
                "allowed": _allowed(hints.get(name, Any)),
                "meaning": text.arguments.get(name, ""),
            }
            for name, value in step.options.items()
        ],
        "source": text.source,
        "differs": text.differs,
    }


def _allowed(annotation: Any) -> str:
    """Say in words what an option's type admits: `integer >= 0 or "auto"`."""
    from pydantic import TypeAdapter

    return _words(TypeAdapter(annotation).json_schema())


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(each) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(_value(each) for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "boolean":
        return "true | false"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), " and ".join(bounds)]).strip()


def _value(value: Any) -> str:
    """As a recipe or `--set` would have it."""
    import json

    return json.dumps(value)


def _print_list(rows: list[dict[str, Any]], steps: dict[str, list[str]]) -> None:
    from eggs_ptp.cli.terminal import line, table

    cells = [
        (
            f"{row['name']}{' (default)' if row['default'] else ''}",
            row["title"],
            ", ".join(row["statistics"]) or "weights alone",
            row["source"],
        )
        for row in rows
    ]
    table(("method", "what it does", "needs", "source"), cells)
    line("Steps that a recipe or --set can put together, such as --set steps.score=wanda:")
    for slot, names in steps.items():
        line(f"  {slot}: {', '.join(names) or '(your own, as package.module:function)'}")
    line("Formulas and options of one: eggs methods NAME")


def _print_method(method: dict[str, Any]) -> None:
    from eggs_ptp.cli.terminal import line, table

    line(f"{method['name']}: {method['title']}\nSource: {method['source']}")
    for name, formula in method["statistics"].items():
        line(f"Needs {name}: {formula}")
    if not method["statistics"]:
        line("Needs the weights alone, no calibration text")
    for step in method["steps"]:
        line(f"\n{step['slot']} = {step['name']}   ({step['function']})", style="bold")
        line(step["formula"])
        if step["options"]:
            heads = [f"steps.{step['slot']}.", "here", "default", "allowed", "meaning"]
            rows = [
                [each["name"], _value(each["value"]), _value(each["default"]), each["allowed"], each["meaning"]]
                for each in step["options"]
            ]
            if not any(row[-1] for row in rows):
                heads, rows = heads[:-1], [row[:-1] for row in rows]
            table(heads, rows)
        line(f"Source: {step['source']}")
        if step["differs"]:
            line(f"Differs: {step['differs']}")
