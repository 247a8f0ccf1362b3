import importlib
import inspect

import pytest

from eggs_ptp.cli.step_docstring import parse_step_docstring
from eggs_ptp.method.step import SLOTS, Step, names

STEPS = [(slot, name) for slot in SLOTS for name in names(slot)]


def test_all_sections_are_parsed():
    docstring = parse_step_docstring(
        """Compute a_ij + b.

        More about it,
        on two lines.

        Args:
            weight: shape (out, in).
            alpha: how much; more
                of it: louder.

        Returns:
            Something.

        Source: a paper,
            eq. 1.
        Differs: not much.
        """
    )
    assert docstring.description == "Compute a_ij + b.\n\nMore about it,\non two lines."
    assert docstring.arguments == {"weight": "shape (out, in).", "alpha": "how much; more of it: louder."}
    assert docstring.source == "a paper, eq. 1."
    assert docstring.differs == "not much."


def test_a_section_may_start_on_the_line_after_its_title():
    docstring = parse_step_docstring("Compute.\n\n    Source:\n        a paper, eq. 1.\n    ")
    assert docstring.source == "a paper, eq. 1."


def test_missing_sections_are_empty():
    docstring = parse_step_docstring("One line.")
    assert docstring.description == "One line."
    assert (docstring.arguments, docstring.source, docstring.differs) == ({}, "", "")


@pytest.mark.parametrize(("slot", "name"), STEPS)
def test_every_option_of_every_step_is_described(slot, name):
    step = Step(name).bind(slot)
    docstring = parse_step_docstring(inspect.getdoc(step.function))
    assert docstring.description
    assert docstring.source
    assert {
        option: docstring.arguments.get(option) for option in step.options if not docstring.arguments.get(option)
    } == {}


@pytest.mark.parametrize(("slot", "name"), STEPS)
def test_no_step_describes_an_argument_that_it_does_not_have(slot, name):
    function = getattr(importlib.import_module(f"eggs_ptp.{slot}.{name}"), name)
    described = parse_step_docstring(inspect.getdoc(function)).arguments
    assert described.keys() <= inspect.signature(function).parameters.keys()
