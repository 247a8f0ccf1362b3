"""Every ingredient file defines the function of its name, which binds, and says where it comes from."""

import importlib
import inspect
import re

import pytest

from eggs_ptp.method.step import SLOTS, Step, names

INGREDIENTS = [(slot, name) for slot in SLOTS for name in names(slot)]


def test_the_promised_ingredients_are_there():
    assert {("score", "magnitude"), ("score", "wanda"), ("score", "ri"), ("score", "ria")} <= set(INGREDIENTS)
    assert {("permute", "deal"), ("select", "top"), ("select", "expander")} <= set(INGREDIENTS)


@pytest.mark.parametrize(("slot", "name"), INGREDIENTS)
def test_an_ingredient_is_one_public_function_that_binds(slot, name):
    module = importlib.import_module(f"eggs_ptp.{slot}.{name}")
    defined = inspect.getmembers(
        module, lambda member: inspect.isfunction(member) and member.__module__ == module.__name__
    )
    assert [found for found, _ in defined if not found.startswith("_")] == [name]
    bound = Step(name).bind(slot)
    assert bound.function is getattr(module, name)
    assert bound.data


@pytest.mark.parametrize(("slot", "name"), INGREDIENTS)
def test_an_ingredient_names_its_source_and_its_options(slot, name):
    function = Step(name).bind(slot).function
    text = inspect.getdoc(function) or ""
    assert "Source:" in text
    missing = [option for option in Step(name).bind(slot).options if not re.search(rf"\b{option}\b", text)]
    assert missing == []
