"""Preference pairs: every bad file is refused with its place; texts become completions and come
back."""

import gzip
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_files import refusal, write

from shfcas_lib.base import dialogues
from shfcas_lib.data.preferences import as_completions, load_pairs, preferences_from_gold, to_trl

PAIR = {
    "prompt": "How do bees find flowers?",
    "chosen": "By colour and scent.",
    "rejected": "They do not.",
}


def say(role, content):
    return {"role": role, "content": content}


# --- preference files that are fine


def test_a_pair_is_read_as_it_stands(tmp_path):
    table = load_pairs(write(tmp_path / "mine.jsonl", PAIR | {"category": "bees", "harmful": True}))
    assert table.to_dict("records") == [
        PAIR
        | {
            "prompt_id": dialogues.prompt_id(PAIR["prompt"]),
            "category": "bees",
            "harmful": True,
            "label": 1.0,
            "votes": 1,
        }
    ]


def test_category_and_harmful_have_defaults(tmp_path):
    table = load_pairs(write(tmp_path / "mine.jsonl", PAIR))
    assert (table.at[0, "category"], table.at[0, "harmful"]) == ("all", False)


def test_every_format_gives_the_same_table(tmp_path):
    rows = [
        PAIR | {"category": "bees", "harmful": False},
        {"prompt": "q", "chosen": "ä\nb", "rejected": 'c,"d"', "category": "x", "harmful": True},
    ]
    plain = write(tmp_path / "mine.jsonl", *rows)
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(plain.read_text())
    pd.DataFrame(rows).to_parquet(tmp_path / "mine.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "mine.csv", index=False)
    expected = load_pairs(plain)
    for suffix in ("jsonl.gz", "parquet", "csv"):
        pd.testing.assert_frame_equal(load_pairs(tmp_path / f"mine.{suffix}"), expected, obj=suffix)


def test_the_suffix_may_be_in_capitals(tmp_path):
    with gzip.open(tmp_path / "MINE.JSONL.GZ", "wt") as file:
        file.write(json.dumps(PAIR))
    assert len(load_pairs(tmp_path / "MINE.JSONL.GZ")) == 1


def test_blank_lines_do_not_count_as_rows_but_as_lines(tmp_path):
    path = write(tmp_path / "mine.jsonl", PAIR, "", PAIR | {"chosen": ""})
    assert "line 3: 'chosen' is empty" in refusal(load_pairs, path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_message_lists_of_one_turn_are_read_as_their_text(tmp_path, suffix):
    row = {"prompt": [say("user", PAIR["prompt"])]} | {
        k: [say("assistant", PAIR[k])] for k in ("chosen", "rejected")
    }
    path = tmp_path / f"mine.{suffix}"
    write(path, row) if suffix == "jsonl" else pd.DataFrame([row]).to_parquet(path)
    assert load_pairs(path)[["prompt", "chosen", "rejected"]].to_dict("records") == [PAIR]


def test_an_answer_may_repeat_the_prompt_before_it(tmp_path):
    """Many published sets hold the whole exchange in `chosen` and `rejected`."""
    row = {"prompt": PAIR["prompt"]} | {
        k: [say("user", PAIR["prompt"]), say("assistant", PAIR[k])] for k in ("chosen", "rejected")
    }
    assert load_pairs(write(tmp_path / "mine.jsonl", row))[
        ["prompt", "chosen", "rejected"]
    ].to_dict("records") == [PAIR]


def test_a_csv_answer_that_spells_none_is_text(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "prompt,chosen,rejected\nHow many moons has Venus?,None,NA\n"
    )
    table = load_pairs(tmp_path / "mine.csv")
    assert (table.at[0, "chosen"], table.at[0, "rejected"]) == ("None", "NA")


# --- preference files that are not


def test_a_missing_file(tmp_path):
    assert (
        refusal(load_pairs, tmp_path / "nowhere.jsonl")
        == f"data file {tmp_path}/nowhere.jsonl does not exist"
    )


def test_a_relative_path_starts_from_the_project_folder(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params").mkdir()
    write(tmp_path / "mine.jsonl", PAIR)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert len(load_pairs(Path("mine.jsonl"))) == 1


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_an_empty_file(tmp_path, text):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    assert refusal(load_pairs, path) == f"{path} holds no preference pairs"


@pytest.mark.parametrize("name", ["mine.txt", "mine.yaml", "mine", "mine.jsonl.zip"])
def test_an_unknown_suffix(tmp_path, name):
    path = write(tmp_path / name, PAIR)
    assert (
        refusal(load_pairs, path)
        == f"data file {path}: expected a name ending in .jsonl, .jsonl.gz, .json, .parquet, .csv,"
        " .csv.gz, .tsv or .tsv.gz"
    )


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_a_missing_column(tmp_path, name):
    row = {key: value for key, value in PAIR.items() if key != name}
    path = write(tmp_path / "mine.jsonl", PAIR, row)
    assert (
        refusal(load_pairs, path)
        == f"{path}, line 2: no {name!r} (columns found: {', '.join(row)})"
    )


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        (12, "is int, expected text"),
        (True, "is bool, expected text"),
        ({}, "is dict, expected text"),
        (["a"], "is list, expected text"),
        ([], "dialogue of 0 turns"),
        ([say("assistant", None)], "is NoneType, expected text"),
        ([say("assistant", "")], "is empty"),
        ([say("assistant", [{"type": "image"}])], "is list, expected text"),
    ],
    ids=str,
)
def test_content_that_is_empty_or_no_text(tmp_path, name, value, found):
    path = write(tmp_path / "mine.jsonl", PAIR | {name: value})
    message = refusal(load_pairs, path)
    assert f"{path}, line 1: {name!r} " in message and found in message


def test_null_content(tmp_path):
    message = refusal(load_pairs, write(tmp_path / "mine.jsonl", PAIR | {"rejected": None}))
    assert "line 1" in message and "'rejected'" in message


def test_equal_texts(tmp_path):
    path = write(tmp_path / "mine.jsonl", PAIR, PAIR | {"rejected": PAIR["chosen"]})
    assert refusal(load_pairs, path) == f"{path}, line 2: chosen and rejected are the same text"


def test_a_system_message_stands_beside_the_prompt(tmp_path):
    """It is no turn of the dialogue; the run's own system prompt is model.system_prompt."""
    path = write(
        tmp_path / "mine.jsonl",
        PAIR | {"prompt": [say("system", "Be brief."), say("user", PAIR["prompt"])]},
    )
    assert list(load_pairs(path)["prompt"]) == [PAIR["prompt"]]


def test_a_prompt_of_several_turns_is_kept_whole(tmp_path):
    turns = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    table = load_pairs(write(tmp_path / "mine.jsonl", PAIR | {"prompt": turns}))
    assert dialogues.messages(table.at[0, "prompt"]) == turns


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["user", "assistant"],
        ["user", "user"],
        ["assistant", "user"],
        ["user", "tool", "user"],
    ],
)
def test_a_prompt_whose_speakers_do_not_take_turns(tmp_path, roles):
    path = write(
        tmp_path / "mine.jsonl", PAIR, PAIR | {"prompt": [say(role, "x") for role in roles]}
    )
    assert "line 2: 'prompt'" in refusal(load_pairs, path)


def test_answers_of_several_turns(tmp_path):
    """Only the last turn would be compared, without the turns before it that it answers."""
    long = [
        say("user", PAIR["prompt"]),
        say("assistant", "a"),
        say("user", "b"),
        say("assistant", "c"),
    ]
    assert "'chosen' is a dialogue" in refusal(
        load_pairs, write(tmp_path / "mine.jsonl", PAIR | {"chosen": long})
    )


def test_half_an_emoji_is_refused_with_its_line(tmp_path):
    """JSON can spell half of a surrogate pair (a text cut in the middle of a character); no
    tokenizer or table can hold it."""
    path = write(tmp_path / "mine.jsonl", PAIR, PAIR | {"chosen": "ok \ud83d"})
    assert "line 2" in refusal(load_pairs, path)


@pytest.mark.parametrize("value", ["no", "false"])
def test_harmful_must_be_true_or_false(tmp_path, value):
    """bool("no") is True: a harmless prompt would be scored as a harmful one."""
    assert "'harmful'" in refusal(
        load_pairs, write(tmp_path / "mine.jsonl", PAIR | {"harmful": value})
    )


def test_an_absent_category_is_not_called_none(tmp_path):
    path = write(tmp_path / "mine.jsonl", PAIR | {"category": None})
    assert list(load_pairs(path)["category"]) == ["all"]


def test_categories_may_be_numbers(tmp_path):
    """Zero is a category like the others."""
    rows = [PAIR | {"prompt": f"{k}?", "category": k} for k in range(3)]
    path = write(tmp_path / "mine.jsonl", *rows)
    assert list(load_pairs(path)["category"]) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("cell", "harmful"),
    [
        ("true", True),
        ("True", True),
        ("1", True),
        ("false", False),
        ("False", False),
        ("0", False),
        ("", False),
    ],
)
def test_harmful_in_a_csv(tmp_path, cell, harmful):
    (tmp_path / "mine.csv").write_text(f"prompt,chosen,rejected,harmful\na?,yes,no,{cell}\n")
    assert list(load_pairs(tmp_path / "mine.csv")["harmful"]) == [harmful]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        '{"prompt": "a", "cho',
        "not json",
        json.dumps(PAIR) + "}",
        "\ufeff{}",
        '{"n": ' + "1" * 5000 + "}",
    ],
    ids=["open", "cut", "text", "tail", "bom", "long number"],
)
def test_a_broken_line_has_its_number(tmp_path, broken):
    path = write(tmp_path / "mine.jsonl", PAIR, PAIR, broken, PAIR)
    message = refusal(load_pairs, path)
    assert str(path) in message and "line 3: " in message


@pytest.mark.parametrize(
    ("text", "found"), [("[1]", "list"), ("3", "int"), ('"a"', "str"), ("null", "NoneType")]
)
def test_a_line_that_is_no_object(tmp_path, text, found):
    path = write(tmp_path / "mine.jsonl", PAIR, text)
    assert refusal(load_pairs, path) == f"{path}, line 2: found {found}, expected an object"


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b"\n\xff\xfe\n")
    message = refusal(load_pairs, path)
    assert str(path) in message and "line" in message and "utf-8" in message


def test_a_truncated_gz_says_how_far_it_was_read(tmp_path):
    path = tmp_path / "mine.jsonl.gz"
    whole = gzip.compress(
        "".join(json.dumps(PAIR | {"prompt": f"{k}?"}) + "\n" for k in range(500)).encode()
    )
    path.write_bytes(whole[: len(whole) // 2])
    message = refusal(load_pairs, path)
    number = int(message.split("after line ")[1].split(":")[0])
    assert str(path) in message and 0 < number < 500


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip at all",
        gzip.compress(b"x")[:10] + b"\xff" * 40,
        gzip.compress(b"{}\n")[:-8] + b"12345678",
    ],
    ids=["text", "garbage", "checksum"],
)
def test_a_damaged_gz(tmp_path, content):
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(content)
    assert str(path) in refusal(load_pairs, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.parquet", b"PAR1"),
        ("mine.csv", b""),
        ("mine.csv", "prompt,chosen,rejected\nété à ü,".encode() + b"\xff,b\n"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert str(path) in refusal(load_pairs, path)


def test_a_csv_row_has_its_number(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,chosen,rejected\na?,yes,no\nb?,,no\n")
    message = refusal(load_pairs, tmp_path / "mine.csv")
    assert f"{tmp_path}/mine.csv, row 2: " in message and "'chosen'" in message


def test_a_csv_row_with_a_comma_too_many(tmp_path):
    """pandas would take the first cell for an index and shift every column by one."""
    (tmp_path / "mine.csv").write_text("prompt,chosen,rejected\nWell, why?,yes,no\n")
    assert f"{tmp_path}/mine.csv" in refusal(load_pairs, tmp_path / "mine.csv")


# --- texts to completions and back


def pairs_of(*rows):
    """(prompt, chosen, rejected) as a table that load_pairs could have made."""
    table = pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])
    return table.assign(
        prompt_id=table["prompt"].map(dialogues.prompt_id), category="all", harmful=False
    )


def test_as_completions_gives_equal_texts_of_a_prompt_one_index():
    completions, preferences = as_completions(
        pairs_of(("p", "a", "b"), ("p", "c", "a"), ("q", "b", "a"))
    )
    p, q = dialogues.prompt_id("p"), dialogues.prompt_id("q")
    assert list(completions.itertuples(index=False, name=None)) == [
        (p, 0, "p", "a"),
        (p, 1, "p", "b"),
        (p, 2, "p", "c"),
        (q, 0, "q", "b"),
        (q, 1, "q", "a"),
    ]
    assert list(preferences.itertuples(index=False, name=None)) == [
        (p, 0, 1, 1.0),
        (p, 0, 2, 0.0),
        (q, 0, 1, 1.0),
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.sampled_from("abcd")] * 3).filter(lambda t: t[1] != t[2]),
        min_size=1,
        max_size=12,
    )
)
def test_pairs_survive_the_way_to_indices_and_back(rows):
    completions, preferences = as_completions(pairs_of(*rows))
    assert (preferences["i"] < preferences["j"]).all()
    assert (
        not completions.duplicated(["prompt_id", "index"]).any()
        and not completions.duplicated(["prompt_id", "completion"]).any()
    )
    back = to_trl(preferences, completions)
    assert list(back.itertuples(index=False, name=None)) == rows


# --- preferences from gold


def gold_table(values):
    """{prompt: gold of its completions} as a table."""
    return pd.DataFrame(
        [(p, i, g) for p, golds in values.items() for i, g in enumerate(golds)],
        columns=["prompt_id", "index", "gold"],
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=5), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_preferences_follow_gold(golds, per_prompt, seed):
    values = {f"p{k}": g for k, g in enumerate(golds)}
    told = {
        p: {(i, j) for i, j in combinations(range(len(g)), 2) if g[i] != g[j]}
        for p, g in values.items()
    }
    if not any(told.values()):
        assert "apart" in refusal(preferences_from_gold, gold_table(values), per_prompt, seed)
        return
    table = preferences_from_gold(gold_table(values), per_prompt, seed)
    for row in table.itertuples():
        assert row.label == float(values[row.prompt_id][row.i] > values[row.prompt_id][row.j])
    for prompt, pairs in told.items():
        part = table[table["prompt_id"] == prompt]
        chosen = set(zip(part["i"], part["j"], strict=True))
        assert chosen <= pairs and len(chosen) == len(part) == min(per_prompt, len(pairs))


def test_preferences_depend_on_the_seed_and_not_on_the_order_of_rows():
    scores = gold_table({f"p{k}": list(range(8)) for k in range(10)})
    one = preferences_from_gold(scores, 4, 0)
    pd.testing.assert_frame_equal(
        one, preferences_from_gold(scores.sample(frac=1, random_state=1), 4, 0)
    )
    assert not one.equals(preferences_from_gold(scores, 4, 1))


def test_preferences_are_drawn_from_all_pairs():
    """Over many prompts every pair of four completions comes up about equally often."""
    scores = gold_table({f"p{k:03}": [3, 2, 1, 0] for k in range(300)})
    table = preferences_from_gold(scores, 1, 0)
    share = table.groupby(["i", "j"]).size() / len(table)
    assert len(share) == 6 and np.abs(share - 1 / 6).max() < 0.1


# --- TRL's form


COMPLETIONS = pd.DataFrame(
    [("p", 0, "why?", "a"), ("p", 1, "why?", "b"), ("q", 0, "how?", "a"), ("q", 1, "how?", "c")],
    columns=["prompt_id", "index", "prompt", "completion"],
)


def test_to_trl_puts_the_preferred_text_first():
    preferences = pd.DataFrame(
        [("p", 0, 1, 1.0), ("q", 0, 1, 0.0)], columns=["prompt_id", "i", "j", "label"]
    )
    assert to_trl(preferences, COMPLETIONS).to_dict("records") == [
        {"prompt": "why?", "chosen": "a", "rejected": "b"},
        {"prompt": "how?", "chosen": "c", "rejected": "a"},
    ]


def test_to_trl_leaves_ties_out():
    preferences = pd.DataFrame(
        [("p", 0, 1, 0.5), ("q", 0, 1, 1.0), ("q", 0, 1, 0.5)],
        columns=["prompt_id", "i", "j", "label"],
    )
    assert to_trl(preferences, COMPLETIONS).to_dict("records") == [
        {"prompt": "how?", "chosen": "a", "rejected": "c"}
    ]


def test_to_trl_of_ties_alone_is_an_empty_table():
    preferences = pd.DataFrame([("p", 0, 1, 0.5)], columns=["prompt_id", "i", "j", "label"])
    table = to_trl(preferences, COMPLETIONS)
    assert len(table) == 0 and list(table) == ["prompt", "chosen", "rejected"]
