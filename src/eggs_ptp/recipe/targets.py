"""Decides which matrices are pruned, with which pattern and method."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.errors import PatternError, RecipeError
from eggs_ptp.method.catalogue import methods_for
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.method.nearest import nearest
from eggs_ptp.recipe.recipe import REGEX, Recipe

_PROMINENT = ("eggs+", "alps", "sparsegpt", "wanda", "ria", "magnitude")  # methods that an error message suggests


@dataclass(frozen=True)
class Resolved:
    """A matrix that is pruned.

    Attributes:
        pattern: Its pattern.
        method: Its method.
    """

    pattern: AnyPattern
    method: BoundMethod


@dataclass(frozen=True)
class Skipped:
    """A matrix that stays dense.

    Attributes:
        reason: Why.
    """

    reason: str


def matches(glob: str, name: str) -> bool:
    """Return whether a name matches.

    Args:
        glob: A glob, in which upper and lower case differ, an exact name, or `re:` and a regular expression, which is
            matched from the beginning of the name.
        name: The name.
    """
    if glob.startswith(REGEX):
        return re.match(glob.removeprefix(REGEX), name) is not None
    return fnmatch.fnmatchcase(name, glob)


def resolve(recipe: Recipe, names: Sequence[str]) -> dict[str, Resolved | Skipped]:
    """Decide about every matrix: by `exclude`, then `include`, then the first rule that matches.

    Args:
        recipe: The recipe.
        names: The names of all matrices.

    Returns:
        The decisions by name, in the order of `names`.

    Raises:
        RecipeError: A glob matches no matrix, or all matrices that a rule matches belong to earlier rules.
        PatternError: A method does not serve the pattern of its matrix.
    """
    for key in ("include", "exclude"):
        for glob in getattr(recipe, key):
            _matching(f"{key} {glob!r}", glob, names)
    first_rules = _first_rules(recipe, names)
    of_rules = [_of_rule(recipe, index) for index in range(len(recipe.targets))]
    default = Resolved(recipe.pattern, recipe.bound())
    decisions: dict[str, Resolved | Skipped] = {}
    for name in names:
        index = first_rules.get(name)
        decisions[name] = _left_out(recipe, name) or (default if index is None else of_rules[index])
    for name, decision in decisions.items():
        if isinstance(decision, Resolved):
            _check_pattern(decision, name)
    return decisions


def _check_pattern(decision: Resolved, name: str) -> None:
    """Refuse a pattern that the method does not serve, and name methods that do."""
    try:
        decision.method.check_pattern(decision.pattern, name)
    except PatternError as error:
        serving = [method for method in _PROMINENT if method in methods_for(decision.pattern)]
        raise PatternError(f"{error}; methods that serve it: {', '.join(serving)} (eggs methods)") from error


def _first_rules(recipe: Recipe, names: Sequence[str]) -> dict[str, int]:
    """Return the index of the first rule that matches, for the matrices that any rule matches."""
    first: dict[str, int] = {}
    for index, rule in enumerate(recipe.targets):
        matching = _matching(f"targets[{index}].match {rule.match!r}", rule.match, names)
        free = [name for name in matching if name not in first]
        if not free:
            raise RecipeError(
                f"targets[{index}].match {rule.match!r}: every matrix it matches is taken by an earlier rule, such as "
                f"targets[{first[matching[0]]}]; the first match wins, so put the narrower rule first"
            )
        first.update(dict.fromkeys(free, index))
    return first


def _of_rule(recipe: Recipe, index: int) -> Resolved | Skipped:
    """Return what a rule decides."""
    rule = recipe.targets[index]
    if rule.skip:
        return Skipped(f"skipped by targets[{index}] {rule.match!r}")
    return Resolved(rule.pattern or recipe.pattern, recipe.bound(rule))


def _left_out(recipe: Recipe, name: str) -> Skipped | None:
    """Return what `exclude` and `include` decide about a matrix."""
    for glob in recipe.exclude:
        if matches(glob, name):
            return Skipped(f"excluded by {glob!r}")
    if recipe.include and not any(matches(glob, name) for glob in recipe.include):
        return Skipped("not included")
    return None


def _matching(label: str, glob: str, names: Sequence[str]) -> list[str]:
    """Return the names that a glob matches, at least one; `label` says in the error which glob matches none."""
    matching = [name for name in names if matches(glob, name)]
    if not matching:
        # Globs tend to give the end of a matrix's name, so they are compared with ends of the same length.
        tail = glob.removeprefix(REGEX).lstrip(".*")
        ends = {".".join(name.split(".")[-1 - tail.count(".") :]) for name in names}
        example = f"; their names look like {names[0]!r}" if names else ""
        raise RecipeError(f"{label} matches none of the {len(names)} matrices{nearest(tail, sorted(ends))}{example}")
    return matching
