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
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured, parse_pattern
from eggs_ptp.errors import MethodError, PatternError, RecipeError
from eggs_ptp.method.aliases import current_step, with_current_names
from eggs_ptp.method.catalogue import DEFAULT_METHOD, find_method
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.method.nearest import nearest
from eggs_ptp.method.step import SLOTS
from eggs_ptp.recipe.problem import problems, refused
from eggs_ptp.recipe.write import toml_of

REGEX = "re:"


def pattern_text(pattern: AnyPattern) -> str:
    """Return a pattern as recipes write it: `2:4`, or a sparsity with all of its digits."""
    return str(pattern) if isinstance(pattern, Pattern) else repr(pattern.sparsity)


def _parsed_pattern(value: object) -> AnyPattern:
    if isinstance(value, Pattern | Unstructured):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refused(f'expected a string such as "2:4" or a sparsity such as 0.5, got {value!r}')
    try:
        return parse_pattern(str(value))
    except PatternError as error:
        raise refused(error) from None


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
            raise refused(f"{value!r} is not a regular expression: {error}") from None
    return value


def _steps_table(value: object) -> object:
    """Check the slots of a `[steps]` table, and bring former names in it to the current ones."""
    if not isinstance(value, Mapping):
        return value
    for slot in value:
        if slot not in SLOTS:
            raise refused(f"unknown key{nearest(str(slot), SLOTS)}; known: {', '.join(SLOTS)}", str(slot))
    return {slot: current_step(slot, step) for slot, step in value.items()}


def _step_tables(value: object) -> dict[str, JsonValue] | list[dict[str, JsonValue]]:
    """Return a step's table, or the list of tables of an update pipeline; a string is a step's name."""
    if isinstance(value, list):
        return [_STEP_TABLE.validate_python({"name": step} if isinstance(step, str) else step) for step in value]
    return _STEP_TABLE.validate_python({"name": value} if isinstance(value, str) else value)


_STEP_TABLE = TypeAdapter(dict[str, JsonValue], config=ConfigDict(strict=True))

# Parsed once, when the recipe is made; text in files and records.
RecipePattern = Annotated[AnyPattern, PlainValidator(_parsed_pattern), PlainSerializer(pattern_text)]
MethodName = Annotated[str, AfterValidator(_method_name)]
NameGlob = Annotated[str, Field(min_length=1), AfterValidator(_name_glob)]
NameGlobs = Annotated[tuple[NameGlob, ...], Field(strict=False)]
StepTables = Annotated[dict[str, JsonValue] | list[dict[str, JsonValue]], PlainValidator(_step_tables)]
StepsTable = Annotated[dict[str, StepTables], BeforeValidator(_steps_table)]


class _Table(BaseModel):
    """A table of a recipe: frozen, without unknown keys, and its errors in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise RecipeError("; ".join(str(problem) for problem in problems(error, type(self)))) from None

    # Else pydantic calls __init__ for nested tables too, and their errors would lose the outer key path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class CalibrationSpec(_Table):
    """Where calibration tokens come from, and which of them are counted.

    Attributes:
        text: A file (text, JSON lines, Parquet, or `.npy` token windows) or a data set of the hub; None is C4.
        nsamples: Number of windows.
        seqlen: Tokens of each window; None is 2048, or the model's context if that is shorter.
        seed: Seed of the windows; None is the recipe's.
        sampling: "packed" draws windows from all documents joined; "documents" draws each from inside one document that
            is longer than a window, as the code of Wanda and RIA does.
        begin: "auto" begins every window with the begin token that the tokenizer writes before a text, if it writes
            one, followed by `seqlen` - 1 tokens of text; "never" has windows begin in mid-text, as the papers' code.
        text_field: Field of a row of a data set, or of a JSON line, that holds the text.
        statistics: "block" collects all statistics of a block before any of its matrices is pruned; "group" collects
            them again before each group of matrices that share an input activation. None is "group" where a step
            compares activations with the dense model's (`correct`), else "block".
        propagate: "pruned" feeds each block with the output of the pruned blocks before it, "dense" with that of the
            dense model.
        skip_first: Number of tokens at the beginning of every window that are left out of the statistics.
        massive: Tokens whose hidden state at the block's input exceeds this many times the median magnitude of their
            window are left out of the statistics (1000 in arXiv:2402.17762); None leaves none out.

    Tokens that are left out of the statistics still run through the model, and tune steps use them. Tokens that a
    router sends to experts all count.

    Raises:
        RecipeError: A value is out of range or a key unknown; names the key.
    """

    text: Annotated[str, Field(min_length=1)] | None = None
    nsamples: Annotated[int, Field(ge=1)] = 128
    seqlen: Annotated[int, Field(ge=2)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    sampling: Literal["packed", "documents"] = "packed"
    begin: Literal["auto", "never"] = "auto"
    text_field: Annotated[str, Field(min_length=1)] = "text"
    statistics: Literal["block", "group"] | None = None
    propagate: Literal["pruned", "dense"] = "pruned"
    skip_first: Annotated[int, Field(ge=0)] = 0
    massive: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        if self.statistics == "group" and self.propagate == "dense":
            raise refused(
                'statistics = "group" collects activations of the partly pruned block, propagate = "dense" those of '
                "the dense model, and these contradict each other; leave one of the two out"
            )
        return self


class TargetRule(_Table):
    """A rule for matrices by name.

    Attributes:
        match: A glob, an exact name, or `re:` and a regular expression.
        pattern: Their pattern; None is the recipe's.
        method: Their method; None is the recipe's, with the recipe's `steps`. A rule that names a method starts from
            that method as it is in the catalogue, without the recipe's `steps`.
        skip: Whether to leave them dense.
        steps: Changes to the method's steps.

    Raises:
        RecipeError: The rule changes nothing or contradicts itself, a value is not possible, or a key is unknown.
    """

    match: NameGlob
    pattern: RecipePattern | None = None
    method: MethodName | None = None
    skip: bool = False
    steps: StepsTable = {}

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        changes = [key for key in ("pattern", "method", "steps") if getattr(self, key)]
        if self.skip and changes:
            raise refused(f"skip = true leaves nothing for {' and '.join(changes)} to do; give one or the other")
        if not self.skip and not changes:
            raise refused(f"the rule for {self.match!r} changes nothing; give pattern, method, steps or skip = true")
        return self


class Recipe(_Table):
    """What is to be pruned, and how. Patterns, methods, steps and options are checked when the recipe is made.

    Former names of keys and steps are accepted with a warning (see `method.aliases`).

    Attributes:
        seed: Seed of all random choices.
        pattern: N:M or a sparsity; given as text, a number or a pattern, and held as a pattern.
        method: Name of the method, see `method.catalogue.find_method`.
        permutation: How the channel permutations that permute steps find for N:M patterns are applied. "fold" moves
            them into the weights, so that every pruned matrix satisfies its pattern in its own column order. "gather"
            keeps the weights in the source's order and stores each matrix's permutation, which a packed model applies
            to its activations at run time. "mask" uses them to choose the masks only.
        share: "consumers": matrices that share an input activation share a permutation; "matrix": each has its own.
        mask: A file with masks, which replace permute and select steps; refine and update steps start from them.
        steps: Changes to the method's steps, by slot.
        include: Prune only matrices that match one of these globs; empty: all.
        exclude: Leave matrices that match one of these globs dense.
        calibration: The calibration tokens.
        targets: Rules for single matrices; the first one that matches applies.

    Raises:
        RecipeError: Something cannot be understood; names the key path.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    pattern: RecipePattern = Pattern(2, 4)
    method: MethodName = DEFAULT_METHOD
    permutation: Literal["fold", "gather", "mask"] = "fold"
    share: Literal["consumers", "matrix"] = "consumers"
    mask: Annotated[str, Field(min_length=1)] | None = None
    steps: StepsTable = {}
    include: NameGlobs = ()
    exclude: NameGlobs = ()
    calibration: CalibrationSpec = Field(default_factory=CalibrationSpec)
    targets: Annotated[tuple[TargetRule, ...], Field(strict=False)] = ()

    @model_validator(mode="before")
    @classmethod
    def _replace_former_names(cls, data: Any) -> Any:
        return with_current_names(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        if self.share == "matrix" and self.permutation == "fold":
            raise refused(
                'share = "matrix" gives each matrix a permutation of its own, and permutation = "fold" (the default) '
                'needs one that all consumers of an activation share; give permutation = "gather" or "mask" with it'
            )
        return self

    @model_validator(mode="after")
    def _check_methods(self) -> Self:
        rules = {"": None, **{f"targets[{index}]": rule for index, rule in enumerate(self.targets)}}
        for path, rule in rules.items():
            try:
                method = self.bound(rule)
            except MethodError as error:
                head, _, reason = str(error).partition(": ")
                if head.startswith("steps."):
                    raise refused(reason, f"{path}.{head}".removeprefix(".")) from None
                raise refused(error, path) from None
            if method.compares and self.calibration.propagate == "dense":
                raise refused(
                    "a step compares inputs of the pruned model with those of the dense one, and "
                    'propagate = "dense" makes both the same; leave one of the two out',
                    f"{path}.steps.correct".removeprefix("."),
                )
        return self

    def bound(self, rule: TargetRule | None = None) -> BoundMethod:
        """Return the recipe's method with its steps, or what a rule makes of it.

        Args:
            rule: A rule of `targets`; None for matrices that no rule applies to.
        """
        if rule is None:
            method = find_method(self.method).with_options(self.steps)
        elif rule.method is None:
            method = find_method(self.method).with_options(self.steps).with_options(rule.steps)
        else:
            method = find_method(rule.method).with_options(rule.steps)
        return method.bind(given_mask=self.mask is not None)

    def arguments(self) -> dict[str, Any]:
        """Return arguments of `Recipe` that make the same recipe: tables as dicts, patterns and rules as objects."""
        return {**self.model_dump(exclude={"pattern", "targets"}), "pattern": self.pattern, "targets": self.targets}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for records, with patterns as text."""
        return self.model_dump(mode="json")

    def to_toml(self) -> str:
        """Return the content of a file that `read_recipe` reads as the same recipe."""
        table = self.model_dump(mode="json", exclude_none=True, exclude={"targets"})
        rules = [rule.model_dump(mode="json", exclude_defaults=True) for rule in self.targets]
        return toml_of({**table, "targets": rules})

    def digest(self) -> str:
        """Return the SHA-256 of the recipe as canonical JSON: `to_dict` with sorted keys and without spaces."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
