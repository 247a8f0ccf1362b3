"""Which matrices are pruned, with which pattern and method."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eggs_ptp.core.pattern import AnyPattern, parse_pattern
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.method.nearest import nearest
from eggs_ptp.recipe.recipe import REGEX, Recipe


@dataclass(frozen=True)
class Resolved:
    """A matrix that is pruned."""

    pattern: AnyPattern
    method: BoundMethod


@dataclass(frozen=True)
class Skipped:
    """A matrix that stays as it is, and why."""

    reason: str


def matches(glob: str, name: str) -> bool:
    """Whether a glob (case matters), an exact name, or `re:` and a regular expression (from the start) fits."""
    if glob.startswith(REGEX):
        return re.match(glob.removeprefix(REGEX), name) is not None
    return fnmatch.fnmatchcase(name, glob)


def resolve(recipe: Recipe, names: Sequence[str]) -> dict[str, Resolved | Skipped]:
    """Decide about every matrix, in the order of `names`: exclude, then include, then the first rule that matches.

    Raises:
        RecipeError: a glob that matches no matrix, or a rule whose matrices all belong to earlier rules.
        PatternError: a pattern that a matrix's method cannot serve.
    """
    for key in ("include", "exclude"):
        for glob in getattr(recipe, key):
            _check_matches(f"{key} {glob!r}", glob, names)
    first = _first_rules(recipe, names)
    verdicts = [_of_rule(recipe, place) for place in range(len(recipe.targets))]
    otherwise = Resolved(parse_pattern(recipe.pattern), recipe.bound())
    decided: dict[str, Resolved | Skipped] = {}
    for name in names:
        place = first.get(name)
        decided[name] = _left_out(recipe, name) or (otherwise if place is None else verdicts[place])
    for name, verdict in decided.items():
        if isinstance(verdict, Resolved):
            verdict.method.check_pattern(verdict.pattern, name)
    return decided


def _first_rules(recipe: Recipe, names: Sequence[str]) -> dict[str, int]:
    """Matrix -> the place of the first rule that matches it."""
    first: dict[str, int] = {}
    for place, rule in enumerate(recipe.targets):
        matched = _check_matches(f"targets[{place}].match {rule.match!r}", rule.match, names)
        free = [name for name in matched if name not in first]
        if not free:
            raise RecipeError(
                f"targets[{place}].match {rule.match!r}: every matrix it matches is taken by an earlier rule, such as "
                f"targets[{first[matched[0]]}]; the first match wins, so put the narrower rule first"
            )
        first.update(dict.fromkeys(free, place))
    return first


def _of_rule(recipe: Recipe, place: int) -> Resolved | Skipped:
    rule = recipe.targets[place]
    if rule.skip:
        return Skipped(f"skipped by targets[{place}] {rule.match!r}")
    return Resolved(parse_pattern(rule.pattern or recipe.pattern), recipe.bound(rule))


def _left_out(recipe: Recipe, name: str) -> Skipped | None:
    for glob in recipe.exclude:
        if matches(glob, name):
            return Skipped(f"excluded by {glob!r}")
    if recipe.include and not any(matches(glob, name) for glob in recipe.include):
        return Skipped("not included")
    return None


def _check_matches(what: str, glob: str, names: Sequence[str]) -> list[str]:
    matched = [name for name in names if matches(glob, name)]
    if not matched:
        # Globs tend to name the end of a matrix's name, so they are compared with ends of the same length.
        tail = glob.removeprefix(REGEX).lstrip(".*")
        ends = {".".join(name.split(".")[-1 - tail.count(".") :]) for name in names}
        example = f"; their names look like {names[0]!r}" if names else ""
        raise RecipeError(f"{what} matches none of the {len(names)} matrices{nearest(tail, sorted(ends))}{example}")
    return matched
