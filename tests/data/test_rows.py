"""What a row says: columns under any name, prompts explicit or shared, text or messages, ties,
ratings, categories; bad rows stop or are counted."""

import json
from collections import Counter

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.data import prompts as data
from shfcas_lib.data.preferences import as_completions, load_pairs, own_pairs, to_trl
from shfcas_lib.data.prompts import _said, dropped_text, load_prompts, shared
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Preferences
from shfcas_lib.tasks.embedded import embedded_prompts

PAIR = {
    "prompt": "How do bees find flowers?",
    "chosen": "By colour and scent.",
    "rejected": "They do not.",
}
AB = {"prompt": "q?", "a": "one", "b": "two"}
FIRST = {"first": "a", "second": "b"}


def say(role, content):
    return {"role": role, "content": content}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def read(tmp_path):
    """Pairs of rows, as tuples (prompt, chosen, rejected, label)."""

    def of(*rows, **block):
        table = load_pairs(Preferences(file=write(tmp_path / "mine.jsonl", *rows), **block))
        return list(
            table[["prompt", "chosen", "rejected", "label"]].itertuples(index=False, name=None)
        )

    return of


@pytest.fixture
def refused(read):
    def of(*rows, **block):
        with pytest.raises(InputError) as caught:
            read(*rows, **block)
        assert "\n" not in str(caught.value) and "mine.jsonl" in str(caught.value)
        return str(caught.value)

    return of


# --- which answer is preferred


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (1, ("one", "two", 1.0)),
        (0, ("two", "one", 1.0)),
        (0.5, ("one", "two", 0.5)),
        (True, ("one", "two", 1.0)),
        (False, ("two", "one", 1.0)),
    ],
)
def test_a_label_says_which_of_two(read, label, expected):
    assert read(AB | {"label": label}, columns=FIRST) == [("q?", *expected)]


def test_chosen_and_rejected_may_be_tied(read):
    rows = [PAIR | {"prompt": f"{k}?", "label": label} for k, label in enumerate([0.5, None])]
    assert [row[3] for row in read(*rows, PAIR)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("value", [0.7, "good", 2, -1, [1]])
def test_another_label_is_refused_and_null_ignores_the_column(read, refused, value):
    assert "line 1: 'label' is" in refused(PAIR | {"label": value})
    assert len(read(PAIR | {"label": value}, columns={"label": None})) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "one"),
        (1, "two"),
        ("0", "one"),
        ("first", "one"),
        ("second", "two"),
        ("A", "one"),
        ("b", "two"),
        (0.0, "one"),
        (True, "two"),
    ],
)
def test_better_names_an_answer(read, value, expected):
    assert read(AB | {"w": value}, columns=FIRST | {"better": "w"})[0][1] == expected


@pytest.mark.parametrize("value", [2, "one", "", None, 0.5, -1])
def test_better_that_names_none(refused, value):
    assert "'w' is" in refused(AB | {"w": value}, columns=FIRST | {"better": "w"})


@pytest.mark.parametrize(
    ("lean", "expected"), [(-3, ("one", 1.0)), (2.5, ("two", 1.0)), (0, ("one", 0.5))]
)
def test_a_preference_has_a_sign(read, lean, expected):
    (row,) = read(AB | {"lean": lean}, columns=FIRST | {"preference": "lean"})
    assert (row[1], row[3]) == expected


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(-9, 9) | st.integers(-9, 9), st.floats(-9, 9) | st.integers(-9, 9))
def test_the_higher_rating_is_preferred(read, one, other):
    ((_, chosen, _, label),) = read(
        AB | {"x": one, "y": other}, columns=FIRST | {"rating_first": "x", "rating_second": "y"}
    )
    assert (
        (chosen, label) == ("one", 0.5)
        if one == other
        else (chosen, label) == ("one" if one > other else "two", 1.0)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "5", [5]])
def test_a_rating_that_is_no_number(refused, value):
    assert "'y' is" in refused(
        AB | {"x": 1, "y": value}, columns=FIRST | {"rating_first": "x", "rating_second": "y"}
    )


def test_numbers_in_a_csv(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,a,b,x,y\nq?,one,two,1,2.5\nr?,one,two,3,3\n")
    table = load_pairs(
        Preferences(
            file=str(tmp_path / "mine.csv"),
            columns=FIRST | {"rating_first": "x", "rating_second": "y"},
        )
    )
    assert list(zip(table["chosen"], table["label"], strict=True)) == [("two", 1.0), ("one", 0.5)]


def test_a_huge_value_is_shown_in_part(refused):
    assert len(refused(PAIR | {"label": "x" * 10_000})) < 400


def test_two_answers_and_nothing_that_decides(refused):
    assert "nothing says which answer is preferred" in refused(AB, columns=FIRST)


def test_a_tie_reaches_the_preferences_and_stays_out_of_trl():
    table = pd.DataFrame(
        [{"prompt_id": "p", "prompt": "q?", "chosen": "a", "rejected": "b", "label": 0.5}]
    )
    completions, preferences = as_completions(table)
    assert list(preferences["label"]) == [0.5] and len(to_trl(preferences, completions)) == 0


# --- columns by other names


def test_a_named_column_that_is_not_there_shows_those_that_are(refused):
    message = refused(PAIR, columns={"category": "topic"})
    assert (
        "line 1: no 'topic', which columns.category asks for (columns found: prompt, chosen,"
        " rejected)" in message
    )


def test_an_unknown_key_of_columns_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'chosen'"):
        reading.validate({"preferences": {"file": "x.jsonl", "columns": {"choosen": "a"}}}, "test")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "a"),
        (["b", "a"], "a"),
        ({"b": True, "a": False}, "b"),
        ({"a": False}, "none"),
        ([], "none"),
        (0, "0"),
        (None, "all"),
        ("", "all"),
    ],
)
def test_categories(tmp_path, value, expected):
    path = write(tmp_path / "mine.jsonl", PAIR | {"topic": value})
    assert list(load_pairs(Preferences(file=path, columns={"category": "topic"}))["category"]) == [
        expected
    ]


def test_several_columns_make_one_category(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        PAIR | {"x": "code", "y": "rust"},
        PAIR | {"prompt": "Another?", "x": "code", "y": None},
    )
    assert list(
        load_pairs(Preferences(file=path, columns={"category": ["x", "y"]}))["category"]
    ) == ["code / rust", "code"]


# --- implicit prompts


def test_a_shared_start_of_plain_text_is_the_prompt(read):
    assert read({"chosen": "The sky is blue.", "rejected": "The sky is bled."}) == [
        ("The sky is", "blue.", "bled.", 1.0)
    ]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("Blue.", "Green.", "no 'prompt' (columns found: chosen, rejected)"),
        ("The sky", "The sky", "the same text"),
        ("Go ", "Go on", "'chosen' is empty"),
        ("Thesky", "Thesun", "no 'prompt'"),
    ],
)
def test_plain_text_without_a_shared_start(refused, one, other, found):
    assert found in refused({"chosen": one, "rejected": other})


def test_shared_turns_are_the_prompt(read):
    before = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    ((prompt, chosen, rejected, _),) = read(
        {"chosen": [*before, say("assistant", "x")], "rejected": [*before, say("assistant", "y")]}
    )
    assert dialogues.messages(prompt) == before and (chosen, rejected) == ("x", "y")


@pytest.mark.parametrize(
    "other",
    [
        [say("user", "z"), say("assistant", "y")],
        [say("user", "a")],
        [say("user", "a"), say("assistant", "y"), say("user", "more")],
        [say("user", "a"), say("user", "y")],
        [say("user", "a"), say("assistant", "x")],
    ],
)
def test_dialogues_that_differ_elsewhere(refused, other):
    assert "line 1: " in refused(
        {"chosen": [say("user", "a"), say("assistant", "x")], "rejected": other}
    )


def test_a_prompt_missing_in_one_row_alone_is_no_implicit_prompt(refused):
    assert "line 2: no 'prompt'" in refused(
        PAIR, {"chosen": "The sky is blue.", "rejected": "The sky is red."}
    )


# --- rows that cannot be used


def test_bad_rows_are_dropped_and_counted(tmp_path):
    rows = [
        PAIR,
        PAIR | {"chosen": ""},
        PAIR | {"chosen": " "},
        PAIR | {"rejected": PAIR["chosen"]},
        PAIR | {"harmful": "maybe"},
        PAIR | {"label": 0.3},
    ]
    good = [{"prompt": f"{k}?", "chosen": "a", "rejected": "b"} for k in range(9)]
    block = {"file": write(tmp_path / "mine.jsonl", *rows, *good), "bad_rows": "drop"}
    settings = reading.validate(
        {"preferences": block, "evaluation": {"replicates": 0}, "selection": {"budget": 2}}, "test"
    )
    assert len(own_pairs(settings)) == 10
    dropped = data.dropped(settings)
    assert set(dropped["data"]) == {"preferences"}
    places = [place.replace(f"{block['file']}, ", "").split("\n") for place in dropped["places"]]
    assert list(zip(dropped["reason"], dropped["rows"], places, strict=True)) == [
        ("'chosen' is empty", 2, ["line 2", "line 3"]),
        ("chosen and rejected are the same text", 1, ["line 4"]),
        ("'harmful' is neither true nor false", 1, ["line 5"]),
        ("'label' is none of 1, 0 and 0.5", 1, ["line 6"]),
    ]
    assert f"'chosen' is empty ({block['file']}, line 2, line 3)\n" in dropped_text(dropped)


def test_a_set_of_bad_rows_alone_says_what_was_wrong(refused):
    assert refused(PAIR | {"chosen": ""}, bad_rows="drop").endswith(
        "holds no preference pairs that can be used (1 dropped: 'chosen' is empty)"
    )


def test_a_missing_column_is_never_a_bad_row(refused):
    assert "no 'chosen'" in refused({"prompt": "a", "rejected": "b"}, bad_rows="drop")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "label", "category", "harmful"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    ),
    st.sampled_from(["stop", "drop"]),
)
def test_any_row_is_read_or_refused_in_one_sentence(tmp_path, row, mode):
    try:
        table = load_pairs(
            Preferences(file=write(tmp_path / "mine.jsonl", PAIR, row), bad_rows=mode)
        )
    except InputError as error:
        assert "mine.jsonl" in str(error) and "\n" not in str(error)
    else:
        assert all(
            isinstance(text, str) and text.strip()
            for text in table[["prompt", "chosen", "rejected", "category"]].to_numpy().ravel()
        )


# --- choosing, and prompts that say the same


def test_n_pairs_are_chosen_by_the_seed_and_evenly(tmp_path):
    rows = [
        {"prompt": f"{k}?", "chosen": "a", "rejected": "b", "category": "xy"[k % 3 == 0]}
        for k in range(300)
    ]
    path = write(tmp_path / "mine.jsonl", *rows)
    tables = [load_pairs(Preferences(file=path, n=40), seed) for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])
    assert Counter(tables[0]["category"]) == {"x": 20, "y": 20}
    turned = load_pairs(Preferences(file=write(tmp_path / "turned.jsonl", *rows[::-1]), n=40))
    assert set(turned["prompt"]) == set(tables[0]["prompt"]), "whatever the order of the rows"


def run(**blocks):
    return reading.validate(
        blocks | {"selection": {"budget": 2}, "evaluation": {"replicates": 0}}, "test"
    )


def test_prompts_that_differ_in_spaces_and_case_never_meet_in_two_splits(tmp_path):
    rows = [{"prompt": f"Question number {k}?"} for k in range(20)] + [
        {"prompt": f"  question  NUMBER {k}?\n"} for k in range(0, 20, 2)
    ]
    settings = run(prompts={"file": write(tmp_path / "mine.jsonl", *rows)})
    assert len(load_prompts(settings)) == 20 and shared(data.dropped(settings)) == 10


def test_prompts_shared_with_the_preferences_are_dropped_and_counted(tmp_path):
    pairs = [{"prompt": f"Question {k}?", "chosen": "a", "rejected": "b"} for k in range(8)] + [
        {"prompt": "question 0?", "chosen": "a", "rejected": "b"}
    ]
    prompts = [{"prompt": f"question  {k}?"} for k in range(20)]
    settings = run(
        prompts={"file": write(tmp_path / "prompts.jsonl", *prompts)},
        preferences={"file": write(tmp_path / "pairs.jsonl", *pairs)},
    )
    table = load_prompts(settings)
    assert Counter(table["split"] == "train") == {True: 8, False: 12}
    assert table["prompt"].map(lambda p: " ".join(p.lower().split())).is_unique
    dropped = data.dropped(settings)
    assert dropped.drop(columns="places").to_dict("records") == [
        {"data": "preferences", "reason": "prompt says the same as another one", "rows": 1},
        {"data": "prompts", "reason": "prompt says the same as one of the preferences", "rows": 8},
    ]
    assert shared(dropped) == 9
    dropped.to_parquet(tmp_path / "dropped.parquet")
    first = f"{tmp_path / 'prompts.jsonl'}, line 1, line 2, line 3, line 4, line 5 and more"
    assert (
        dropped_text(pd.read_parquet(tmp_path / "dropped.parquet"))
        == "9 prompts dropped because another one says the same, 0 rows that could not be used\n  1"
        f" of preferences: prompt says the same as another one ({tmp_path / 'pairs.jsonl'}, line"
        f" 9)\n  8 of prompts: prompt says the same as one of the preferences ({first})"
    )


@pytest.mark.parametrize("task", ["helpfulness", "safety", "instructions"])
def test_embedded_prompts_share_nothing(task):
    dropped = data.dropped(reading.validate({"task": task}, "test"))
    assert len(dropped) == 0 and dropped_text(dropped).startswith("0 prompts dropped")
    assert embedded_prompts(task)["prompt"].map(_said).is_unique


def test_repeated_prompts_are_counted_where_bad_rows_are_dropped(tmp_path):
    path = write(tmp_path / "mine.jsonl", *[{"prompt": f"{k % 9}?"} for k in range(12)])
    settings = run(prompts={"file": path, "bad_rows": "drop"})
    assert len(load_prompts(settings)) == 9 and list(data.dropped(settings)["rows"]) == [3]


def test_data_that_changed_is_read_again(tmp_path):
    path = write(tmp_path / "mine.jsonl", PAIR)
    assert len(own_pairs(run(preferences={"file": path}))) == 1
    write(tmp_path / "mine.jsonl", PAIR, PAIR | {"prompt": "Another?"})
    assert len(own_pairs(run(preferences={"file": path}))) == 2


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ({"file": "a.jsonl", "source": "x/y"}, "file and source are both set"),
        ({"revision": "abc"}, "revision belongs to a source"),
        ({"recipe": "hh"}, "pku-saferlhf"),
        ({"columns": {"prompt": 3}}, "columns.prompt"),
        ({"bad_rows": "skip"}, "'auto', 'stop' or 'drop'"),
    ],
)
def test_blocks_that_do_not_go_together(block, found):
    with pytest.raises(InputError) as caught:
        reading.validate({"preferences": block, "evaluation": {"replicates": 0}}, "test")
    assert found in str(caught.value)
