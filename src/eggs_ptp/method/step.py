"""Steps: pure functions by name with their options, bound to the data that their signatures ask for.

A method fills some of seven slots, each with one step. A step is a function `name` in `eggs_ptp/SLOT/name.py`, or the
user's own as `package.module:function`. Its **positional parameters name the data** that it is given; its
**keyword-only parameters are its options**, each with a default, and their annotations are checked by pydantic.

Slots, in the order they run, and what their functions return:

- `correct`: the weight (out, in) that all later steps approximate.
- `score`: a score (out, in); higher = keep.
- `permute`: a channel permutation (in,), int64: element i is the original channel at position i. Consumers of one
  activation share it, so the step gets their scores stacked along the rows, (sum of out, in).
- `select`: a mask (out, in), bool; True = keep.
- `refine`: another mask, made from the one it is given.
- `update`: a weight (out, in) and a mask. Several update steps form a pipeline (`method.update_pipeline`).
- `tune`: tensors of a whole pruned block that it has changed, by their names in the block.

A step may return its result in a `StepResult` with diagnostics, which are written into the matrix's record.

Data that a function may name (`DATA` says in which slot), besides the activation statistics (`core.stats.STATISTICS`):

- `weight` (out, in), float32: the matrix. After `permute`, it and all other data have permuted input channels.
- `score`, `mask` (out, in): results of earlier steps. `mask` is None for an update step that nothing selected for.
- `start` (out, in): the weight that the previous update step returned; None for the first one.
- `pattern`: the `Pattern` or `Unstructured` to satisfy. A function that serves one of the two annotates it, and is
  refused for the other.
- `role`: `"attention"` or `"mlp"`.
- `row_tiles`: divides work on rows among processes (`core.row_tiles`); a step that names it may run on several at once.
- `generator`: a `torch.Generator` seeded by the run's seed and the matrix's name; the only source of randomness.
- `block`, `masks`, `inputs`, `target`, `call`, `logits`: for `tune`. The pruned block as a module; masks by module
  path; hidden states (windows, seqlen, hidden) that enter it, and those that the dense model has at its output; a
  function that runs it; and for the last block a function from hidden states to logits, None for all others.
"""

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.errors import MethodError
from eggs_ptp.method.aliases import current_data_name, current_step
from eggs_ptp.method.nearest import nearest

SLOTS = ("correct", "score", "permute", "select", "refine", "update", "tune")

DATA: Mapping[str, frozenset[str]] = {
    "correct": frozenset({"weight", "row_tiles"}),
    "score": frozenset({"weight", "generator"}),
    "permute": frozenset({"score", "pattern", "row_tiles"}),
    "select": frozenset({"score", "weight", "pattern", "row_tiles", "generator"}),
    "refine": frozenset({"mask", "score", "weight", "pattern", "role", "row_tiles", "generator"}),
    "update": frozenset({"weight", "mask", "start", "pattern", "row_tiles"}),
    "tune": frozenset({"block", "masks", "inputs", "target", "call", "logits", "generator"}),
}
# A permutation is shared by the consumers of an activation, so it depends on their scores alone; tuning sees a block.
_NO_STATISTICS = frozenset({"permute", "tune"})


@dataclass(frozen=True)
class Step:
    """A step of a method, not yet looked up.

    Attributes:
        name: The function `name` of its slot's package, or `package.module:function`.
        options: Options that differ from their defaults.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> "Step":
        """Return the same step with some options changed."""
        return Step(self.name, {**self.options, **options})

    def bind(self, slot: str, key: str = "") -> "BoundStep":
        """Look the function up and check the options against its signature.

        Args:
            slot: The slot that the step fills.
            key: The recipe key that error messages name; default `steps.SLOT`. In a pipeline it is `steps.update[1]`.

        Raises:
            MethodError: There is no such function, it has no such option, or a value is not possible.
        """
        key = key or f"steps.{slot}"
        options = dict(current_step(slot, {**self.options, "name": self.name}))
        name = options.pop("name")
        function = _find_function(slot, name, key)
        signature = _signature(slot, name, function)
        for option in options:
            if option not in signature.options:
                raise MethodError(
                    f"{key}.{option}: {slot} step {name!r} has no option {option!r}{nearest(option, signature.options)}"
                )
        values = {option: default for option, (_, default) in signature.options.items()}
        for option, value in options.items():
            annotation, _ = signature.options[option]
            values[option] = _checked_value(f"{key}.{option}", annotation, value)
        return BoundStep(slot, name, function, signature.data, values, signature.patterns)


@dataclass(frozen=True)
class BoundStep:
    """A step with its function.

    Attributes:
        slot: The slot that it fills.
        name: Its name, as in `Step`.
        function: The function.
        data: Names of the data that the function takes, in the order of its positional parameters.
        options: All options, defaults included.
        patterns: The type that the function's `pattern` is annotated with, `Pattern` or `Unstructured`; None: both.
    """

    slot: str
    name: str
    function: Callable[..., Any]
    data: tuple[str, ...]
    options: Mapping[str, Any]
    patterns: type | None

    @property
    def statistics(self) -> frozenset[str]:
        """Names of the activation statistics that the function takes."""
        return frozenset(self.data) & STATISTICS.keys()

    @property
    def bound_steps(self) -> tuple["BoundStep", ...]:
        """The step itself, as a pipeline of one."""
        return (self,)

    def __call__(self, read: Callable[[str], Any], **data: Any) -> Any:
        """Call the function.

        Args:
            read: Returns a piece of data by its name.
            **data: Data that is used in place of what `read` returns.
        """
        data.setdefault("start", None)
        return self.function(*(data[name] if name in data else read(name) for name in self.data), **self.options)

    def to_dict(self) -> Any:
        """Return plain data with every option spelled out."""
        return {"name": self.name, **self.options}


def names(slot: str) -> tuple[str, ...]:
    """Return the names of a slot's steps: the public files of its package, without importing them."""
    package = importlib.import_module(__name__.partition(".")[0])  # as a statement, the import would be a circle
    folders = [f"{root}/{slot}" for root in package.__path__]
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folders) if module.name[0] != "_"))


def _find_function(slot: str, name: str, key: str) -> Callable[..., Any]:
    """Import the function of a step; `key` is for error messages."""
    if slot not in SLOTS:
        raise MethodError(f"steps.{slot}: no such slot, expected one of {', '.join(SLOTS)}{nearest(slot, SLOTS)}")
    module, _, attribute = name.partition(":")
    if not attribute:
        known_names = names(slot)
        if name not in known_names:
            known = ", ".join(known_names) or "none"
            raise MethodError(
                f"{key}: no {slot} step is named {name!r}{nearest(name, known_names)}; known: {known}, "
                "or your own as package.module:function"
            )
        module = f"eggs_ptp.{slot}.{name}"
        attribute = name
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's own module may raise anything when it is imported
        raise MethodError(f"{key}: {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    if not inspect.isfunction(function):
        raise MethodError(f"{key}: {name!r} is not a Python function, but of type {type(function).__name__}")
    return function


class _Signature(NamedTuple):
    """What a step's function takes: names of data, options with annotation and default, and the type of its pattern."""

    data: tuple[str, ...]
    options: Mapping[str, tuple[Any, Any]]
    patterns: type | None


@functools.lru_cache(maxsize=256)
def _signature(slot: str, name: str, function: Callable[..., Any]) -> _Signature:
    """Read the signature of a step's function.

    Raises:
        MethodError: An option has no default, or a positional parameter is no data that steps of this slot may have.
    """
    label = f"{slot} step {name!r}"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise MethodError(f"{label}: an annotation cannot be resolved at run time ({error})") from error
    allowed = _allowed_data(slot)
    data: list[str] = []
    options: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if parameter.default is inspect.Parameter.empty:
                raise MethodError(f"{label}: option {parameter.name!r} has no default; give it one")
            options[parameter.name] = (hints.get(parameter.name, Any), parameter.default)
            continue
        data_name = current_data_name(parameter.name, label)
        if data_name not in allowed:
            raise MethodError(
                f"{label}: parameter {parameter.name!r} is no data that a {slot} step can have "
                f"(expected some of {', '.join(sorted(allowed))}; options must be keyword-only)"
            )
        data.append(data_name)
    pattern_type = hints.get("pattern")
    return _Signature(tuple(data), options, pattern_type if pattern_type in (Pattern, Unstructured) else None)


def _allowed_data(slot: str) -> frozenset[str]:
    """Return the names that positional parameters of a slot's functions may have."""
    if slot in _NO_STATISTICS:
        return DATA[slot]
    if slot == "correct":
        return DATA[slot] | STATISTICS.keys()
    # Statistics that need the dense model's activations are for `correct` alone.
    return DATA[slot] | {name for name, statistic in STATISTICS.items() if statistic.side != "dense"}


def _checked_value(key: str, annotation: Any, value: Any) -> Any:
    """Check an option's value against its annotation; an int may stand in for a float."""
    strict = not isinstance(value, int) or isinstance(value, bool)
    try:
        return TypeAdapter(annotation).validate_python(value, strict=strict)
    except ValidationError as error:
        reasons = list(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise MethodError(f"{key}: {value!r} is not possible: {'; or '.join(reasons)}") from None
