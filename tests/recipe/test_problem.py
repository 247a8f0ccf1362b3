import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from eggs_ptp.recipe.problem import Problem, problems, refused


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 0

    @field_validator("width")
    @classmethod
    def _even(cls, value):
        if value % 2:
            raise refused(f"{value} is odd", "half")
        return value


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"width": "x"}}, "inner.width: expected a valid integer, unable to parse string as an integer, "),
        ({"parts": [{}, {"width": 3}]}, "parts[1].width.half: 3 is odd"),
        ({"parts": [{"widht": 2}]}, "parts[0].widht: unknown key, did you mean 'width'?; known: width"),
        ({"inner": 3}, "inner: expected a table, got 3"),
        ({"parts": 3}, "parts: expected a list, got 3"),
        ({"zzz": 3}, "zzz: unknown key; known: inner, parts"),
        ({"sparsity_ratio": 3}, "sparsity_ratio: unknown key, did you mean 'pattern'?; known: inner, parts"),
    ],
)
def test_problems_name_the_key_path(data, message):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    (problem,) = problems(caught.value, Outer)
    assert str(problem).startswith(message)


def test_a_key_is_not_named_twice():
    assert str(Problem("pattern", "pattern 4:2 keeps too many")) == "pattern 4:2 keeps too many"
    assert str(Problem("", "reason")) == "reason"
