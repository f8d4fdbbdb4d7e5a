"""docs/api.md is what the docstrings say, and says what a reader needs of each function."""

import re

import api_page
import pytest

# any arrays of the right shape, and any text, have an answer
TOTAL = {"pacs", "tilt", "score"}
NAMES = [name for names in api_page.PARTS.values() for name in names]


def test_the_page_is_what_the_library_says():
    assert api_page.PAGE.read_text() == api_page.page(), "run `make api`"


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_goes_in_what_comes_out_and_what_is_refused(name):
    entry = api_page.entry(name)
    text = entry.partition("```\n\n")[2]
    taken = re.findall(r"^    (\w+):", entry.partition("```\n\n")[0], re.MULTILINE)
    assert taken and len(text) > 100
    # every argument without a default is spoken of, and so is what is wrong
    needed = re.findall(r"^    (\w+): [^=\n]+,$", entry, re.MULTILINE)
    assert [argument for argument in needed if argument not in text] == []
    assert "Raises" in text or name in TOTAL
