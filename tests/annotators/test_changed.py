"""What a spreadsheet makes of texts that look like numbers, dates or truth values."""

import pytest

from shfcas_lib.annotators.changed import may_have_become


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("50%", "0.5"),
        ("50%", "0,5"),
        ("1,000", "1000"),
        ("1.000.000", "1000000"),
        ("1 000", "1000"),
        ("1.50", "1.5"),
        ("1.5", "1,5"),
        ("007", "7"),
        ("1e5", "100000"),
        ("1e5", "1.00E+05"),
        ("12345678901234567890", "1.23457E+19"),
        ("$5", "5"),
        ("(5)", "-5"),
        ("true", "TRUE"),
        ("false", "FALSCH"),
        ("2024-01-02", "2024/01/02"),
        ("2024-01-02", "02.01.2024"),
        ("2024-01-02", "1/2/24"),
        ("2024-01-02", "45293"),
        ("1-2", "2-Jan"),
        ("March 5", "5-Mar"),
        ("12:30", "12:30:00"),
        ("12:30", "0.520833333333333"),
        ("5 pm", "5:00 PM"),
        ("2024-01-02 12:30", "2024/1/2 12:30:00"),
        ("=1+1", "#NAME?"),
        ("漢字 é", "?? é"),
        ("🙂", "??"),
        ("café", "cafe\u0301"),
        ("same", "same"),
    ],
)
def test_changed(text, cell):
    assert may_have_become(text, cell)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("Paris", "London"),
        ("12", "13"),
        ("50%", "50"),
        ("12:30", "12:31"),
        ("2024-01-02", "2024-01-03"),
        ("true", "false"),
        ("may", "June"),
        ("1", "1 x"),
        ("Step 5", "Step 6"),
        ("5", "five"),
        ("é", "e"),
        ("a", "?"),
        ("long " * 20 + "1", "1"),
        ("2024-01-02", ""),
        ("", "0"),
    ],
)
def test_another_text(text, cell):
    assert not may_have_become(text, cell)
