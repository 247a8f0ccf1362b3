"""Choosing among recipes by the perplexity of what they make, as the EGGS-PTP paper chooses B."""

from collections.abc import Mapping
from typing import Any

from eggs_ptp.comparison.grid import Column, Grid, Row
from eggs_ptp.comparison.run import Progress, compare
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.recipe import Recipe


def choose(
    recipes: Mapping[str, Recipe],
    model: str,
    *,
    text: str | None = None,
    progress: Progress | None = None,
    **where: Any,
) -> dict[str, float]:
    """Prune a model by each of the recipes, and evaluate it: perplexities by the recipes' labels, the lowest first.

    `text` and `where` are those of `api.evaluate`; give a text that no recipe calibrates on. Nothing is kept on disk.

    Raises:
        RecipeError: one of them cannot be pruned or evaluated; says why.
    """
    rows = tuple(Row((label,), recipe.model_dump()) for label, recipe in recipes.items())
    common = next(iter(recipes.values()))
    found = compare(Grid(common, rows, (Column("", {}),), seeds=1), model, text=text, progress=progress, **where)
    if found.remarks:
        raise RecipeError(f"not all could be tried: {found.remarks[0]}")
    perplexities = {labels[0]: entry.mean for labels in found.rows if (entry := found.entry(labels, found.columns[0]))}
    return dict(sorted(perplexities.items(), key=lambda item: item[1]))
