"""What users name: models, texts and recipes, among them the built-in model and its texts."""

from pathlib import Path
from typing import Any

from eggs_ptp.calibration.windows import Windows, check_source
from eggs_ptp.checkpoint.verify import source_model
from eggs_ptp.demo.builtin import DEMO, builtin_documents, model_folder
from eggs_ptp.engine.planning.plan import Plan
from eggs_ptp.engine.preparation import draw_windows
from eggs_ptp.errors import RecipeError
from eggs_ptp.evaluation.text import EvaluationText, load_text
from eggs_ptp.models.folder import find_folder
from eggs_ptp.models.load import Skeleton, load_tokenizer
from eggs_ptp.recipe.read import read_recipe
from eggs_ptp.recipe.recipe import Recipe


def find(model: str, revision: str | None = None) -> Path:
    """Return the local folder of a model.

    Args:
        model: A folder, a hub name, or `demo`.
        revision: Branch, tag or commit of a hub name.

    Raises:
        ModelError: It is neither a folder nor a hub name that can be reached.
    """
    return model_folder() if model == DEMO else find_folder(model, revision)


def requested_recipe(model: str, recipe: Recipe | None, **settings: Any) -> Recipe:
    """Return the requested recipe; the demo model is calibrated on the text that comes with it."""
    given = {name: value for name, value in settings.items() if value is not None}
    if recipe is not None and given:
        raise RecipeError(f"expected a recipe or settings, got both: a recipe and {', '.join(given)}")
    recipe = recipe or read_recipe(None, (), **given)
    if model != DEMO or recipe.calibration.text is not None:
        return recipe
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"text": DEMO})})


def check_calibration_source(recipe: Recipe) -> None:
    """Refuse a calibration text that cannot be there, if a method needs one, before any model is built."""
    methods = [recipe.bound(), *(recipe.bound(rule) for rule in recipe.targets if not rule.skip)]
    if any(method.statistics for method in methods) and recipe.calibration.text != DEMO:
        check_source(recipe.calibration.text)


def calibration_windows(skeleton: Skeleton, recipe: Recipe, plan: Plan, tokenizer: Any) -> Windows:
    """Draw the calibration windows of a recipe, from the built-in text where it names that."""
    builtin = builtin_documents("calibration") if recipe.calibration.text == DEMO else None
    return draw_windows(skeleton, recipe, plan, builtin, tokenizer)


def evaluation_text_of(folder: Path, text: str | None, field: str, trust_remote_code: bool) -> EvaluationText:
    """Return the text to evaluate a folder on; by default the built-in one for the built-in model and its products."""
    is_demo = text == DEMO
    if text is None:
        is_demo = folder == model_folder() or source_model(folder) == DEMO
    if is_demo:
        return EvaluationText(DEMO, builtin_documents("evaluation"))
    return load_text(text, field=field, tokenizer=load_tokenizer(folder, trust_remote_code=trust_remote_code))
