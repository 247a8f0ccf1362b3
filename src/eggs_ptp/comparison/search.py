"""Random search: rows sampled from all combinations of some choices."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from eggs_ptp.comparison.grid import Labels, Row, merge_tables
from eggs_ptp.errors import RecipeError


def sample_rows(
    labels: Labels,
    changes: Mapping[str, Any],
    choices: Mapping[str, Sequence[Any]],
    *,
    draws: int,
    seed: int,
    seeds: int | None = None,
    origin: str = "",
) -> list[Row]:
    """Return rows for different random combinations of choices, in the order of the product of the choices.

    Args:
        labels: First labels of every row; the row's values follow.
        changes: Changes to the recipe of every row.
        choices: Possible values by key path, such as "steps.score.alpha".
        draws: Number of rows.
        seed: Seed of the sample.
        seeds: Number of seeds of a row, as of `Row`.
        origin: Prefix of error messages, as of `Row`.

    Raises:
        RecipeError: There are fewer combinations than draws.
    """
    combinations = list(itertools.product(*choices.values()))
    if draws > len(combinations):
        raise RecipeError(f"{origin}draws: {draws} are more than the {len(combinations)} combinations of the choices")
    rows = []
    for index in sorted(random.Random(seed).sample(range(len(combinations)), draws)):  # noqa: S311 - no secret
        values = combinations[index]
        row_changes = dict(changes)
        for path, value in zip(choices, values, strict=True):
            table = value
            for key in reversed(path.split(".")):
                table = {key: table}
            row_changes = merge_tables(row_changes, table)
        rows.append(Row((*labels, *map(_label, values)), row_changes, seeds, origin))
    return rows


def _label(value: Any) -> str:
    """Return a value as a label: strings as they are, others as JSON."""
    if isinstance(value, str):
        return value
    return "inf" if value == float("inf") else json.dumps(value)
