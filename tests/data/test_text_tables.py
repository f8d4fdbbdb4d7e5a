"""Text tables: whatever a program or a spreadsheet wrote, the same rows come back, or one sentence
says why not."""

import codecs
import csv
import gzip
import io

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_files import refusal

from shfcas_lib.base.errors import InputError
from shfcas_lib.data import sheets
from shfcas_lib.data.preferences import load_pairs
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Preferences

SEPARATORS = [",", ";", "\t", "|"]
# What fools those who count separators: prose, code, tables, numbers, messages.
TEXTS = [
    "Well, why? Because; that is | why.",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "for (i = 0; i < 3; i++) { x; }",
    "def f(x):\n\treturn x, 1",
    'He said "hi"; then left.',
    "1,000; 2,000",
    "[{'role': 'user', 'content': 'a, b; c'}]",
    "plain",
]
GERMAN = [
    ["prompt", "chosen", "rejected"],
    ["Was ist schön?", "Das Meer, natürlich; „blau“ – und groß.", "Nichts"],
    ["Wie heißt die Hauptstadt Österreichs?", "Wien, an der Donau.", "Köln"],
]


def text_of(rows, separator=",", quoting=csv.QUOTE_MINIMAL, ends="\r\n"):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=ends)
    writer.writerows(rows)
    return out.getvalue()


def rows_of(content):
    return [dict(row) for _, row in sheets.read_sheet(content, "x.csv")]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(SEPARATORS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.lists(st.sampled_from(TEXTS), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([["prompt", "a, b", "c"], ["prompt", "a | b", "c; d"], ["q", "x", "y"]]),
)
def test_every_separator_is_found_whatever_the_texts_hold(separator, quoting, ends, rows, header):
    content = text_of([header, *rows], separator, quoting, ends).encode()
    assert sheets.dialect_of(content, "x").separator == separator
    assert rows_of(content) == [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"],
)
@pytest.mark.parametrize("separator", SEPARATORS)
def test_encodings_of_spreadsheets_give_the_same_rows(encoding, separator):
    content = text_of(GERMAN, separator).encode(encoding)
    assert rows_of(content) == rows_of(text_of(GERMAN).encode())


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Was ist schön? Das Meer natürlich und die Straße nach Köln"),
        ("cp1250", "Gdzie leży źródło rzeki? Święta, żaden błąd, łąka"),
        ("cp1251", "Какая столица Франции? Париж, конечно"),
        ("cp1253", "Ποια είναι η πρωτεύουσα της Γαλλίας; Το Παρίσι"),
        ("shift_jis", "フランスの首都はどこですか。パリです。とてもきれいな町です。"),
        ("gb18030", "法国的首都是哪里？巴黎是法国的首都，也是最大的城市。"),
        ("euc_kr", "프랑스의 수도는 어디입니까? 파리입니다. 아름다운 도시입니다."),
    ],
)
def test_code_pages_are_recognised_and_said(encoding, text):
    content = text_of([["prompt", "answer"], [text, "x"]]).encode(encoding)
    assert rows_of(content) == [{"prompt": text, "answer": "x"}]
    assert sheets.dialect_of(content, "x").said.startswith("in ")


def test_a_few_broken_bytes_in_utf_8_stop_where_they_stand():
    """Else every letter of the table would turn into two wrong ones."""
    content = text_of([*GERMAN, ["é", "à", "ü"]]).encode() + b"\xff,b,c\r\n"
    with pytest.raises(InputError, match="cannot be read after row .*utf-8"):
        rows_of(content)


def test_bytes_that_no_code_page_explains_are_refused():
    with pytest.raises(InputError, match="x.csv is not UTF-8, .* save it as 'CSV UTF-8'"):
        rows_of(b"prompt,chosen\n" + b"\x81" * 9)


def test_a_first_line_that_names_the_separator_is_no_row():
    assert rows_of(b"sep=;\r\nprompt;answer\r\na, b;c\r\n") == [{"prompt": "a, b", "answer": "c"}]


def test_what_is_out_of_the_ordinary_is_said():
    said = [sheets.dialect_of(text_of(GERMAN, s).encode("utf-16"), "x").said for s in SEPARATORS]
    assert said == [
        "in utf-16",
        "in utf-16, separated by semicolons",
        "in utf-16, separated by tabs",
        "in utf-16, separated by pipes",
    ]
    assert sheets.dialect_of(b"\xef\xbb\xbfa,b\n1,2\n", "x").said == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("prompt,chosen,rejected,chosen\na,b,c,d\n", "chosen"),
        ("prompt;chosen; chosen\na;b;c\n", "chosen"),
        ("\ufeffprompt,a,prompt\n1,2,3\n", "prompt"),
    ],
)
def test_a_column_named_twice_is_refused(text, name):
    with pytest.raises(InputError, match=f"x.csv: the header names '{name}' twice"):
        rows_of(text.encode())


def test_columns_without_a_name_are_left_out():
    """pandas writes its index so, and spreadsheets empty columns at the end."""
    assert rows_of(b",prompt,,\n0,a,,\n") == [{"prompt": "a"}]


def test_rows_without_text_count_and_are_no_rows():
    content = b"a;b\n1;2\n;\n\n3;4\n;;\n"
    with pytest.raises(InputError) as caught:
        rows_of(content + b"5\n")
    assert "row 6: 1 cells, expected 2" in str(caught.value)
    assert [number for number, _ in sheets.read_sheet(content, "x")] == [1, 4]


def test_the_sentence_about_a_ragged_row_says_how_it_was_read():
    with pytest.raises(InputError) as caught:
        rows_of(b"prompt;chosen;rejected\na;b;c\nd; e;f;g\n")
    assert str(caught.value) == (
        "x.csv, row 2: 4 cells, expected 3, as many as in the header, separated by semicolons: put"
        " a text that holds semicolons or line breaks between quotes"
    )


@pytest.mark.parametrize(
    ("separator", "cell", "number"),
    [
        (",", "1.0", 1.0),
        (",", " 0.50 ", 0.5),
        (";", "0,5", 0.5),
        (";", "-1,25", -1.25),
        (";", "0.5", 0.5),
        (",", "1e-1", 0.1),
        (",", "one", None),
        (";", "1,2,3", None),
    ],
)
def test_numbers_of_a_table(separator, cell, number):
    ((_, row),) = sheets.read_sheet(text_of([["a", "b"], [cell, "x"]], separator).encode(), "x")
    assert row["a"].number == number


# --- the same for every block that reads a table


NAMES = {"prompt": "prompt", "first": "a", "second": "b", "better": "w", "harmful": "h"}


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "tsv.gz"])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_pairs_of_any_table_are_those_of_a_parquet(tmp_path, suffix, separator):
    """Numbers that pandas wrote with a point, since the column has gaps, too."""
    table = pd.DataFrame(
        {
            "prompt": ["é?", "b, c; d?", "e"],
            "a": ["x", "1\n2", "y"],
            "b": ["z", "3", "w"],
            "w": [0.0, 1.0, 0.0],
            "h": [1.0, 0.0, 1.0],
        }
    )
    path = tmp_path / f"mine.{suffix}"
    text = table.to_csv(index=False, sep=separator)
    content = text.encode("utf-16")
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    table.to_parquet(tmp_path / "mine.parquet")
    expected = load_pairs(Preferences(file=str(tmp_path / "mine.parquet"), columns=NAMES))
    found = load_pairs(Preferences(file=str(path), columns=NAMES))
    pd.testing.assert_frame_equal(found, expected)
    assert list(found["chosen"]) == ["x", "3", "y"] and list(found["harmful"]) == [
        True,
        False,
        True,
    ]


def test_prompts_of_a_table_with_semicolons(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(
        text_of(
            [["prompt", "topic"], *[[f"Größe {k}, bitte?", "x"] for k in range(9)]], ";"
        ).encode("cp1252")
    )
    block = {"file": str(path), "columns": {"category": "topic"}}
    prompts = load_prompts(reading.validate({"prompts": block}, "test"))
    assert set(prompts["prompt"]) == {f"Größe {k}, bitte?" for k in range(9)}


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_json_lines_with_a_mark(tmp_path, mark):
    text = '{"prompt": "é?", "chosen": "a", "rejected": "b"}\n'
    encoding = "utf-8" if mark == codecs.BOM_UTF8 else "utf-16-le"
    (tmp_path / "mine.jsonl").write_bytes(mark + text.encode(encoding))
    assert list(load_pairs(tmp_path / "mine.jsonl")["prompt"]) == ["é?"]


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}',
        '{"prompt": [{"role": "user", "content": "q", "content": "r"}], "chosen": "a"}',
    ],
    ids=["column", "inside a message"],
)
def test_a_key_of_json_given_twice_is_refused(tmp_path, line):
    (tmp_path / "mine.jsonl").write_text(line)
    assert "is given twice" in refusal(load_pairs, tmp_path / "mine.jsonl")


def test_a_parquet_column_named_twice_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    column = pa.array(["a"])
    names = ["prompt", "chosen", "rejected", "chosen"]
    table = pa.Table.from_arrays([column, column, pa.array(["b"]), column], names=names)
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    assert "names 'chosen' twice" in refusal(load_pairs, tmp_path / "mine.parquet")


@pytest.mark.parametrize("cell", ["#NAME?", "#VALUE!", "########", "Err:508"])
def test_what_a_spreadsheet_made_of_a_formula_is_named(tmp_path, cell):
    (tmp_path / "mine.csv").write_text(f"prompt,chosen,rejected\nq,a,b\nr,{cell},c\n")
    message = refusal(load_pairs, tmp_path / "mine.csv")
    assert "row 2: 'chosen' is " in message and "import the column as text" in message
