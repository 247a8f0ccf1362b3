"""Recipe: what to prune, how, and with which calibration text."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from eggs_ptp.core.pattern import Pattern, Unstructured, parse_pattern
from eggs_ptp.errors import MethodError, PatternError, RecipeError
from eggs_ptp.method.catalogue import DEFAULT_METHOD, find_method
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import SLOTS
from eggs_ptp.recipe.problem import problems, refused
from eggs_ptp.recipe.write import toml_of

REGEX = "re:"


def _pattern_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Pattern | Unstructured):
        raise refused(f'expected a string such as "2:4" or a sparsity such as 0.5, came {value!r}')
    try:
        pattern = value if isinstance(value, Pattern | Unstructured) else parse_pattern(str(value))
    except PatternError as error:
        raise refused(error) from None
    return str(pattern) if isinstance(pattern, Pattern) else repr(pattern.sparsity)


def _method_name(value: str) -> str:
    try:
        return find_method(value).name
    except MethodError as error:
        raise refused(error) from None


def _name_glob(value: str) -> str:
    if value.startswith(REGEX):
        try:
            re.compile(value.removeprefix(REGEX))
        except re.error as error:
            raise refused(f"{value!r} is no regular expression: {error}") from None
    return value


def _steps_table(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    for slot in value:
        if slot not in SLOTS:
            raise refused(f"unknown key{nearest(str(slot), SLOTS)}; known: {', '.join(SLOTS)}", str(slot))
    return value


def _step_tables(value: object) -> dict[str, JsonValue] | list[dict[str, JsonValue]]:
    """One step's table, or the list of tables of a chain; a string is a step's name."""
    if isinstance(value, list):
        return [_STEP_TABLE.validate_python({"name": link} if isinstance(link, str) else link) for link in value]
    return _STEP_TABLE.validate_python({"name": value} if isinstance(value, str) else value)


_STEP_TABLE = TypeAdapter(dict[str, JsonValue], config=ConfigDict(strict=True))


PatternText = Annotated[str, BeforeValidator(_pattern_text)]
MethodName = Annotated[str, AfterValidator(_method_name)]
NameGlob = Annotated[str, Field(min_length=1), AfterValidator(_name_glob)]
NameGlobs = Annotated[tuple[NameGlob, ...], Field(strict=False)]
StepTables = Annotated[dict[str, JsonValue] | list[dict[str, JsonValue]], PlainValidator(_step_tables)]
StepsTable = Annotated[dict[str, StepTables], BeforeValidator(_steps_table)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            found = problems(error, type(self))
            raise RecipeError("; ".join(str(problem) for problem in found)) from None

    # Else pydantic calls __init__ for nested tables too, and their errors would lose the outer key path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class CalibrationSpec(_Table):
    """Where calibration tokens come from and how windows are cut from them.

    `text` is a file (text, JSON lines, Parquet, `.npy` token windows) or a data set of the hub; None is C4.
    `seqlen` None is min(2048, the model's context). `seed` draws the windows; None is the recipe's.

    `statistics` "block" takes all statistics of a block before any of its matrices is pruned, "group" takes them again
    before each group of matrices that read the same activation; None is "group" where a step compares activations with
    the dense model's (`correct`), else "block". `propagate` "pruned" feeds each block what the pruned
    blocks before it give, "dense" what the dense model gives.

    The first `skip_first` tokens of every window do not count in the statistics, nor tokens with a hidden state beyond
    `massive` times the median magnitude of their window at the block's input (1000 in arXiv:2402.17762); they still run
    through the model, and tune steps see them. Tokens sent to experts all count.

    Raises:
        RecipeError: a value out of range or an unknown key; names the key.
    """

    text: Annotated[str, Field(min_length=1)] | None = None
    nsamples: Annotated[int, Field(ge=1)] = 128
    seqlen: Annotated[int, Field(ge=2)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    sampling: Literal["packed", "documents"] = "packed"
    text_field: Annotated[str, Field(min_length=1)] = "text"
    statistics: Literal["block", "group"] | None = None
    propagate: Literal["pruned", "dense"] = "pruned"
    skip_first: Annotated[int, Field(ge=0)] = 0
    massive: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.statistics == "group" and self.propagate == "dense":
            raise refused(
                'statistics = "group" asks for what pruning has left, propagate = "dense" for what the dense model '
                "gives, and these contradict each other; leave one of the two out"
            )
        return self


class Target(_Table):
    """A rule for the matrices whose names `match`: a glob, an exact name, or `re:` and a regular expression.

    What a rule leaves out is the recipe's own. A rule that names a `method` starts from that method as
    catalogued, so the recipe's `steps`, which belong to the recipe's method, do not reach it.

    Raises:
        RecipeError: a rule that changes nothing or contradicts itself, a bad value, an unknown key.
    """

    match: NameGlob
    pattern: PatternText | None = None
    method: MethodName | None = None
    skip: bool = False
    steps: StepsTable = {}

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        changes = [key for key in ("pattern", "method", "steps") if getattr(self, key)]
        if self.skip and changes:
            raise refused(f"skip = true leaves nothing for {' and '.join(changes)} to do; give one or the other")
        if not self.skip and not changes:
            raise refused(f"the rule for {self.match!r} changes nothing; give pattern, method, steps or skip = true")
        return self


class Recipe(_Table):
    """What the user asked for. Patterns, methods, steps and their options are checked when it is made.

    `orders` says what becomes of the channel orders that permute steps find for N:M patterns: `fold` moves them into
    the weights, so that every pruned matrix satisfies its pattern in its own column order; `gather` leaves the weights
    in the source's order and stores each matrix's order, to be gathered at run time by a packed model; `mask` uses it
    to choose the mask and is then done with it.

    With a `mask` file the masks are its own: no permute or select step runs, refine and update steps start from it.

    Raises:
        RecipeError: anything that cannot be understood; names the key path.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    pattern: PatternText = "2:4"
    method: MethodName = DEFAULT_METHOD
    orders: Literal["fold", "gather", "mask"] = "fold"
    share: Literal["readers", "matrix"] = "readers"
    mask: Annotated[str, Field(min_length=1)] | None = None
    steps: StepsTable = {}
    include: NameGlobs = ()
    exclude: NameGlobs = ()
    calibration: CalibrationSpec = Field(default_factory=CalibrationSpec)
    targets: Annotated[tuple[Target, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.share == "matrix" and self.orders == "fold":
            raise refused(
                'share = "matrix" gives each matrix a channel order of its own, and orders = "fold" (the default) can '
                'only fold orders that readers share; give orders = "gather" or "mask" with it'
            )
        return self

    @model_validator(mode="after")
    def _binds(self) -> Self:
        for path, rule in (("", None), *((f"targets[{place}]", rule) for place, rule in enumerate(self.targets))):
            try:
                method = self.bound(rule)
            except MethodError as error:
                head, _, reason = str(error).partition(": ")
                if head.startswith("steps."):
                    raise refused(reason, f"{path}.{head}".removeprefix(".")) from None
                raise refused(error, path) from None
            if method.compares and self.calibration.propagate == "dense":
                raise refused(
                    'a step compares what the pruned model feeds it with the dense model\'s, and propagate = "dense" '
                    "feeds it the dense model's own; leave one of the two out",
                    f"{path}.steps.correct".removeprefix("."),
                )
        return self

    def bound(self, rule: Target | None = None) -> BoundMethod:
        """The recipe's method with its steps, or what a rule makes of it."""
        if rule is None:
            method = find_method(self.method).with_options(self.steps)
        elif rule.method is None:
            method = find_method(self.method).with_options(self.steps).with_options(rule.steps)
        else:
            method = find_method(rule.method).with_options(rule.steps)
        return method.bind(given_mask=self.mask is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for records."""
        return self.model_dump(mode="json")

    def to_toml(self) -> str:
        """The recipe as a file that `read_recipe` reads back as the same recipe."""
        table = self.model_dump(mode="json", exclude_none=True, exclude={"targets"})
        return toml_of(
            {**table, "targets": [rule.model_dump(mode="json", exclude_defaults=True) for rule in self.targets]}
        )

    def digest(self) -> str:
        """SHA-256 of the recipe as canonical JSON: sorted keys, no spaces."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
