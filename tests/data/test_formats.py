"""Reading rows: every container gives the same rows; what is hostile ends in one sentence with
its place; a large file is not held."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import environment

from shfcas_lib.base.errors import InputError
from shfcas_lib.data import formats, sheets
from shfcas_lib.data.preferences import load_pairs
from shfcas_lib.params.schema import Preferences, Rows

PAIR = {
    "prompt": "How do bees find flowers?",
    "chosen": "By colour and scent.",
    "rejected": "They do not.",
}
ONE_FILE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs_in(**block):
    return load_pairs(Preferences(**block))


def saved(folder, rows, splits=None):
    import datasets

    table = datasets.Dataset.from_list(rows)
    (table if splits is None else datasets.DatasetDict(dict.fromkeys(splits, table))).save_to_disk(
        folder
    )
    return folder


# --- containers


def test_saved_and_published_layouts_give_the_same_table_as_a_file(tmp_path):
    rows = [
        PAIR | {"category": "bees", "harmful": False},
        {"prompt": "q", "chosen": "ä\nb", "rejected": "c", "category": None, "harmful": True},
    ]
    path = tmp_path / "hub/train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = pairs_in(file=str(path))
    found = {
        "saved": pairs_in(file=str(saved(tmp_path / "saved", rows))),
        "split": pairs_in(
            file=str(saved(tmp_path / "splits", rows, ["dev", "train"])), split="dev"
        ),
        "layout": pairs_in(source=str(tmp_path / "hub")),
    }
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected, obj=name)


def test_a_saved_split_that_is_not_there(tmp_path):
    folder = saved(tmp_path / "mine", [PAIR], ["dev", "test"])
    assert (
        refusal(lambda: pairs_in(file=str(folder)))
        == f"{folder} has no split 'train' (splits found: dev, test)"
    )


@pytest.mark.parametrize(
    "content",
    [None, {"state.json": "{}"}, {"dataset_info.json": "{}", "state.json": "not json"}],
    ids=["empty", "half", "broken"],
)
def test_a_folder_that_is_no_saved_data_set(tmp_path, content):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (content or {}).items():
        (folder / name).write_text(text)
    assert f"{folder} cannot be read as a saved data set" in refusal(
        lambda: pairs_in(file=str(folder))
    )


def test_several_folders_of_one_source_are_read_one_after_the_other(tmp_path):
    for part in ("two", "one"):
        (tmp_path / "hub" / part).mkdir(parents=True)
        (tmp_path / "hub" / part / "train.jsonl").write_text(json.dumps(PAIR | {"chosen": part}))
    table = pairs_in(
        source=str(tmp_path / "hub"), data_dir=["two", "one"], columns={"category": "data_dir"}
    )
    assert list(table["chosen"]) == list(table["category"]) == ["two", "one"]


def test_the_columns_found_are_all_of_them_though_few_are_read(tmp_path):
    pd.DataFrame([{"question": "a?", "good": "x", "bad": "y", "extra": 1}]).to_parquet(
        tmp_path / "mine.parquet"
    )
    folder = saved(tmp_path / "saved", [{"question": "a?", "good": "x", "bad": "y", "extra": 1}])
    for place in (tmp_path / "mine.parquet", folder):
        assert (
            refusal(lambda place=place: pairs_in(file=str(place)))
            == f"{place}, row 1: no 'chosen' (columns found: question, good, bad, extra)"
        )
        assert (
            len(
                pairs_in(
                    file=str(place),
                    columns={"prompt": "question", "chosen": "good", "rejected": "bad"},
                )
            )
            == 1
        )


def test_rows_keep_their_types(tmp_path):
    (tmp_path / "mine.csv").write_text("a,b\n1,true\n")
    pd.DataFrame({"a": [1, 2], "b": [[{"role": "user", "content": "x"}]] * 2}).to_parquet(
        tmp_path / "mine.parquet"
    )
    ((_, cells),) = formats.read_rows(Rows(file=str(tmp_path / "mine.csv")))
    assert cells == {"a": "1", "b": "true"} and all(
        isinstance(cell, formats.Cell) for cell in cells.values()
    )
    assert next(iter(formats.read_rows(Rows(file=str(tmp_path / "mine.parquet")))))[1] == {
        "a": 1,
        "b": [{"role": "user", "content": "x"}],
    }


# --- hostile files


@ONE_FILE
@given(st.binary(max_size=300), st.sampled_from(["jsonl", "jsonl.gz", "csv", "parquet"]))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"mine.{suffix}"
    path.write_bytes(content)
    try:
        load_pairs(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@ONE_FILE
@given(
    st.integers(0, 2000),
    st.integers(0, 255),
    st.sampled_from(["jsonl", "jsonl.gz", "csv", "parquet"]),
)
def test_one_wrong_byte_is_read_or_refused_with_the_file_named(tmp_path, place, byte, suffix):
    path = tmp_path / f"mine.{suffix}"
    rows = pd.DataFrame([PAIR | {"prompt": f"{k}?"} for k in range(5)])
    {"csv": lambda: rows.to_csv(path, index=False), "parquet": lambda: rows.to_parquet(path)}.get(
        suffix, lambda: rows.to_json(path, orient="records", lines=True)
    )()
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(bytes(content))
    try:
        load_pairs(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv"])
def test_a_line_without_end_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sheets, "LONGEST", 5000)
    path = tmp_path / f"mine.{suffix}"
    text = (
        "prompt,chosen,rejected\n" + "x" * 9000
        if suffix == "csv"
        else json.dumps(PAIR) + "\n" + json.dumps(PAIR | {"chosen": "x" * 9000})
    )
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    message = refusal(load_pairs, path)
    assert str(path) in message and (
        "line 2: longer than 5000" in message or "field larger than" in message
    )


def test_a_long_answer_in_a_csv_is_fine(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,chosen,rejected\na?," + "word " * 60_000 + ",no\n")
    assert len(load_pairs(tmp_path / "mine.csv").at[0, "chosen"]) == 300_000


# --- large files

PROGRAM = """
import re, sys, threading, time
from shfcas_lib import data
from shfcas_lib.params import schema as params
import pyarrow.parquet, datasets, pandas

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

own = []
def watch():
    while True:
        own.append(memory("RssAnon"))
        time.sleep(0.01)

data.load_pairs(params.Preferences(file=sys.argv[2], n=10))
before, mapped = memory("RssAnon"), memory("VmHWM")
threading.Thread(target=watch, daemon=True).start()
start = time.time()
table = data.load_pairs(params.Preferences(file=sys.argv[1], n=2000), seed=3)
seconds, least = time.time() - start, table["category"].value_counts().min()
print(len(table), least, max(own) - before, memory("VmHWM") - mapped, seconds)
"""


def many(path, count):
    """`count` pairs of some 600 bytes that do not compress much."""

    def row(k):
        return {
            "prompt": f"Question {k}?",
            "chosen": f"{k} {os.urandom(120).hex()}",
            "rejected": f"no {k} {os.urandom(120).hex()}",
            "category": f"c{k % 7}",
        }

    if path.suffix == ".saved":
        import datasets

        datasets.Dataset.from_generator(
            lambda: map(row, range(count)), cache_dir=str(path.parent / "made")
        ).save_to_disk(path)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pieces = [
            pyarrow.Table.from_pylist([row(k) for k in range(start, min(start + 50_000, count))])
            for start in range(0, count, 50_000)
        ]
        # one group, the worst case
        pyarrow.parquet.write_table(pyarrow.concat_tables(pieces), path, row_group_size=count)
    else:
        with (
            gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else open(path, "w")
        ) as file:
            for k in range(count):
                file.write(json.dumps(row(k)) + "\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet", "saved"])
def test_a_large_file_is_never_held(tmp_path, suffix):
    """60,000 pairs, 36 MB as text; a million with SHFCAS_LARGE=1. Reading 2,000 of them takes the
    same memory either way.

    Memory is what the process holds for itself; pages of a mapped file, which the system takes
    back when it needs them, are told apart."""
    count = 1_000_000 if os.environ.get("SHFCAS_LARGE") else 60_000
    large, small = tmp_path / f"large.{suffix}", tmp_path / f"small.{suffix}"
    many(large, count)
    many(small, 100)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(large), str(small)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept, least, grown, peak, seconds = map(float, done.stdout.split())
    size = (
        sum(
            p.stat().st_size
            for p in ([large] if large.is_file() else large.rglob("*"))
            if p.is_file()
        )
        / 1e6
    )
    print(
        f"{count} pairs, {size:.0f} MB of {suffix}: {grown:.0f} MB more memory, {peak:.0f} MB with"
        f" mapped pages, {seconds:.1f} s"
    )
    assert kept == 2000 and least >= 2000 // 7
    assert grown < 100
