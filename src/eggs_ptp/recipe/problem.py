"""What is wrong with a recipe: pydantic's errors as key paths and reasons of one line each."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

_REFUSED: Final = "refused"

# What other pruning tools, and this project's flags, call the keys of a recipe.
_OTHER_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "begin": "calibration.begin",
        "corpus": "calibration.text",
        "dataset": "calibration.text",
        "ignore": "exclude",
        "max_seq_length": "calibration.seqlen",
        "num_calibration_samples": "calibration.nsamples",
        "nsamples": "calibration.nsamples",
        "orders": "permutation",
        "prune_method": "method",
        "sampling": "calibration.sampling",
        "seqlen": "calibration.seqlen",
        "sparsity": "pattern",
        "sparsity_ratio": "pattern",
        "sparsity_type": "pattern",
        "text": "calibration.text",
        "text_column": "calibration.text_field",
        "text_field": "calibration.text_field",
    }
)


class Problem(NamedTuple):
    """One thing that is wrong with a recipe.

    Attributes:
        path: Path of the key, such as `targets[1].pattern`; empty for the whole recipe.
        reason: What is wrong, in one line.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        if not self.path or self.reason.startswith(f"{self.path} "):
            return self.reason
        return f"{self.path}: {self.reason}"


def refused(reason: object, path: str = "") -> PydanticCustomError:
    """Return the error that a validator raises.

    Args:
        reason: What is wrong, in one line.
        path: Path from the validated value to the key at fault.
    """
    return PydanticCustomError(_REFUSED, "{reason}", {"reason": str(reason), "path": path})


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return everything that a validation has found.

    Args:
        error: The error of the validation.
        model: The model that was validated.
    """
    return [_problem(details, model) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    location = details["loc"]
    match details["type"]:
        case "refused":
            context = details["ctx"]
            return Problem(_joined(_path(location), context["path"]), context["reason"])
        case "extra_forbidden":
            return Problem(_path(location), f"unknown key{_hint(location, model)}")
        case "missing":
            return Problem(_path(location), "is missing")
        case "dict_type" | "model_type":
            expected = "expected a table"
        case "tuple_type":
            expected = "expected a list"
        case _:
            expected = details["msg"].replace("Input should be", "expected").replace("String", "the string")
    return Problem(_path(location), f"{expected}, got {details['input']!r}")


def _path(location: Sequence[str | int]) -> str:
    """Return pydantic's location of an error as a key path."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def _joined(path: str, rest: str) -> str:
    return f"{path}.{rest}" if path and rest else path or rest


def _hint(location: Sequence[str | int], model: type[BaseModel]) -> str:
    """Return the nearest key to an unknown one, and all that exist in its table."""
    *parents, key = location
    known = _table_at(parents, model).model_fields
    # Keys of other tools and of flags are those of the whole recipe.
    names = {name: name for name in known} if parents else {**_OTHER_NAMES, **{name: name for name in known}}
    close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.6)
    return f"{f', did you mean {names[close[0]]!r}?' if close else ''}; known: {', '.join(known)}"


def _table_at(location: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel]:
    """Return the model of a table inside a recipe."""
    for key in location:
        if isinstance(key, str):
            annotation: Any = model.model_fields[key].annotation
            types = (annotation, *get_args(annotation))
            model = next(type_ for type_ in types if inspect.isclass(type_) and issubclass(type_, BaseModel))
    return model
