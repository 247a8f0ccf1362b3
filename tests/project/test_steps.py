"""Every step's module defines the function of its name, which binds, and documents its source and options."""

import importlib
import inspect
import re

import pytest

from eggs_ptp.method.step import SLOTS, Step, names

STEPS = [(slot, name) for slot in SLOTS for name in names(slot)]


def test_the_papers_steps_are_there():
    assert {("score", "magnitude"), ("score", "wanda"), ("score", "ri"), ("score", "ria")} <= set(STEPS)
    assert {("permute", "allocate"), ("select", "top"), ("select", "expander")} <= set(STEPS)


@pytest.mark.parametrize(("slot", "name"), STEPS)
def test_a_step_is_one_public_function_that_binds(slot, name):
    module = importlib.import_module(f"eggs_ptp.{slot}.{name}")
    functions = inspect.getmembers(
        module, lambda member: inspect.isfunction(member) and member.__module__ == module.__name__
    )
    assert [function for function, _ in functions if not function.startswith("_")] == [name]
    bound = Step(name).bind(slot)
    assert bound.function is getattr(module, name)
    assert bound.data


@pytest.mark.parametrize(("slot", "name"), STEPS)
def test_a_step_documents_its_source_and_its_options(slot, name):
    bound = Step(name).bind(slot)
    text = inspect.getdoc(bound.function) or ""
    assert "Source:" in text
    assert [option for option in bound.options if not re.search(rf"\b{option}\b", text)] == []
