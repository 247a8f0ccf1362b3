"""Random search: rows drawn from all combinations of some choices."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from eggs_ptp.comparison.grid import Labels, Row, merged
from eggs_ptp.errors import RecipeError


def drawn_rows(
    labels: Labels,
    changes: Mapping[str, Any],
    choices: Mapping[str, Sequence[Any]],
    *,
    draws: int,
    seed: int,
    seeds: int | None = None,
    origin: str = "",
) -> list[Row]:
    """`draws` different combinations of the values of `choices` (key path -> values), in the order of the product.

    A row is labelled by `labels` and then its values.

    Raises:
        RecipeError: more draws than combinations.
    """
    every = list(itertools.product(*choices.values()))
    if draws > len(every):
        raise RecipeError(f"{origin}draws: {draws} are more than the {len(every)} combinations of the choices")
    rows = []
    for place in sorted(random.Random(seed).sample(range(len(every)), draws)):  # noqa: S311 - no secret
        table = dict(changes)
        for path, value in zip(choices, every[place], strict=True):
            for key in reversed(path.split(".")):
                value = {key: value}
            table = merged(table, value)
        rows.append(Row((*labels, *map(_text, every[place])), table, seeds, origin))
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "inf" if value == float("inf") else json.dumps(value)
