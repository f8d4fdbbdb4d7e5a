"""Completions from elsewhere: every layout with members that nobody gave, and what is refused."""

import json
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from own_files import refusal, write

from shfcas_lib.base import dialogues
from shfcas_lib.data.completions import (
    counted_completions,
    described,
    needed,
    read_completions,
)
from shfcas_lib.params.schema import Completions

TURNS = [
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "A wren."},
    {"role": "user", "content": "Another."},
]


def plain():
    return pd.DataFrame(
        {
            "prompt": ["a", "a", "b", "b"],
            "completion": ["x", "y", "z", "w"],
            "logp": [-1.0, -2.0, -3.0, -4.0],
            "reward": [0.1, 0.2, 0.3, 0.4],
        }
    )


def texts(table):
    """(prompt, completion) to the row, the order of rows left aside."""
    return table.set_index(["prompt", "completion"]).sort_index()


# --- a row per completion


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl", ".json"])
def test_every_kind_of_file_gives_the_same_table(tmp_path, ending):
    path, table = tmp_path / f"c{ending}", plain()
    if ending == ".parquet":
        table.to_parquet(path)
    elif ending == ".csv":
        table.to_csv(path, index=False)
    elif ending == ".json":
        path.write_text(json.dumps(table.to_dict("records")))
    else:
        write(path, *table.to_dict("records"))
    read = read_completions(path)
    pd.testing.assert_frame_equal(read, read_completions(table))
    assert list(read) == [
        *("prompt_id", "index", "prompt", "completion", "category", "harmful", "logp", "reward")
    ]
    assert read["prompt_id"].tolist() == [dialogues.prompt_id(text) for text in read["prompt"]]
    assert read["prompt_id"].is_monotonic_increasing and read["index"].tolist() == [0, 1, 0, 1]
    assert texts(read).loc[("b", "w"), ["logp", "reward"]].tolist() == [-4.0, 0.4]


def test_the_whole_table_and_its_rows_are_read_alike():
    """A list in one more column sends a table through the row by row reader."""
    table = plain().assign(
        index=[7, 3, 0, 1],
        gold=[1, 0, 2, 5],
        model=["m", "m", "n", "n"],
        category=["k", "k", "l", None],
    )
    by_row = table.assign(token_logps=[[-1.0], [-1.0, -1.0], [-3.0], [-2.0, -2.0]])
    read = read_completions(table)
    pd.testing.assert_frame_equal(
        read, read_completions(by_row).drop(columns=["n_tokens", "logp_mean"])
    )
    assert read["index"].tolist() in ([0, 1, 3, 7], [3, 7, 0, 1])
    assert texts(read).loc[("a", "x"), "index"] == 7


def test_a_prompt_of_several_turns_keeps_its_turns_and_its_id(tmp_path):
    row = {"prompt": TURNS, "completion": [{"role": "assistant", "content": "A robin."}]}
    path = tmp_path / "c.parquet"
    pd.DataFrame([row, row]).to_parquet(path)
    read = read_completions(path)
    assert dialogues.messages(read["prompt"][0]) == TURNS
    assert read["completion"].tolist() == ["A robin."] * 2
    # this library's own tables hold the prompt as that string already
    again = read_completions(read[["prompt", "completion"]])
    assert again["prompt_id"].tolist() == read["prompt_id"].tolist()


def test_an_empty_completion_is_one_and_identical_ones_are_two():
    read = read_completions(plain().assign(completion=["", "same", "same", "same"]))
    assert sorted(read["completion"]) == ["", "same", "same", "same"]


def test_several_rewards_are_added_up_and_columns_have_the_users_names():
    table = plain().rename(columns={"completion": "response", "prompt": "question"})
    table = table.assign(help=[1.0, 2, 3, 4], harm=[0.5, 0.5, 0.5, 0.5])
    names = {"completion": "response", "prompt": "question", "reward": ["help", "harm"]}
    read = read_completions(table, names)
    assert texts(read)["reward"].to_dict() == {
        ("a", "x"): 1.5,
        ("a", "y"): 2.5,
        ("b", "z"): 3.5,
        ("b", "w"): 4.5,
    }
    by_row = table.assign(token_logps=[[-1.0], [-2.0], [-3.0], [-4.0]])
    assert read_completions(by_row, names)["reward"].tolist() == read["reward"].tolist()


# --- a row per prompt


def rows_of_prompts():
    return pd.DataFrame(
        {
            "prompt": ["a", "b"],
            "completions": [["x", "y"], ["z", "w", "v"]],
            "rewards": [[0.1, 0.2], [0.3, 0.4, 0.5]],
            "logps": [[-1.0, -2.0], [-3.0, -4.0, -5.0]],
            "model": ["m", "n"],
        }
    )


def test_a_row_per_prompt_with_lists_is_unfolded(tmp_path):
    rows_of_prompts().to_parquet(tmp_path / "c.parquet")
    write(tmp_path / "c.jsonl", *rows_of_prompts().to_dict("records"))
    for file in ("c.parquet", "c.jsonl"):
        read = texts(read_completions(tmp_path / file))
        assert len(read) == 5 and read.loc[("b", "v"), "reward"] == 0.5
        assert read.loc[("b", "w"), ["index", "logp", "model"]].tolist() == [1, -4.0, "n"]


@pytest.mark.parametrize(
    "column, value, words",
    [
        ("rewards", [[0.1, 0.2], [0.3, 0.4]], ["row 2", "'rewards' has 2 entries", "3"]),
        ("logps", [[-1.0], [-3.0, -4.0, -5.0]], ["row 1", "'logps' has 1 entries", "2"]),
        ("rewards", [0.1, 0.2], ["row 1", "'rewards' has no list"]),
        ("completions", [[], ["z", "w", "v"]], ["row 1", "empty list"]),
    ],
)
def test_lists_of_another_length_are_refused(column, value, words):
    said = refusal(read_completions, rows_of_prompts().assign(**{column: value}))
    assert all(word in said for word in words), said


def test_one_bad_completion_of_several_is_dropped_alone():
    table = rows_of_prompts().assign(completions=[["x", None], ["z", "w", "v"]])
    assert "no text" in refusal(read_completions, table)
    block = Completions(bad_rows="drop")
    read, left_out = counted_completions(block, table)
    assert len(read) == 4 and sum(left_out.values()) == 1


# --- what other programs write


def trl(**columns):
    table = {
        "step": [5, 5, 5, 5],
        "prompt": ["p", "p", "q", "q"],
        "completion": ["a", "b", "a", "c"],
        "len_reward": [0.1, 0.2, 0.3, 0.4],
        "advantage": [-1.0, 1.0, -1.0, 1.0],
    }
    return pd.DataFrame(table | columns)


def test_trls_logs_are_read_from_their_folder_and_each_step_is_a_policy(tmp_path):
    for step in (5, 10):
        text = ["a", "b", "a", "c"] if step == 5 else ["d", "e", "f", "g"]
        table = trl(step=[step] * 4, completion=text)
        table.to_parquet(tmp_path / f"completions_{step:05d}.parquet")
    read = read_completions(tmp_path)
    assert len(read) == 8 and read["model"].unique().tolist() == ["step 5", "step 10"]
    assert texts(read).loc[("q", "g"), "reward"] == 0.4 and "logp" not in read


@pytest.mark.parametrize("conversational", [False, True])
def test_what_trl_logs_again_counts_once(tmp_path, conversational):
    """One batch feeds several steps, and each of them logs it."""
    for step in (9, 10, 11):
        table = trl(step=[step] * 4, completion=["a", "b", "a", "c" if step < 11 else "new"])
        if conversational:
            for name, role in (("prompt", "user"), ("completion", "assistant")):
                table[name] = [[{"role": role, "content": text}] for text in table[name]]
        table.to_parquet(tmp_path / f"completions_{step:05d}.parquet")
    read, left_out = counted_completions(Completions(file=str(tmp_path)))
    assert read["model"].value_counts().to_dict() == {"step 9": 4, "step 11": 4}
    assert left_out == Counter({"logged again by a later step of the same batch": 4})


def test_trl_with_two_reward_functions_asks_which():
    table = trl()
    table.insert(4, "format_reward", 1.0)
    said = refusal(read_completions, table)
    assert "len_reward, format_reward" in said and "columns.reward" in said
    both = read_completions(table, {"reward": ["len_reward", "format_reward"]})
    assert texts(both).loc[("p", "a"), "reward"] == pytest.approx(1.1)


def response(*choices, **others):
    return {"id": "r", "object": "chat.completion", "model": "m", "choices": list(choices)} | others


def chat(text, *logprobs):
    logged = {"content": [{"token": "t", "logprob": value} for value in logprobs]}
    message = {"role": "assistant", "content": text}
    return {"index": 0, "message": message, "logprobs": logged if logprobs else None}


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a bird."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED, "response": response(chat("A wren.", -1, -2), chat("A kite.", -3))},
        {
            "request": {"messages": ASKED},
            "response": response(chat("A wren.", -1, -2), chat("A kite.", -3)),
        },
        response(chat("A wren.", -1, -2), chat("A kite.", -3), messages=ASKED),
        response(
            {"text": "A wren.", "logprobs": {"tokens": ["A", "w"], "token_logprobs": [-1, -2]}},
            {"text": "A kite.", "logprobs": {"tokens": ["A"], "token_logprobs": [-3]}},
            prompt="Name a bird.",
        ),
    ],
)
def test_openai_responses_with_their_requests(tmp_path, row):
    read = read_completions(write(tmp_path / "r.jsonl", row))
    assert read["prompt"].tolist() == ["Name a bird."] * 2 and read["model"].tolist() == ["m", "m"]
    assert read["logp"].tolist() == [-3.0, -3.0] and read["n_tokens"].tolist() == [2, 1]
    assert read["logp_mean"].tolist() == [-1.5, -3.0]


def test_an_openai_batch_finds_its_requests_by_custom_id(tmp_path):
    asked = [
        {
            "custom_id": f"k{n}",
            "body": {
                "messages": [
                    ASKED[1],
                ][:1]
            },
        }
        for n in (1, 2)
    ]
    requests = write(tmp_path / "in.jsonl", *asked)
    replies = [
        {"custom_id": f"k{n}", "response": {"status_code": 200, "body": response(chat(text, -1))}}
        for n, text in ((2, "A wren."), (1, "A kite."))
    ]
    path = write(tmp_path / "out.jsonl", *replies)
    read = read_completions(Completions(file=str(path), requests=str(requests)))
    assert sorted(read["completion"]) == ["A kite.", "A wren."] and read["index"].tolist() == [0, 1]
    said = refusal(read_completions, path)
    assert "line 1" in said and "completions.requests" in said


def test_a_token_of_minus_9999_is_no_log_probability(tmp_path):
    row = {"messages": ASKED, "response": response(chat("A wren.", -1, -9999.0), chat("B", -1))}
    path = write(tmp_path / "r.jsonl", row)
    assert "-9999" in refusal(read_completions, path)
    assert read_completions(path, drop=True)["completion"].tolist() == ["B"]


def sample(doc, prompt, *replies, filter="none", **others):
    arguments = {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}}
    row = {"doc_id": doc, "doc": {}, "target": "4", "arguments": arguments}
    return row | {"resps": [list(replies)], "filter": filter} | others


def test_samples_of_the_harness_count_once_whatever_filters_they_went_through(tmp_path):
    rows = [
        sample(k, f"{k} + 2 =", "4", "5", filter=name)
        for name in ("strict", "loose")
        for k in (1, 2)
    ]
    write(tmp_path / "samples_sum_2026.jsonl", *rows)
    messages = json.dumps([{"role": "user", "content": "1 + 1 ="}])
    write(tmp_path / "samples_chat_2026.jsonl", sample(0, messages, "2", filter="other"))
    (tmp_path / "results_2026.json").write_text("{}")
    read = read_completions(tmp_path)
    assert read.groupby("prompt").size().to_dict() == {"1 + 2 =": 2, "2 + 2 =": 2, "1 + 1 =": 1}


def test_choices_of_the_harness_come_with_their_likelihoods(tmp_path):
    row = {
        "doc_id": 0,
        "arguments": {
            f"gen_args_{k}": {"arg_0": "A cat is", "arg_1": text}
            for k, text in enumerate((" a pet", " a car"))
        },
        "resps": [[["-1.5", "True"]], [["-7.25", "False"]]],
        "filter": "none",
    }
    read = read_completions(write(tmp_path / "samples_mc.jsonl", row))
    assert texts(read)["logp"].to_dict() == {
        ("A cat is", " a pet"): -1.5,
        ("A cat is", " a car"): -7.25,
    }
    # older versions log lists
    row["arguments"] = [["A cat is", " a pet"], ["A cat is", " a car"]]
    again = read_completions(write(tmp_path / "samples_old.jsonl", row))
    pd.testing.assert_frame_equal(again, read)


def test_alpaca_eval_outputs_of_two_models(tmp_path):
    one = {"instruction": "Say", "input": "hi", "output": "hey", "generator": "m1", "dataset": "d"}
    other = {"instruction": "Say", "input": "hi", "output": "ho", "generator": "m2"}
    path = tmp_path / "model_outputs.json"
    path.write_text(json.dumps([one, other]))
    read = read_completions(path)
    assert read["prompt"].tolist() == ["Say\n\nhi"] * 2 and read["model"].tolist() == ["m1", "m2"]


# --- what is refused


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda t: t.rename(columns={"completion": "response"}),
            ["'completion'", "prompt, response, logp", "is it 'response'?", "columns"],
        ),
        (lambda t: t.rename(columns={"prompt": "Prompt"}), ["'prompt'", "is it 'Prompt'?"]),
        (lambda t: t.rename(columns={"prompt": "instructions"}), ["'prompt'", "instructions"]),
        (lambda t: t.assign(logp=[-1, 0.5, -1, 2]), ["row 2", "logp is 0.5", "2 rows are like it"]),
        (lambda t: t.assign(logp=[-1, -math.inf, -1, -1]), ["row 2", "logp is -inf"]),
        (lambda t: t.assign(reward=[0, 0, math.inf, 0]), ["row 3", "reward is inf"]),
        (lambda t: t.assign(index=[0, 1, 4, 4]), ["row 4", "row 3", "completion 4"]),
        (lambda t: t.assign(index=[0, 1.5, 0, 1]), ["row 2", "'index' is 1.5"]),
        (lambda t: t.assign(index=[0, 1, -1, 0]), ["row 3", "'index' is -1"]),
        (lambda t: t.assign(prompt=["a", "a", "  ", "b"]), ["row 3", "'prompt' is empty"]),
        (lambda t: t.assign(prompt=["a", None, "b", "b"]), ["row 2", "no 'prompt'"]),
        (lambda t: t.assign(completion=["x", "y", None, "w"]), ["row 3", "no 'completion'"]),
        (
            lambda t: t.assign(reward=["0.1", "0.2", "high", "0"]),
            ["row 1", "'reward'", "finite number"],
        ),
        (lambda t: t.assign(reward=[[1.0], [2.0], [3.0], [4.0]]), ["row 1", "'reward' is a list"]),
        (
            lambda t: t.assign(logp=[[-1.0], [-2.0], [-3.0], [-4.0]]),
            ["'logp' is a list", "token_logps"],
        ),
        (lambda t: t.assign(token_logps=[[-1.0], [-1.0], [-3.0], [-4.0]]), ["row 2", "sum to -1"]),
        (
            lambda t: t.assign(token_logps=[[-1.0], [-2.0, -2.0], [-3.0], [-4.0]]),
            ["row 2", "logp is their mean"],
        ),
        (lambda t: t.assign(harmful=[0, 1, 2, 0]), ["row 3", "'harmful' is 2"]),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(change, words):
    said = refusal(read_completions, change(plain()))
    assert all(word in said for word in words), said


def test_two_columns_of_one_name_are_refused():
    twice = pd.concat([plain(), plain()[["reward"]]], axis=1)
    assert "two columns 'reward'" in refusal(read_completions, twice)


def test_bad_rows_are_dropped_and_counted_by_reason():
    table = plain().assign(logp=[-1, 0.5, -3, -4], reward=[1, 2, 3, np.inf])
    read, left_out = counted_completions(Completions(bad_rows="drop"), table)
    assert len(read) == 2 and left_out == Counter({"logp above 0": 1, "reward infinite": 1})
    assert "1 rows left out: logp above 0" in described(read, left_out)
    said = refusal(read_completions, table.assign(logp=1.0), None, None, True)
    assert "holds no completions" in said


def test_the_sum_of_rounded_tokens_is_the_sum():
    """Logs round to a few digits; a log-probability of half precision is off by a hundredth."""
    tokens = [[round(-1 / 3, 4)] * 30, [-2.0], [-3.0], [-4.0]]
    read = read_completions(plain().assign(logp=[-10.0, -2, -3, -4], token_logps=tokens))
    assert texts(read).loc[("a", "x"), ["logp", "n_tokens"]].tolist() == [-10.0, 30]


# --- whose log-probability


def test_log_probabilities_of_several_policies_are_not_compared():
    table = plain().assign(model=["m", "n", "m", "m"])
    read = read_completions(table)
    said = refusal(needed, read, ["logp"], False, Counter())
    assert "m, n" in said and "logp_of" in said and "'a'" in said
    assert len(needed(read_completions(table, logp_of="m"), ["logp"], False, Counter())) == 4
    mixed = read_completions(table.assign(logp_of=["m", "n", "m", "m"]))
    assert "that of m, n" in refusal(needed, mixed, ["logp"], False, Counter())


def test_one_models_missing_logp_is_named_and_dropped_rows_are_counted():
    table = plain().assign(model=["m", "n", "m", "n"], logp=[-1, None, -3, None], logp_of="m")
    read = read_completions(table)
    said = refusal(needed, read, ["logp", "reward"], False, Counter())
    assert "2 of 4 completions have no logp" in said and "written by n beside others of m" in said
    left_out = Counter()
    assert len(needed(read, ["logp", "reward"], True, left_out)) == 2
    assert left_out == Counter({"no logp": 2})


def test_a_column_that_is_missing_altogether_is_named_with_what_helps():
    read = read_completions(plain().drop(columns="logp"))
    said = refusal(needed, read, ["logp"], True, Counter(), ": a run computes it")
    assert "no logp" in said and said.endswith(": a run computes it")


def test_what_a_table_holds_is_said():
    table = pd.concat([plain(), pd.DataFrame({"prompt": ["c"], "completion": ["v"]})])
    said = described(read_completions(table, logp_of="pi"), {})
    assert "5 completions of 3 prompts, 1 to 2 each" in said
    assert "logp is that of pi" in said and "1 completions have no reward" in said
    assert "1 prompts have one completion" in said
