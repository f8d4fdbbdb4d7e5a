"""Benchmark files as they are published, and what is said of those that are not."""

import gzip
import json

import own_files
import pandas as pd
import pytest

from shfcas_lib.data.benchmarks import read_benchmark

STYLED = {"prompt": "Why?", "chosen": ["a", "bb", "ccc"], "rejected": ["d", "ee", "fff"]}


def array(path, *rows):
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wt") as file:
        json.dump(list(rows), file)
    return str(path)


def test_rm_benchs_layout(tmp_path):
    table = read_benchmark(array(tmp_path / "chat.json.gz", STYLED, STYLED | {"domain": "code"}))
    assert table["completion"].tolist() == 2 * ["a", "bb", "ccc", "d", "ee", "fff"]
    assert table["style"].tolist() == 4 * [0, 1, 2]
    assert table["side"].tolist() == 2 * (3 * ["chosen"] + 3 * ["rejected"])
    assert table["index"].tolist() == 2 * list(range(6))
    assert table["subset"].tolist() == 6 * ["chat"] + 6 * ["code"]
    assert table["prompt_id"].nunique() == 2


def test_a_folder_is_all_its_files(tmp_path):
    for name in ("one", "two"):
        array(tmp_path / f"{name}.json", STYLED)
    (tmp_path / "notes.md").write_text("no data")
    table = read_benchmark(str(tmp_path))
    assert set(table["subset"]) == {"one", "two"} and table["prompt_id"].nunique() == 2


def test_reward_benchs_layout(tmp_path):
    rows = [
        {"prompt": f"q {k}", "chosen": "yes", "rejected": "no", "subset": name, "id": k}
        for k, name in enumerate(("donotanswer", "hep-rust"))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "filtered.parquet")
    table = read_benchmark(str(tmp_path / "filtered.parquet"))
    assert table["subset"].tolist() == 2 * ["donotanswer"] + 2 * ["hep-rust"]
    assert table["completion"].tolist() == ["yes", "no", "yes", "no"]


def test_own_preferences_with_messages_and_ties(tmp_path):
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    file = own_files.write(
        tmp_path / "mine.jsonl",
        {"prompt": "q", "chosen": said("yes"), "rejected": said("no"), "category": "x"},
        {"prompt": "r", "chosen": said("yes"), "rejected": said("no"), "label": 0.5},
        {"prompt": "s", "chosen": said("no"), "rejected": said("yes"), "label": 0},
    )
    table = read_benchmark(str(file))
    chosen = table[table["side"] == "chosen"]
    assert chosen["completion"].tolist() == ["yes", "yes"]
    assert chosen["prompt"].tolist() == ["q", "s"] and chosen["subset"].tolist() == ["x", "mine"]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"prompt": "q", "chosen": ["a"]}], "no 'rejected'"),
        ([STYLED | {"rejected": ["a", ""]}], "'rejected' is no list of texts"),
        ([STYLED | {"rejected": []}], "'rejected' is no list of texts"),
        ([STYLED | {"prompt": None}], "'prompt' is NoneType"),
        ([STYLED, STYLED | {"chosen": [1, 2]}], "entry 2: 'chosen'"),
        ([], "holds no row"),
        (["text"], "expected a list of objects"),
    ],
)
def test_what_is_no_benchmark_is_told(tmp_path, rows, words):
    assert words in own_files.refusal(read_benchmark, array(tmp_path / "bad.json", *rows))


def test_no_file_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "rm-bench, reward-bench" in own_files.refusal(read_benchmark, str(tmp_path / "none"))
    assert "no benchmark file" in own_files.refusal(read_benchmark, str(tmp_path / "empty"))
    (tmp_path / "half.json").write_text('[{"prompt":')
    assert "cannot be read" in own_files.refusal(read_benchmark, str(tmp_path / "half.json"))
