"""Ranking of recipes by the perplexity of the models that they prune, as the EGGS-PTP paper chooses B."""

from collections.abc import Mapping
from typing import Any

from eggs_ptp.comparison.grid import Column, ComparisonGrid, Row
from eggs_ptp.comparison.runner import Progress, compare
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.recipe import Recipe


def rank_recipes(
    recipes: Mapping[str, Recipe],
    model: str,
    *,
    text: str | None = None,
    progress: Progress | None = None,
    **evaluation: Any,
) -> dict[str, float]:
    """Prune a model by each of several recipes and evaluate the results; nothing is kept on disk.

    Args:
        recipes: Recipes by label.
        model: Folder or name of the model.
        text: Evaluation text, as of `api.evaluate`; choose one that no recipe calibrates on.
        progress: Called after each run, see `runner.compare`.
        **evaluation: Further arguments of `runner.compare`, such as device and dtype.

    Returns:
        Perplexities by label, the lowest first.

    Raises:
        RecipeError: A recipe cannot be pruned or evaluated, with the reason.
    """
    rows = tuple(Row((label,), recipe.arguments()) for label, recipe in recipes.items())
    first = next(iter(recipes.values()))
    grid = ComparisonGrid(first, rows, (Column("", {}),), seeds=1)
    comparison = compare(grid, model, text=text, progress=progress, **evaluation)
    if comparison.remarks:
        raise RecipeError(f"not all recipes could be compared: {comparison.remarks[0]}")
    perplexities = {}
    for labels in comparison.rows:
        if summary := comparison.summary(labels, comparison.columns[0]):
            perplexities[labels[0]] = summary.mean
    return dict(sorted(perplexities.items(), key=lambda item: item[1]))
