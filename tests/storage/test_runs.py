"""The run folder: tables are made once, other parameters are refused."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import pytest
from folders import files, open_run

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import files as storage_files
from shfcas_lib.storage import runs
from shfcas_lib.storage.labels import LabelStore

TABLE = pd.DataFrame({"prompt_id": ["a", "b"], "value": [1.5, -2.0]})


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_metrics_of_a_stage_refuse_nan_and_keep_the_older_ones(runs_folder):
    stage = open_run().stage("02_conflict")
    stage.metrics({"k": 0.5})
    with pytest.raises(ValueError):
        stage.metrics({"k": float("nan")})
    assert json.loads((runs_folder / "mine/02_conflict/metrics.json").read_text()) == {"k": 0.5}


# --- tables


def test_a_table_is_made_once(runs_folder):
    calls = []

    def make():
        calls.append(1)
        return TABLE

    stage = open_run().stage("02_conflict")
    first = stage.table("pool", make)
    again = open_run().stage("02_conflict").table("pool", make)
    pd.testing.assert_frame_equal(first, TABLE)
    pd.testing.assert_frame_equal(again, TABLE)
    assert len(calls) == 1 and files(runs_folder) == [
        "mine/02_conflict/parameters.json",
        "mine/02_conflict/pool.parquet",
    ]


def test_a_table_is_the_same_fresh_and_read_back():
    """What a resumed run reads must be what an uninterrupted run had: index, types and nested
    lists included."""
    table = pd.DataFrame(
        {"label": [0.5, 1.0], "tokens": [[1, 2], [3]], "ended": [True, False], "i": [0, 1]},
        index=[5, 3],
    )
    stage = open_run().stage("02_conflict")
    fresh = stage.table("t", lambda: table)
    pd.testing.assert_frame_equal(fresh, stage.table("t", lambda: None))
    assert list(fresh.index) == [0, 1] and list(map(list, fresh["tokens"])) == [[1, 2], [3]]


def test_a_table_that_fails_to_be_made_leaves_nothing(runs_folder):
    stage = open_run().stage("02_conflict")
    with pytest.raises(ZeroDivisionError):
        stage.table("pool", lambda: 1 / 0)
    assert files(runs_folder) == ["mine/02_conflict/parameters.json"]
    pd.testing.assert_frame_equal(stage.table("pool", lambda: TABLE), TABLE)


def test_a_table_that_cannot_be_written_leaves_nothing(runs_folder):
    stage = open_run().stage("02_conflict")
    with pytest.raises(Exception, match="mixed|convert|Expected"):
        stage.table("pool", lambda: pd.DataFrame({"a": [1, "x", {}]}))
    assert files(runs_folder) == ["mine/02_conflict/parameters.json"]


def test_a_sub_folder_has_tables_of_its_own(runs_folder):
    stage = open_run().stage("03_feedback")
    (stage / "shf_cas" / "round_1").table("labels", lambda: TABLE)
    (stage / "random" / "round_1").table("labels", lambda: TABLE.iloc[:1])
    assert (
        len(pd.read_parquet(runs_folder / "mine/03_feedback/shf_cas/round_1/labels.parquet")) == 2
    )
    assert len(pd.read_parquet(runs_folder / "mine/03_feedback/random/round_1/labels.parquet")) == 1


def test_memory_writes_nothing_and_remembers_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [
        (runs.Memory() / "a").table("t", lambda k=k: TABLE.assign(k=k))["k"].iloc[0] for k in (1, 2)
    ]
    assert made == [1, 2] and files(tmp_path) == []


# --- a stage belongs to its parameters


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"sampling": {"n": 4}}, "sampling.n: 8 there, 4 now"),
        ({"reward": {"lora": {"r": 4}}}, "reward.lora.r: 8 there, 4 now"),
        (
            {"model": {"source": "other"}},
            'model.source: "smollm2-135m-instruct" there, "other" now',
        ),
        (
            {"bias": [{"kind": "noise", "rate": 0.1}]},
            'bias: [] there, [{"kind": "noise", "rate": 0.1}] now',
        ),
        ({"prompts": {"n": 3}}, "prompts.n: null there, 3 now"),
    ],
)
def test_a_folder_of_other_parameters_is_refused_with_the_difference(runs_folder, change, words):
    open_run().stage("01_proxy")
    message = refusal(open_run(**change).stage, "01_proxy")
    assert (
        str(runs_folder / "mine" / "01_proxy") in message
        and words in message
        and "another name" in message
    )


def test_the_refusal_changes_nothing(runs_folder):
    open_run().stage("01_proxy").table("pool", lambda: TABLE)
    before = {name: (runs_folder / name).read_bytes() for name in files(runs_folder)}
    refusal(open_run(seed=1).stage, "01_proxy")
    assert {name: (runs_folder / name).read_bytes() for name in files(runs_folder)} == before


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"evaluation": {"bootstrap": 200}}, "03_feedback"),
        ({"selection": {"budget": 12}}, "02_conflict"),
        ({"policy": {"beta": 0.1}}, "01_proxy"),
        ({"feedback": {"noise": 0.1}}, "02_conflict"),
    ],
)
def test_a_parameter_that_a_stage_does_not_depend_on_may_change(change, stage):
    open_run().stage(stage).table("pool", lambda: TABLE)
    again = open_run(**change).stage(stage)
    pd.testing.assert_frame_equal(again.table("pool", lambda: None), TABLE)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"evaluation": {"bootstrap": 200}}, "04_evaluation"),
        ({"selection": {"budget": 12}}, "03_feedback"),
        ({"policy": {"beta": 0.1}}, "03_feedback"),
        ({"feedback": {"noise": 0.1}}, "04_evaluation"),
        ({"gold": {"kind": "safety"}}, "01_proxy"),
        ({"split": {"train": 0.5, "feedback": 0.2, "evaluate": 0.3}}, "02_conflict"),
    ],
)
def test_a_parameter_that_a_stage_depends_on_may_not(change, stage):
    open_run().stage(stage)
    assert next(iter(change)) in refusal(open_run(**change).stage, stage)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"checkpoint_every": 5}])
def test_what_saves_memory_or_a_killed_training_may_change_between_two_attempts(change):
    open_run().stage("01_proxy")
    open_run(training=change).stage("01_proxy")


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"training": {"optimiser": "adamw_8bit"}}, "01_proxy"),
        ({"training": {"micro_batch": 2}}, "03_feedback"),
        ({"policy": {"generations": 2}}, "03_feedback"),
        ({"policy": {"prompts": 9}}, "04_evaluation"),
    ],
)
def test_a_newer_key_counts_once_it_is_set_whichever_comes_first(change, stage, runs_folder):
    open_run().stage(stage)
    assert next(iter(change)) in refusal(open_run(**change).stage, stage)
    open_run(run="other", **change).stage(stage)
    assert next(iter(change)) in refusal(open_run(run="other").stage, stage)


def test_every_parameter_belongs_to_a_stage():
    """All but the name of the run: what is in no stage could be changed without anybody
    noticing."""
    assert set(runs.STAGES["04_evaluation"]) == set(Params.model_fields) - {"run"}


def test_the_same_parameters_open_the_folder_again(runs_folder):
    open_run(seed=0).stage("01_proxy")
    assert open_run().stage("01_proxy").folder == runs_folder / "mine" / "01_proxy"


def test_runs_of_other_names_do_not_meet(runs_folder):
    open_run(run="one").stage("01_proxy")
    open_run(run="two", seed=1).stage("01_proxy")
    assert files(runs_folder) == ["one/01_proxy/parameters.json", "two/01_proxy/parameters.json"]


def test_opening_a_run_writes_nothing(runs_folder):
    open_run()
    assert not runs_folder.exists()


# the day of a run


@pytest.fixture
def on(monkeypatch):
    """Make it another day."""

    def turn(day):
        class Today(dt.date):
            @classmethod
            def today(cls):
                return cls.fromisoformat(day)

        monkeypatch.setattr(runs.dt, "date", Today)

    return turn


def test_the_day_belongs_to_the_run_and_stays_with_it(runs_folder, on):
    on("2031-02-03")
    run = open_run()
    run.stage("01_proxy")
    run.record()
    assert run.params.model.date == "2031-02-03"
    on("2031-02-04")
    later = open_run()
    later.stage("02_conflict")
    assert later.params.model.date == "2031-02-03"
    recorded = json.loads((runs_folder / "mine/run.json").read_text())
    assert recorded["parameters"]["model"]["date"] == "2031-02-03"
    assert open_run(run="other").params.model.date == "2031-02-04"


def test_a_day_that_was_asked_for_is_kept_and_another_is_refused(runs_folder, on):
    on("2031-02-04")
    open_run(model={"date": "2031-01-01"}).stage("01_proxy")
    assert open_run().stage("01_proxy").run.params.model.date == "2031-01-01"
    run = open_run(model={"date": "2031-02-04"})
    assert refusal(run.stage, "01_proxy").endswith(
        "01_proxy was made with model.date 2031-01-01, now it is 2031-02-04: give this run another"
        " name, or leave model.date out"
    )


def test_a_stage_that_is_taken_over_brings_its_day_along(runs_folder, on):
    on("2031-02-03")
    open_run(run="first").stage("01_proxy").metrics({})
    on("2031-02-04")
    second = open_run(run="second")
    assert second.take_over("01_proxy") and second.params.model.date == "2031-02-03"
    assert open_run(run="second").params.model.date == "2031-02-03"
    # a run that has begun stays with its own
    third = open_run(run="third")
    third.stage("02_conflict")
    assert not third.take_over("01_proxy")
    assert not open_run(run="fourth", model={"date": "2031-02-05"}).take_over("01_proxy")


@pytest.mark.parametrize("blocked", ["runs", "runs/mine", "runs/mine/01_proxy"])
def test_a_folder_that_cannot_be_made(runs_folder, blocked):
    """A file stands where a folder should be (chmod would not stop a test that runs as root)."""
    place = runs_folder.parent / blocked
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file")
    assert f"cannot write to run folder {runs_folder / 'mine' / '01_proxy'}" in refusal(
        open_run().stage, "01_proxy"
    )
    assert place.read_text() == "a file"


def test_a_folder_that_cannot_be_written(monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage_files.tempfile, "mkdtemp", denied)
    assert "01_proxy/parameters.json: Permission denied" in refusal(open_run().stage, "01_proxy")


def test_a_stage_that_another_process_took_over_first_is_used(runs_folder, monkeypatch):
    made = open_run(run="one").stage("01_proxy")
    made.table("pool", lambda: TABLE)
    made.metrics({})
    copytree = runs.shutil.copytree

    def late(source, target, **options):
        copytree(source, runs_folder / "two" / "01_proxy")
        return copytree(source, target, **options)

    monkeypatch.setattr(runs.shutil, "copytree", late)
    assert open_run(run="two").take_over("01_proxy")
    assert files(runs_folder / "two") == [
        "01_proxy/metrics.json",
        "01_proxy/parameters.json",
        "01_proxy/pool.parquet",
    ]


# --- what an earlier stage must have made


def test_require_reads_what_the_earlier_stage_wrote():
    open_run().stage("01_proxy").table("pool", lambda: TABLE)
    pd.testing.assert_frame_equal(open_run().require("01_proxy", "pool"), TABLE)


@pytest.mark.parametrize(
    ("stage", "number"), [("01_proxy", "01"), ("02_conflict", "02"), ("03_feedback", "03")]
)
def test_require_names_the_notebook_that_is_missing(runs_folder, stage, number):
    message = refusal(open_run().require, stage, "pool")
    assert (
        f"{runs_folder}/mine/{stage}/pool.parquet is missing" in message
        and f"run notebook {number}" in message
    )


def test_require_does_not_claim_the_folder_of_a_stage_that_never_ran():
    """A notebook run before its turn must not bind the run's name to its parameters."""
    refusal(open_run().require, "01_proxy", "pool")
    open_run(seed=1).stage("01_proxy").table("pool", lambda: TABLE)
    assert len(open_run(seed=1).require("01_proxy", "pool")) == 2


def test_require_refuses_tables_of_other_parameters():
    open_run().stage("01_proxy").table("pool", lambda: TABLE)
    assert "seed: 0 there, 1 now" in refusal(open_run(seed=1).require, "01_proxy", "pool")


# --- facts about the run


def test_record_merges_facts_and_seconds(runs_folder):
    run = open_run(seed=7)
    run.record(note="a", seconds={"one": 1.0})
    run.record(other="b", seconds={"two": 2.0})
    facts = json.loads((runs_folder / "mine/run.json").read_text())
    assert (facts["note"], facts["other"], facts["seed"]) == ("a", "b", 7)
    assert facts["seconds"] == {"one": 1.0, "two": 2.0}
    assert facts["parameters"] == json.loads(json.dumps(run.params.model_dump()))
    assert (
        facts["versions"]["numpy"] == np.__version__
        and "commit" in facts
        and "cores" in facts["machine"]
    )


def test_timed_records_the_seconds_under_stage_and_name(runs_folder):
    stage = open_run().stage("02_conflict")
    with stage.timed("sample"):
        pass
    seconds = json.loads((runs_folder / "mine/run.json").read_text())["seconds"]
    assert list(seconds) == ["02_conflict: sample"] and 0 <= seconds["02_conflict: sample"] < 5


def test_a_block_that_fails_is_not_timed(runs_folder):
    with pytest.raises(ZeroDivisionError):
        with open_run().stage("02_conflict").timed("sample"):
            raise ZeroDivisionError
    assert not (runs_folder / "mine/run.json").exists()


# --- what people answered is never advised away


def answered(folder, who):
    with LabelStore(folder / "03_feedback" / "shf_cas" / "labels.sqlite") as store:
        question = {"prompt_id": "p", "i": 0, "j": 1, "strategy": "s", "reason": "r"}
        store.add(question, "first", who)
        store.add(question | {"j": 2}, "tie", who)


@pytest.mark.parametrize("stage", ["01_proxy", "03_feedback"])
@pytest.mark.parametrize("who", ["person", "label-studio:1", "spreadsheet"])
def test_a_folder_with_answers_is_never_to_be_deleted(runs_folder, stage, who):
    run = runs.open_run(reading.validate({"run": "mine"}, "test"))
    run.stage(stage)
    answered(run.folder, who)
    other = runs.open_run(reading.validate({"run": "mine", "seed": 1}, "test"))
    with pytest.raises(InputError) as caught:
        other.stage(stage)
    message = str(caught.value)
    assert "delete" not in message and "give this run another name" in message
    assert f"`shfcas import PARAMS {run.folder}` brings the 2 answers along" in message


def test_a_store_that_cannot_be_read_may_hold_answers(runs_folder):
    run = runs.open_run(reading.validate({"run": "mine"}, "test"))
    folder = run.stage("03_feedback").folder / "random"
    folder.mkdir()
    (folder / "labels.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError) as caught:
        runs.open_run(reading.validate({"run": "mine", "seed": 1}, "test")).stage("03_feedback")
    assert "delete" not in str(caught.value)


def test_what_a_judge_was_paid_for_is_kept_and_a_simulated_human_answers_again(runs_folder):
    run = runs.open_run(reading.validate({"run": "mine"}, "test"))
    folder = run.stage("03_feedback").folder
    answered(run.folder, "gold")
    other = runs.open_run(reading.validate({"run": "mine", "seed": 1}, "test"))
    with pytest.raises(InputError, match="give this run another name, or delete that folder"):
        other.stage("03_feedback")
    (folder / "judge.sqlite").touch()
    with pytest.raises(InputError) as caught:
        other.stage("03_feedback")
    assert "keeps what a judge was paid for" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 0.5])
def test_a_damaged_table_says_what_to_do(runs_folder, keep):
    run = runs.open_run(reading.validate({"run": "mine"}, "test"))
    stage = run.stage("01_proxy")
    table = pd.DataFrame({"a": range(1000)})
    stage.table("numbers", lambda: table)
    path = stage.folder / "numbers.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    for read in (
        lambda: stage.table("numbers", lambda: table),
        lambda: run.require("01_proxy", "numbers"),
    ):
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        assert (
            str(path) in message and "move it away, and the same command makes it again" in message
        )
    path.rename(path.with_suffix(".old"))
    assert stage.table("numbers", lambda: table).equals(table)
