"""Texts of any script in figures: a font that has them where there is one, else one line."""

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib import font_manager

from shfcas_lib.analysis import figures, fonts

# Fonts that matplotlib brings stand in for those of other scripts, which a machine may lack.
OWN, OTHER = (
    next(f.fname for f in font_manager.fontManager.ttflist if f.name == name)
    for name in ("DejaVu Sans", "STIXGeneral")
)
FOREIGN = next(
    character
    for character in sorted(fonts._covered(OTHER) - fonts._covered(OWN))
    if character.isprintable() and character.isalpha()
)
LACKED = ["漢", "ह", "한", "\U0001f9ff"]  # CJK, Devanagari, Hangul, an emoji


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with two fonts, on which nothing was said yet."""
    monkeypatch.setattr(fonts, "_installed", lambda: [("DejaVu Sans", OWN), ("STIXGeneral", OTHER)])
    fonts._told.clear()


@figures.figure_function
def drawing(table):
    figure, axes = plt.subplots()
    axes.barh(table["category"], table["value"])
    return figure


def table(*names):
    return pd.DataFrame({"category": names, "value": 1.0})


def test_a_font_that_has_the_text_is_named_and_none_where_none_is_needed():
    assert fonts.families(table("cooking", "naïve Ω ж א ع")) == ["sans-serif"]
    assert fonts.families(table("cooking", f"a {FOREIGN}")) == ["sans-serif", "STIXGeneral"]
    assert fonts.families(table("a").rename(columns={"value": FOREIGN})) == [
        "sans-serif",
        "STIXGeneral",
    ]
    indexed = table("a").set_index(pd.Index([FOREIGN], name="area"))
    assert fonts.families(indexed) == ["sans-serif", "STIXGeneral"]


def test_a_figure_draws_with_it_and_says_nothing(tmp_path, capsys, recwarn):
    drawing(table(FOREIGN, "b"), tmp_path / "figure")
    assert capsys.readouterr().out == "" and not list(recwarn)


@pytest.mark.parametrize("character", LACKED)
def test_what_no_font_has_is_said_once_and_drawn(character, tmp_path, capsys, recwarn):
    for name in ("first", "second"):
        drawing(table(character, "b"), tmp_path / name)
        assert (tmp_path / f"{name}.png").exists()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"no font of this machine has {character}," in said
    assert not list(recwarn)


def test_other_warnings_are_still_heard(recwarn):
    with fonts.missing_glyphs_told():
        import warnings

        warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["something else"]


def test_a_font_of_bitmaps_or_a_broken_file_covers_nothing(tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    assert fonts._covered(str(broken)) == frozenset()


def test_the_fonts_of_this_machine_are_upright_and_the_preferred_come_first(monkeypatch):
    monkeypatch.undo()
    fonts._installed.cache_clear()
    names = [name for name, _ in fonts._installed()]
    assert "DejaVu Sans" in names and names == sorted(names, key=lambda n: (fonts._rank(n), n))
    assert fonts._rank("Noto Sans CJK JP") < fonts._rank("Noto Sans Devanagari") < fonts._rank("X")
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]
