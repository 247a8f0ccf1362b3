import pytest

from eggs_ptp.report.number_format import format_bytes, format_duration, format_number, format_with_error


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
def test_numbers_have_four_significant_digits(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(28.277, 0.522, "28.28 ± 0.52"), (62.01, 1.13, "62.0 ± 1.1"), (1234.5, 77.0, "1234 ± 77"), (0.31, None, "0.3100")],
)
def test_a_standard_error_has_two_significant_digits(value, error, text):
    assert format_with_error(value, error) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (12, "12 Bytes"), (812_000, "812.0 kB"), (1.776e6, "1.8 MB"), (13.5e9, "13.5 GB")],
)
def test_sizes_are_in_decimal_units(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.421, "0.42 seconds"),
        (12.4, "12 seconds"),
        (59.6, "1 minute"),
        (200, "3 minutes and 20 seconds"),
        (3900, "1 hour and 5 minutes"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
