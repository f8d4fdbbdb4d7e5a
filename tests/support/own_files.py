"""Small data files of a user's own, and what is said of those that are refused."""

import json

import pytest

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading


def write(path, *rows):
    """A jsonl file of rows; a row that is text already is written as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def refusal(call, *arguments):
    """The message of the InputError that a call ends in: one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(**values):
    return reading.validate(values, "test")
