"""What is wrong with a recipe: pydantic's findings as key paths and one-line reasons."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

_REFUSED: Final = "refused"

# What other pruning tools, and this one's flags, call the keys.
_ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "corpus": "calibration.text",
        "dataset": "calibration.text",
        "ignore": "exclude",
        "max_seq_length": "calibration.seqlen",
        "num_calibration_samples": "calibration.nsamples",
        "nsamples": "calibration.nsamples",
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
    """One finding: the key path, such as `targets[1].pattern` (empty for the whole recipe), and the reason."""

    path: str
    reason: str

    def __str__(self) -> str:
        if not self.path or self.reason.startswith(f"{self.path} "):
            return self.reason
        return f"{self.path}: {self.reason}"


def refused(reason: object, path: str = "") -> PydanticCustomError:
    """What a validator raises; `path` leads from the validated value to the key at fault."""
    return PydanticCustomError(_REFUSED, "{reason}", {"reason": str(reason), "path": path})


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every finding of `error`, which arose in validating `model`, in the order of the keys."""
    return [_problem(details, model) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    location = details["loc"]
    match details["type"]:
        case "refused":
            context = details["ctx"]
            return Problem(_joined(_path(location), context["path"]), context["reason"])
        case "extra_forbidden":
            return Problem(_path(location), f"unknown key{_near(location, model)}")
        case "missing":
            return Problem(_path(location), "is missing")
        case "dict_type" | "model_type":
            expected = "expected a table"
        case "tuple_type":
            expected = "expected a list"
        case _:
            expected = details["msg"].replace("Input should be", "expected").replace("String", "the string")
    return Problem(_path(location), f"{expected}, came {details['input']!r}")


def _path(location: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _joined(path: str, more: str) -> str:
    return f"{path}.{more}" if path and more else path or more


def _near(location: Sequence[str | int], model: type[BaseModel]) -> str:
    *parents, key = location
    known = _table_at(parents, model).model_fields
    names = ({} if parents else dict(_ELSEWHERE)) | {name: name for name in known}
    close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.6)
    return f"{f', did you mean {names[close[0]]!r}?' if close else ''}; known: {', '.join(known)}"


def _table_at(location: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            kinds = (annotation, *get_args(annotation))
            model = next(kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel))
    return model
