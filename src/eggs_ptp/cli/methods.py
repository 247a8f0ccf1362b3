"""`eggs methods`: the catalogue of methods, and the steps of each."""

import inspect
import typing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.method.method import Method
    from eggs_ptp.method.step import BoundStep

_Name = Annotated[str | None, typer.Argument(metavar="NAME", help="A method to explain.", show_default=False)]
_Recipe = Annotated[bool, typer.Option("--recipe", help="Print NAME as a recipe file with every option.")]


def methods(name: _Name = None, recipe: _Recipe = False, json: flags.Json = False) -> None:
    """List the methods, or explain one: its formulas, options, calibration statistics and source."""
    from eggs_ptp.cli.terminal import print_json
    from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS, find_method
    from eggs_ptp.method.step import SLOTS, names

    if recipe:
        _print_recipe(name)
        return
    if name is not None:
        description = _describe(find_method(name))
        if json:
            print_json(description)
        else:
            _print_method(description)
        return
    catalogue = [
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
    if json:
        print_json({"methods": catalogue, "steps": steps})
    else:
        _print_catalogue(catalogue, steps)


def _print_recipe(name: str | None) -> None:
    from eggs_ptp.errors import MethodError
    from eggs_ptp.recipe.recipe import Recipe

    if name is None:
        raise MethodError("--recipe prints one method; expected its name, as in `eggs methods eggs+ --recipe`")
    method = Recipe(method=name).bound().method
    typer.echo(f"# {method.title}. eggs prune MODEL -o FOLDER --recipe THIS_FILE")
    typer.echo(Recipe(method=name, steps=method.to_dict()["steps"]).to_toml(), nl=False)


def _describe(method: "Method") -> dict[str, Any]:
    from eggs_ptp.core.stats import STATISTICS

    bound = method.bind()
    return {
        "name": method.name,
        "title": method.title,
        "source": method.source,
        "statistics": {name: STATISTICS[name].formula for name in sorted(bound.statistics)},
        "steps": [_describe_step(step) for step in bound.bound_steps],
    }


def _describe_step(step: "BoundStep") -> dict[str, Any]:
    from eggs_ptp.cli.step_docstring import parse_step_docstring

    docstring = parse_step_docstring(step.function.__doc__ or "")
    types = typing.get_type_hints(step.function, include_extras=True)
    parameters = inspect.signature(step.function).parameters
    return {
        "slot": step.slot,
        "name": step.name,
        "function": f"{step.function.__module__}:{step.function.__name__}",
        "data": list(step.data),
        "formula": docstring.description,
        "options": [
            {
                "name": name,
                "value": value,
                "default": parameters[name].default,
                "allowed": allowed_values(types.get(name, Any)),
                "meaning": docstring.arguments.get(name, ""),
            }
            for name, value in step.options.items()
        ],
        "source": docstring.source,
        "differs": docstring.differs,
    }


def allowed_values(annotation: Any) -> str:
    """Describe the values that the type of an option allows: `integer >= 0 or "auto"`."""
    from pydantic import TypeAdapter

    return _schema_text(TypeAdapter(annotation).json_schema())


def _schema_text(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_schema_text(alternative) for alternative in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(_value_text(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "boolean":
        return "true | false"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), " and ".join(bounds)]).strip()


def _value_text(value: Any) -> str:
    """Write a value as in a recipe or after `--set`."""
    import json

    return json.dumps(value)


def _print_catalogue(catalogue: list[dict[str, Any]], steps: dict[str, list[str]]) -> None:
    from eggs_ptp.cli.terminal import print_line, print_table

    rows = []
    for method in catalogue:
        name = f"{method['name']} (default)" if method["default"] else method["name"]
        statistics = ", ".join(method["statistics"]) or "none (weights only)"
        rows.append((name, method["title"], statistics, method["source"]))
    print_table(("method", "description", "calibration statistics", "source"), rows)
    print_line("Steps that a recipe or --set can combine, such as --set steps.score=wanda:")
    for slot, names in steps.items():
        print_line(f"  {slot}: {', '.join(names) or '(your own, as package.module:function)'}")
    print_line("Formulas and options of a method: eggs methods NAME")


def _print_method(method: dict[str, Any]) -> None:
    from eggs_ptp.cli.terminal import print_line, print_table

    print_line(f"{method['name']}: {method['title']}\nSource: {method['source']}")
    for name, formula in method["statistics"].items():
        print_line(f"Calibration statistic {name}: {formula}")
    if not method["statistics"]:
        print_line("Calibration statistics: none; only the weights are used")
    for step in method["steps"]:
        print_line(f"\n{step['slot']} = {step['name']}   ({step['function']})", style="bold")
        print_line(step["formula"])
        if step["options"]:
            columns = [f"steps.{step['slot']}.", "value", "default", "allowed", "meaning"]
            rows = [
                [
                    option["name"],
                    _value_text(option["value"]),
                    _value_text(option["default"]),
                    option["allowed"],
                    option["meaning"],
                ]
                for option in step["options"]
            ]
            print_table(columns, rows)
        print_line(f"Source: {step['source']}")
        if step["differs"]:
            print_line(f"Differs: {step['differs']}")
