"""Rows mean what they say: votes, messages in text, transcripts, questions that differ, spellings
of one prompt, names of classes."""

import json
import unicodedata

import numpy as np
import pandas as pd
import pytest
from own_files import refusal, run, write

from shfcas_lib import data
from shfcas_lib.base import dialogues
from shfcas_lib.base.texts import canonical
from shfcas_lib.data.notes import notes
from shfcas_lib.data.preferences import as_completions, load_pairs
from shfcas_lib.data.prompts import load_prompts, shared
from shfcas_lib.experiment import checks
from shfcas_lib.params.schema import Preferences
from shfcas_lib.storage.labels import LabelStore

PAIR = {"prompt": "q?", "chosen": "one", "rejected": "two"}
TURNS = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "one"}]
OTHER = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": 'it\'s "two"}\n {3'}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pairs_of(tmp_path, *rows, **block):
    return load_pairs(Preferences(file=str(write(tmp_path / "mine.jsonl", *rows)), **block))


# --- votes


def test_votes_about_one_pair_give_their_mean_as_the_label_store_does(tmp_path):
    turned = {"prompt": "q?", "chosen": "two", "rejected": "one"}
    table = pairs_of(tmp_path, turned, PAIR, PAIR, PAIR | {"label": 0.5}, PAIR)
    (row,) = table.to_dict("records")
    assert (row["chosen"], row["rejected"], row["votes"]) == ("one", "two", 5)
    with LabelStore(tmp_path / "labels.sqlite") as store:
        question = {"prompt_id": "p", "i": 0, "j": 1, "strategy": "s", "reason": "r"}
        for who, answer in enumerate(["second", "first", "first", "tie", "first"]):
            store.add(question, answer, f"person {who}")
        assert store.labels().at[0, "label"] == pytest.approx(row["label"])
    _, preferences = as_completions(table)
    assert preferences.to_dict("records") == [
        {"prompt_id": row["prompt_id"], "i": 0, "j": 1, "label": pytest.approx(0.7)}
    ]


def test_a_tied_vote_is_a_tie_and_the_order_of_rows_does_not_matter(tmp_path):
    turned = {"prompt": "q?", "chosen": "two", "rejected": "one"}
    assert list(pairs_of(tmp_path, PAIR, turned)["label"]) == [0.5]
    for rows in ([PAIR, turned, turned], [turned, turned, PAIR]):
        (row,) = pairs_of(tmp_path, *rows).to_dict("records")
        assert (row["chosen"], row["label"]) == ("two", pytest.approx(2 / 3))


def test_n_counts_pairs_with_all_their_votes(tmp_path):
    rows = []
    for k in range(60):
        pair = {"prompt": f"{k}?", "chosen": "a", "rejected": "b"}
        rows += [pair, pair, pair | {"chosen": "b", "rejected": "a"}]
    table = pairs_of(tmp_path, *np.random.default_rng(0).permutation(rows), n=20)
    assert len(table) == 20 and set(table["votes"]) == {3}
    assert table["label"].to_numpy() == pytest.approx(2 / 3)


def test_check_says_votes_pairs_and_n_beyond_the_data(tmp_path):
    rows = []
    for k in range(9):
        pair = {"prompt": f"{k}?", "chosen": "a", "rejected": "b"}
        rows += [pair, pair, pair | {"chosen": "b", "rejected": "a"}]
    block = {"file": str(write(tmp_path / "mine.jsonl", *rows)), "n": 2000}
    params = run(
        preferences=block,
        prompts={
            "file": str(write(tmp_path / "p.jsonl", *[{"prompt": f"{k}!"} for k in range(8)])),
            "n": 50,
        },
        selection={"budget": 4, "prompts": "train_and_feedback"},
        evaluation={"replicates": 0},
    )
    told = notes(params, load_prompts(params))
    assert (
        "27 rows are votes about 9 pairs (9 have more than one, on 9 of them people differ)"
        in told[0]
    )
    assert told[1:] == [
        "preferences: 9 pairs: 9 train",
        "preferences.n: 2000 asked for, the data has 9",
        "prompts.n: 50 asked for, the data has 8",
    ]


def test_pairs_that_can_be_asked_are_those_that_exist(tmp_path):
    """On training prompts of the user's own there are the answers given, and no samples."""
    rows = [{"prompt": f"{k}?", "chosen": "a", "rejected": "b"} for k in range(10)]
    rows.append({"prompt": "0?", "chosen": "a", "rejected": "c"})
    params = {
        "preferences": {"file": str(write(tmp_path / "mine.jsonl", *rows))},
        "prompts": {
            "file": str(write(tmp_path / "p.jsonl", *[{"prompt": f"{k}!"} for k in range(8)]))
        },
        "sampling": {"n": 4},
        "evaluation": {"replicates": 0},
    }
    both = run(**params, selection={"budget": 36, "prompts": "train_and_feedback"})
    prompts = load_prompts(both)
    feedback = int((prompts["split"] == "feedback").sum())
    # one prompt has three answers, nine have two
    assert checks.askable_pairs(both, prompts) == 6 * feedback + 9 + 3
    assert checks.askable_pairs(run(**params), prompts) == 6 * feedback
    beyond = run(**params, selection={"budget": 6 * feedback + 13, "prompts": "train_and_feedback"})
    assert f"expected at most {6 * feedback + 12}" in refusal(checks.check, beyond)


# --- messages in text


def notations():
    numpy_text = str(np.array(OTHER, dtype=object))
    assert "}\n {" in numpy_text
    yield "json", json.dumps(TURNS), json.dumps(OTHER)
    yield "indented", json.dumps(TURNS, indent=1), json.dumps(OTHER, indent=1)
    yield "python", str(TURNS), str(OTHER)
    yield "numpy", str(np.array(TURNS, dtype=object)), numpy_text
    yield "array", repr(np.array(TURNS, dtype=object)), repr(np.array(OTHER, dtype=object))
    reordered = [{"content": turn["content"], "role": turn["role"]} for turn in OTHER]
    yield "reordered", str(TURNS), str(reordered)


@pytest.mark.parametrize(("kind", "one", "other"), list(notations()), ids=lambda v: v[:8])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_messages_that_stand_in_text_are_messages(tmp_path, kind, one, other, suffix):
    path = tmp_path / f"mine.{suffix}"
    row = {"chosen": one, "rejected": other}
    if suffix == "csv":
        pd.DataFrame([row]).to_csv(path, index=False)
    else:
        write(path, row)
    table = load_pairs(path)
    assert table[["prompt", "chosen", "rejected"]].to_dict("records") == [
        {"prompt": "q?", "chosen": "one", "rejected": OTHER[1]["content"]}
    ]


def test_an_answer_of_one_message_and_a_prompt_of_several(tmp_path):
    history = [*TURNS, {"role": "user", "content": "and?"}]
    row = {"prompt": str(history), "chosen": str(TURNS[1:]), "rejected": str(OTHER[1])}
    (found,) = pairs_of(tmp_path, row).to_dict("records")
    assert dialogues.messages(found["prompt"]) == history and found["chosen"] == "one"


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", '[{"name": "x", "role": "admin"}]', "{'role'}", "[{role: user}]", "{'a': 1}"],
)
def test_other_notation_stays_text(tmp_path, text):
    assert list(pairs_of(tmp_path, PAIR | {"chosen": text})["chosen"]) == [text]


def test_messages_that_were_cut_off_are_refused(tmp_path):
    cut = str(TURNS)[:-12]
    message = refusal(pairs_of, tmp_path, PAIR | {"chosen": cut})
    assert "'chosen' is text that starts like messages" in message and "cut off?" in message


@pytest.mark.parametrize("role", [["user"], {"a": 1}, 1, None, "tool", True])
def test_a_role_that_is_no_speaker(tmp_path, role):
    for prompt in ([{"role": role, "content": "q?"}], str([{"role": role, "content": "q?"}])):
        message = refusal(pairs_of, tmp_path, PAIR | {"prompt": prompt})
        assert message.endswith(
            f"'prompt' has a message of {role!r}, expected user, assistant or system"
        )
    assert (
        pairs_of(
            tmp_path, PAIR, PAIR | {"prompt": [{"role": role, "content": "q?"}]}, bad_rows="drop"
        ).shape[0]
        == 1
    )


# --- transcripts


def transcript(question, answer, ends="\n"):
    text = f"\n\nHuman: {question}\n\nAssistant: {answer}"
    return text.replace("\n", ends)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_hh_transcripts_with_any_line_ends(tmp_path, ends):
    rows = [
        {"chosen": transcript("a?", "Yes\nof course.", ends), "rejected": transcript("a?", "No.")}
    ]
    (row,) = pairs_of(tmp_path, *rows, recipe="hh-rlhf").to_dict("records")
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("a?", "Yes\nof course.", "No.")
    assert row["category"] == "all"


def test_hh_rows_in_a_csv_whose_prompt_stands_apart(tmp_path):
    table = pd.DataFrame(
        [{"prompt": "\n\nHuman: a?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."}]
    )
    table.to_csv(tmp_path / "mine.csv", index=False)
    (row,) = load_pairs(Preferences(file=str(tmp_path / "mine.csv"), recipe="hh-rlhf")).to_dict(
        "records"
    )
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("a?", "Yes.", "No.")


def test_hh_files_in_a_folder_of_ones_own(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    write(
        folder / "train.jsonl",
        {"chosen": transcript("a?", "Yes."), "rejected": transcript("a?", "No.")},
    )
    table = load_pairs(Preferences(source=str(folder), recipe="hh-rlhf"))
    assert list(table["prompt"]) == ["a?"]


@pytest.mark.parametrize("prompts", [False, True])
def test_a_transcript_that_no_recipe_claims_is_named(tmp_path, prompts):
    row = {"chosen": transcript("a?", "Yes."), "rejected": transcript("a?", "No.")}
    path = str(write(tmp_path / "mine.jsonl", row))
    if prompts:
        message = refusal(load_prompts, run(prompts={"file": path}))
    else:
        message = refusal(pairs_of, tmp_path, row)
    assert "'chosen' is a transcript" in message and "recipe hh-rlhf reads such pairs" in message


@pytest.mark.parametrize(
    "text",
    [
        "### Human: a?\n### Assistant: yes",
        "<|im_start|>user\na?<|im_end|>",
        "<s>[INST] a? [/INST] yes",
        "<|user|>\na?",
        "<start_of_turn>user\na?",
        "\n\nHuman: a?\n\nAssistant:",
    ],
)
def test_other_transcripts_are_refused_in_prompts_too(tmp_path, text):
    message = refusal(pairs_of, tmp_path, PAIR | {"prompt": text})
    assert "'prompt' is a transcript" in message and "messages (role, content)" in message


@pytest.mark.parametrize(
    "text", ["Human: the species", "Say <|user|> aloud", "User: a word", "# Human"]
)
def test_text_that_only_names_a_speaker_is_text(tmp_path, text):
    assert list(pairs_of(tmp_path, PAIR | {"prompt": text})["prompt"]) == [text]


# --- questions and answers


def said(*texts):
    roles = ["user", "assistant"] * 3
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


@pytest.mark.parametrize("prompt", ["q?", said("q?"), said("h?", "hello", "q?")])
def test_an_answer_that_repeats_another_question_is_refused(tmp_path, prompt):
    row = {"prompt": prompt, "chosen": said("r?", "one"), "rejected": said("r?", "two")}
    message = refusal(pairs_of, tmp_path, row)
    assert "'chosen' answers another question than the prompt: its user turn is 'r?'" in message
    assert len(pairs_of(tmp_path, row, PAIR, bad_rows="drop")) == 1


@pytest.mark.parametrize(
    ("prompt", "repeated"),
    [
        ("q?", ["q?"]),
        ("cafe\u0301  q?", ["café q?"]),
        (said("h?", "hello", "q?"), ["h?", "hello", "q?"]),
        (said("h?", "hello", "q?"), ["q?"]),
    ],
)
def test_an_answer_that_repeats_the_prompt_or_its_last_turn(tmp_path, prompt, repeated):
    chosen, rejected = (said(*repeated, text) for text in ("one", "two"))
    if len(repeated) % 2:
        (row,) = pairs_of(
            tmp_path, {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        ).to_dict("records")
        assert (row["chosen"], row["rejected"]) == ("one", "two")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("one", "one "),
        ("a b", "a\nb"),
        ("a b", "a\u00a0 b"),
        ("café", "cafe\u0301"),
        ("ab", "a\u200bb"),
        ("a", "\ufeffa"),
    ],
)
def test_answers_that_differ_in_white_space_or_form_alone(tmp_path, one, other):
    row = {"prompt": "r?", "chosen": one, "rejected": other}
    assert "differ in white space or Unicode form alone" in refusal(pairs_of, tmp_path, row)
    params = run(
        preferences={
            "file": str(
                write(tmp_path / "m.jsonl", *[PAIR | {"prompt": f"{k}"} for k in range(9)], row)
            ),
            "bad_rows": "drop",
        },
        evaluation={"replicates": 0},
    )
    dropped = data.dropped(params)
    assert list(dropped["rows"]) == [1] and dropped.at[0, "places"].endswith("m.jsonl, line 10")


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u2060", "\u00ad"])
def test_an_answer_that_nobody_sees_is_empty(tmp_path, text):
    assert "'chosen' is empty" in refusal(pairs_of, tmp_path, PAIR | {"chosen": text})


def test_prompts_in_some_rows_only(tmp_path):
    without = {"chosen": "Well, yes", "rejected": "Well, no"}
    message = refusal(pairs_of, tmp_path, without, PAIR)
    assert "line 2: has a 'prompt', which the first row has not" in message
    assert "line 2: no 'prompt'" in refusal(pairs_of, tmp_path, PAIR, without)
    assert len(pairs_of(tmp_path, PAIR, without, bad_rows="drop")) == 1
    # a prompt column that is not asked for is none
    assert list(pairs_of(tmp_path, without, columns={"prompt": None})["prompt"]) == ["Well,"]


# --- spellings of one prompt


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            unicodedata.normalize("NFC", "Où est le café Å ?"),
            unicodedata.normalize("NFD", "Où est le café Å ?"),
        ),
        ("한국어 질문", unicodedata.normalize("NFD", "한국어 질문")),
        ("a b", "a\u00a0b"),
        ("word", "wo\u00adrd"),
        ("word", "wo\u200brd\ufeff"),
        ("ΌΝΟΜΑ", unicodedata.normalize("NFD", "όνομα")),
    ],
)
def test_two_spellings_are_one_prompt_for_the_split(tmp_path, one, other):
    rows = [{"prompt": f"{text} {k}"} for k in range(10) for text in (one, other)]
    params = run(prompts={"file": str(write(tmp_path / "mine.jsonl", *rows))})
    assert len(load_prompts(params)) == 10
    dropped = data.dropped(params)
    assert shared(dropped) == 10 and dropped.at[0, "places"].count("\n") == 9


@pytest.mark.parametrize(
    ("one", "other"),
    [("abc", "ａｂｃ"), ("ﬁne", "fine"), ("x²", "x2"), ("می‌روم", "میروم"), ("①", "1")],
)
def test_other_letters_are_another_prompt(one, other):
    assert canonical(one) != canonical(other)


# --- classes


def class_table():
    import datasets

    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "first": datasets.Value("string"),
            "second": datasets.Value("string"),
            "topic": datasets.ClassLabel(names=["birds", "bees"]),
            "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
            "w": datasets.ClassLabel(names=["second", "first", "tie"]),
            "h": datasets.ClassLabel(names=["true", "false"]),
        }
    )
    rows = {
        "prompt": ["a?", "b?", "c?"],
        "first": ["1", "1", "1"],
        "second": ["2", "2", "2"],
        "topic": [1, 0, None],
        "tags": [[1], [0, 1], []],
        "w": [0, 1, 2],
        "h": [0, 1, 1],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["saved", "parquet", "layout"])
def test_classes_go_by_their_names(tmp_path, kind):
    """Their numbers follow the order in which somebody listed the names."""
    table = class_table()
    columns = {"first": "first", "second": "second", "better": "w", "harmful": "h"}
    if kind == "saved":
        table.save_to_disk(tmp_path / "saved")
        place = {"file": str(tmp_path / "saved")}
    else:
        (tmp_path / "hub").mkdir()
        table.to_parquet(tmp_path / "hub" / "train.parquet")
        place = {"source": str(tmp_path / "hub")}
        if kind == "parquet":
            place = {"file": str(tmp_path / "hub" / "train.parquet")}
    pairs = load_pairs(Preferences(**place, columns=columns | {"category": "topic"}))
    assert list(pairs["category"]) == ["bees", "birds", "all"]
    assert list(pairs["chosen"]) == ["2", "1", "1"] and list(pairs["label"]) == [1.0, 1.0, 0.5]
    assert list(pairs["harmful"]) == [True, False, False]
    tagged = load_pairs(Preferences(**place, columns=columns | {"category": "tags"}))
    assert list(tagged["category"]) == ["y", "x", "none"]


def test_a_class_that_says_neither_true_nor_false_is_refused(tmp_path):
    import datasets

    features = datasets.Features(
        dict.fromkeys(("prompt", "chosen", "rejected"), datasets.Value("string"))
        | {"harmful": datasets.ClassLabel(names=["unsafe", "safe"])}
    )
    rows = {name: [value] for name, value in PAIR.items()} | {"harmful": [1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert "'harmful' is 'safe'" in refusal(load_pairs, Preferences(file=str(tmp_path / "saved")))
