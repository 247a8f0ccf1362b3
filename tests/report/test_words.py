import pytest

from eggs_ptp.report.words import bytes_text, plain, seconds_text, with_error


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (28.0, "28"),
        (28.276, "28.28"),
        (0.0634, "0.06340"),
        (12345.6, "12\u202f346"),
        (float("nan"), "nan"),
    ],
)
def test_plain(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(28.277, 0.522, "28.28 ± 0.52"), (62.01, 1.13, "62.0 ± 1.1"), (1234.5, 77.0, "1234 ± 77"), (0.31, None, "0.3100")],
)
def test_with_error_has_two_digits_of_the_error(value, error, text):
    assert with_error(value, error) == text


def test_units():
    assert [bytes_text(count) for count in (None, 12, 812_000, 1.776e6, 13.5e9)] == [
        "–", "12 B", "812 kB", "1.78 MB", "13.5 GB",
    ]  # fmt: skip
    assert [seconds_text(each) for each in (0.421, 12.4, 200, 3900)] == ["0.42 s", "12 s", "3 min 20 s", "1 h 05 min"]
