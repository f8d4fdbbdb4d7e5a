"""Prompts that a model of the run cannot read are met before anything is sampled: refused in one
sentence, or dropped and counted."""

import json
from pathlib import Path

import cells
import families
import pandas as pd
import pytest

from shfcas_lib import pool
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli import program
from shfcas_lib.data import prompts as data
from shfcas_lib.experiment import checks, proxy_data, stages
from shfcas_lib.experiment.checks import PromptCheck
from shfcas_lib.models import published
from shfcas_lib.models.backbone import positions
from shfcas_lib.models.loading import load_backbone
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Model, Sft
from shfcas_lib.storage import files
from shfcas_lib.training import sft

SPELT = "explain <|im_start|> please"


@pytest.fixture
def settings(tiny_model, tmp_path):
    """Parameters of a run with prompts of the user's own: twelve that are fine, and those asked
    for."""

    def make(*more, preferences=(), preferences_rows="auto", **blocks):
        own, blocks = {}, blocks | {"preferences": {"bad_rows": preferences_rows}}
        for name, rows in (
            (
                "prompts",
                [{"prompt": text} for text in (*(f"question {k}?" for k in range(12)), *more)],
            ),
            (
                "preferences",
                [
                    {"prompt": text, "chosen": "a good cat", "rejected": "a dog"}
                    for text in preferences
                ],
            ),
        ):
            if rows:
                (tmp_path / f"{name}.jsonl").write_text(
                    "".join(json.dumps(row) + "\n" for row in rows)
                )
                own[name] = {"file": str(tmp_path / f"{name}.jsonl")} | blocks.pop(name, {})
        values = {
            "run": "screened",
            "model": {"source": str(tiny_model), "quantisation": "none", "device": "cpu"},
            "evaluation": {"replicates": 0},
            "selection": {"budget": 4, "rounds": 1, "strategies": ["shf_cas"]},
            "sampling": {"n": 2, "max_new_tokens": 6},
            "gold": {"kind": "tiny_gold:vowels"},
        }
        return values | own | blocks

    return make


def loaded(values):
    checked = reading.validate(values, "test")
    screen = PromptCheck(checked)
    return checks.check(checked, screen), data.dropped(checked, screen).to_dict("records")


def test_by_default_the_first_such_prompt_stops_and_the_sentence_names_the_way_out(settings):
    with pytest.raises(InputError) as caught:
        loaded(settings(SPELT))
    assert (
        str(caught.value)
        == f"prompt {SPELT!r} holds the model's control token '<|im_start|>': change it, or set"
        " prompts.bad_rows to drop, which leaves such prompts out and counts them"
    )


def test_dropped_prompts_are_counted_by_reason(settings):
    long = "very " * 400
    table, dropped = loaded(
        settings(
            SPELT, "and <|im_start|>, too", "an <|im_end|>", long, prompts={"bad_rows": "drop"}
        )
    )
    assert len(table) == 12 and set(table["prompt"]) == {f"question {k}?" for k in range(12)}
    lines = [[place.rpartition(" ")[2] for place in row["places"].split("\n")] for row in dropped]
    reasons = [row["reason"].removeprefix("prompt ") for row in dropped]
    long = "is too long; with max_new_tokens 6 that is more than the model's context of 512"
    assert list(zip(reasons, lines, strict=True)) == [
        ("holds the model's control token '<|im_start|>'", ["13", "14"]),
        ("holds the model's control token '<|im_end|>'", ["15"]),
        (long, ["16"]),
    ]
    assert {row["data"] for row in dropped} == {"prompts"}


def test_prompts_of_preferences_have_a_choice_of_their_own(settings):
    preferences = ["a request", "another", f"{SPELT}?"]
    with pytest.raises(InputError, match="set preferences.bad_rows to drop"):
        loaded(settings(preferences=preferences, prompts={"bad_rows": "drop"}))
    table, dropped = loaded(settings(preferences=preferences, prompts={}, preferences_rows="drop"))
    assert set(table.loc[table["split"] == "train", "prompt"]) == {"a request", "another"}
    assert [(row["data"], row["rows"]) for row in dropped] == [("preferences", 1)]


def test_where_no_prompt_is_left_the_reason_is_said(settings):
    with pytest.raises(
        InputError,
        match=(
            "preferences: the models of this run can read none of the 1 prompts; the first holds"
            " the model's control token"
        ),
    ):
        loaded(settings(preferences=[SPELT], preferences_rows="drop"))


def test_embedded_prompts_are_screened_too(settings, tmp_path):
    values = {key: value for key, value in settings().items() if key != "prompts"} | {
        "prompts": {"n": 20, "bad_rows": "drop"}
    }
    values["sampling"] |= {"max_new_tokens": 510}
    with pytest.raises(InputError, match="can read none of the 20 prompts"):
        loaded(values)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_what_the_screen_lets_through_the_sampler_takes(family, tmp_path):
    """The screen asks a tokenizer and a configuration, no weights: it must answer as the loaded
    model would."""
    folder = families.save(family, tmp_path)
    model = Model(source=str(folder), quantisation="none", device="cpu")
    backbone = load_backbone(model)
    marks = backbone.writer.guard.marks
    texts = [
        "hello",
        "a < b [sic]",
        "hi " * 600,
        *marks,
        *(f"explain {mark} to me" for mark in marks),
    ]
    expected = [backbone.refusal(text, 8) for text in texts]
    (folder / "model.safetensors").unlink()
    screen = PromptCheck(reading.validate({"model": model.model_dump()}, "test"))
    assert [screen(text, 8) for text in texts] == expected
    assert expected[:2] == [None, None] and all(expected[2:])


# published reward models


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A published reward model that nobody may load: tokenizer, configuration and the headers of
    its weights have to do."""
    folder = families.save("llama", tmp_path / "judge", head=True, max_position_embeddings=200)

    def never(*_, **__):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(published, "load_classifier", never)
    return f"model:{folder}"


@pytest.mark.parametrize("block", [{"gold": {"kind": "{}"}}, {"reward": {"proxy": "{}"}}])
def test_a_prompt_that_a_published_model_cannot_read_is_met_before_its_weights_are_loaded(
    block, settings, judge, runs_folder
):
    ((name, inner),) = block.items()
    ((key, _),) = inner.items()
    spelt, long = "an <|eot_id|> in a request", "the cat sat on the mat " * 40
    for text, found in (
        (spelt, rf"holds the control token '<\|eot_id\|>' of {name}.{key}"),
        (long, rf"tokens; with an answer of 6 tokens that is more than the 200 that {name}.{key}"),
    ):
        values = settings(text, **{name: {key: judge}})
        with pytest.raises(InputError, match=found):
            cells.run(values | {"run": f"notebook_{len(text)}"}, ["01_proxy_bias_injection"])
        with pytest.raises(InputError, match=found):
            stages.run_stages(
                ["pools"], reading.validate(values | {"run": f"stage_{len(text)}"}, "test")
            )
    assert not [path for path in runs_folder.rglob("*") if path.is_file()], (
        "the next attempt, with other parameters, would be refused"
    )
    table, dropped = loaded(
        settings(spelt, long, prompts={"bad_rows": "drop"}, **{name: {key: judge}})
    )
    assert len(table) == 12 and sum(row["rows"] for row in dropped) == 2


def test_a_run_with_dropped_prompts_goes_through(settings, tmp_path, runs_folder):
    """Notebook 01 on prompts that the backbone, and others that gold, cannot read; gold scores
    every completion once."""
    gold = families.save("llama", tmp_path / "gold", head=True)
    values = settings(
        SPELT, "an <|eot_id|>", prompts={"bad_rows": "drop"}, gold={"kind": f"model:{gold}"}
    )
    cells.run(values, ["01_proxy_bias_injection"])
    stage = runs_folder / "screened" / "01_proxy"
    assert len(pd.read_parquet(stage / "prompts.parquet")) == 12
    assert pd.read_parquet(stage / "dropped.parquet")["rows"].tolist() == [1, 1]
    reasons = [row["reason"] for row in files.read_json(stage / "metrics.json")["dropped"]]
    assert reasons[0].endswith("'<|im_start|>'") and reasons[1].endswith(
        f"'<|eot_id|>' of gold.kind '{gold}'"
    )


def test_a_published_gold_scores_no_completion_twice(settings, tmp_path, runs_folder, monkeypatch):
    gold = families.save("llama", tmp_path / "gold", head=True)
    asked, score = [], published.score_published

    def counting(table, *told):
        asked.extend(zip(table["prompt_id"], table["index"], strict=True))
        return score(table, *told)

    monkeypatch.setattr(published, "score_published", counting)
    cells.run(settings(gold={"kind": f"model:{gold}"}), ["01_proxy_bias_injection"])
    stage = runs_folder / "screened" / "01_proxy"
    pools = [pd.read_parquet(stage / f"pool_{name}.parquet") for name in ("train", "evaluate")]
    assert sorted(asked) == sorted(
        [
            ("a trial", 0),
            *(
                pair
                for pool in pools
                for pair in zip(pool["prompt_id"], pool["index"], strict=True)
            ),
        ]
    )


def test_the_run_command_asks_before_it_touches_the_run_folder(
    settings, tmp_path, runs_folder, capsys
):
    """So that the next attempt, with other parameters, is not refused for the folder of this
    one."""
    (tmp_path / "mine.yaml").write_text(json.dumps(settings(SPELT)))
    assert program.main(["run", str(tmp_path / "mine.yaml")]) == 2
    assert "set prompts.bad_rows to drop" in capsys.readouterr().err and not runs_folder.exists()


# answers that are given


LONG = "the cat sat on the mat " * 200


def _with_answers(settings, answers, **blocks):
    """Parameters of a run whose preferences have these chosen answers; every other one is short."""
    values = settings(preferences=[f"a request {k}" for k in range(8)], **blocks)
    path = Path(values["preferences"]["file"])
    rows = list(map(json.loads, path.read_text().splitlines()))
    rows = [row | {"chosen": text} for row, text in zip(rows, answers, strict=False)] + rows[
        len(answers) :
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return values


def test_an_answer_longer_than_the_context_is_met_by_the_check(settings):
    with pytest.raises(InputError) as caught:
        loaded(_with_answers(settings, [LONG]))
    assert str(caught.value).startswith(f"answer {LONG[:60]!r} has ")
    assert "with its prompt that is more than the model's context of 512" in str(caught.value)
    assert "set preferences.bad_rows to drop" in str(caught.value)
    table, dropped = loaded(_with_answers(settings, [LONG], preferences_rows="drop"))
    assert "a request 0" not in set(table["prompt"]) and len(table) == 19
    assert [(row["data"], row["rows"]) for row in dropped] == [("preferences", 1)]
    assert "answer is too long" in dropped[0]["reason"]
    with pytest.raises(InputError, match="can read the answers of none of the 8 pairs"):
        loaded(_with_answers(settings, [LONG] * 8, preferences_rows="drop"))


@pytest.mark.parametrize("block", [{"gold": {"kind": "{}"}}, {"reward": {"proxy": "{}"}}])
def test_an_answer_longer_than_a_published_model_reads_is_met_by_the_check(block, settings, judge):
    ((name, inner),) = block.items()
    ((key, _),) = inner.items()
    text = "the cat sat on the mat " * 40
    with pytest.raises(InputError, match=rf"more than the 200 that {name}.{key} .* reads"):
        loaded(_with_answers(settings, [text], **{name: {key: judge}}))
    more = {name: {key: judge}, "preferences_rows": "drop"}
    _, dropped = loaded(_with_answers(settings, [text], **more))
    assert [(row["data"], row["rows"]) for row in dropped] == [("preferences", 1)]


def test_of_a_prompts_pairs_those_that_fit_stay_and_the_pool_holds_no_others(
    settings, runs_folder, backbone
):
    values = _with_answers(settings, ["short"] * 8, preferences_rows="drop")
    path = Path(values["preferences"]["file"])
    twice = {"prompt": "a request 0", "chosen": LONG, "rejected": "a dog"}
    path.write_text(path.read_text() + json.dumps(twice) + "\n")
    params = reading.validate(values, "test")
    table, dropped = loaded(values)
    assert "a request 0" in set(table["prompt"]) and dropped[0]["rows"] == 1
    scored = proxy_data.training_pool(backbone, table, params)
    assert set(scored["completion"]) == {"short", "a dog"}


def test_without_a_check_a_completion_that_does_not_fit_is_named(backbone):
    given = pd.DataFrame(
        {"prompt_id": ["p", "p"], "index": [0, 1], "prompt": "hi", "completion": ["ok", LONG]}
    )
    with pytest.raises(InputError, match="completion 1 of prompt p has .* tokens with its prompt"):
        pool.score(backbone, given)
    with pytest.raises(InputError, match="completion 1 of prompt p has no tokens"):
        pool.score(backbone, given.assign(tokens=[[5], []]))


def test_fine_tuning_leaves_out_what_does_not_fit(fresh_backbone, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        sft.trainer, "run_trainer", lambda *_, train_dataset, **__: seen.update(rows=train_dataset)
    )
    given = pd.DataFrame({"prompt": ["hi", "hi"], "completion": ["ok", LONG]})
    sft.train(fresh_backbone, given, Sft(), seed=0)
    (row,) = seen["rows"]
    assert row["input_ids"] == fresh_backbone.writer.both("hi", "ok").ids
    with pytest.raises(InputError, match="there is no answer to imitate; the first has"):
        sft.train(fresh_backbone, given.tail(1), Sft(), seed=0)


def test_positions_that_a_model_counts_from_its_pad_token_on_are_not_read(tmp_path):
    """RoBERTa's 514 positions are 512 tokens; one more is an index error in its embedding."""
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,
        num_labels=1,
    )
    model = RobertaForSequenceClassification(config).eval()
    longest = positions(model)
    assert longest == 32
    with torch.inference_mode():
        model(input_ids=torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 5))
