"""The label store loses nothing, not to a second writer and not to kill -9; annotators answer as
they should."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from shfcas_lib import feedback
from shfcas_lib.annotators.people import Person, Replay, Unanswered, load_annotator
from shfcas_lib.base.errors import InputError
from shfcas_lib.feedback import SimulatedHuman, SimulatedHumanAtOnce, ask
from shfcas_lib.params.schema import Feedback
from shfcas_lib.storage.labels import ANSWERS, GRADED, LabelStore

KEY = ["prompt_id", "i", "j"]


def comparisons(n, strategy="shf_cas"):
    rows = [(f"p{k // 6:03d}", 0, 1 + k % 6, k + 1, strategy, "K 0.5") for k in range(n)]
    return pd.DataFrame(rows, columns=[*KEY, "rank", "strategy", "reason"])


def completions(table):
    """Every completion that a table of comparisons names."""
    named = [table[["prompt_id", side]].rename(columns={side: "index"}) for side in ("i", "j")]
    return pd.concat(named).drop_duplicates(ignore_index=True)


class Scripted:
    """Answers by turns, and remembers what it was asked."""

    name = "script"

    def __init__(self, answers=("first", "second", "tie")):
        self.answers, self.asked = answers, []

    def answer(self, comparison, shown):
        self.asked.append(tuple(comparison[k] for k in KEY))
        return self.answers[(len(self.asked) - 1) % len(self.answers)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feedback" / "labels.sqlite"


def raw_rows(path):
    with sqlite3.connect(path) as connection:
        return connection.execute(
            "SELECT prompt_id, i, j, answer, annotator FROM answers ORDER BY id"
        ).fetchall()


def start(program, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# the store


def test_labels_are_the_probability_that_the_first_is_preferred(path):
    with LabelStore(path) as store:
        labels = ask(
            comparisons(3), completions(comparisons(3)), Scripted(("first", "second", "tie")), store
        )
    assert labels["label"].tolist() == [1.0, 0.0, 0.5]
    assert labels["answer"].tolist() == ["first", "second", "tie"]


def test_answers_are_on_disk_before_the_store_is_closed(path):
    store = LabelStore(path)
    store.add(comparisons(1).iloc[0], "tie", "me")
    assert raw_rows(path) == [("p000", 0, 1, "tie", "me")]
    store.close()


def test_the_store_only_ever_appends(path):
    comparison = comparisons(1).iloc[0]
    with LabelStore(path) as store:
        store.add(comparison, "first", "me")
        store.add(comparison, "second", "me")
        assert store.labels()[["answer", "annotator"]].values.tolist() == [["second", "me"]]
    assert [row[3] for row in raw_rows(path)] == ["first", "second"]


def test_an_answer_that_is_none_is_refused_and_not_stored(path):
    with (
        LabelStore(path) as store,
        pytest.raises(InputError, match="'both': expected first, second, tie"),
    ):
        store.add(comparisons(1).iloc[0], "both", "me")
    assert raw_rows(path) == []


def test_a_file_that_is_no_store_is_an_error_that_names_it(path):
    path.parent.mkdir()
    path.write_text(
        "this is not a database, and it is long enough to have a header of its own" * 20
    )
    with pytest.raises(InputError, match="labels.sqlite"):
        LabelStore(path)


def test_an_empty_store_has_no_labels(path):
    with LabelStore(path) as store:
        assert len(store.labels()) == 0


# asking


def test_answers_come_back_in_the_order_of_the_comparisons(path):
    asked = comparisons(20).sample(frac=1, random_state=0).reset_index(drop=True)
    with LabelStore(path) as store:
        labels = ask(asked, completions(asked), Scripted(), store)
    pd.testing.assert_frame_equal(labels[list(asked)], asked)
    assert labels["answer"].tolist() == [("first", "second", "tie")[k % 3] for k in range(20)]


def test_what_was_answered_is_not_asked_again(path):
    second = Scripted(("tie",))
    with LabelStore(path) as store:
        before = ask(comparisons(8), completions(comparisons(8)), Scripted(("first",)), store)
        after = ask(comparisons(12), completions(comparisons(12)), second, store)
    assert len(second.asked) == 4
    pd.testing.assert_frame_equal(after.head(8), before)
    assert set(after.tail(4)["answer"]) == {"tie"}


def test_nothing_to_ask_gives_no_labels(path):
    with LabelStore(path) as store:
        labels = ask(comparisons(3).head(0), completions(comparisons(3)), Scripted(), store)
    assert len(labels) == 0 and {"answer", "label", "annotator", "time"} <= set(labels)


def test_the_provenance_of_an_answer_is_kept(path):
    before = time.time()
    with LabelStore(path) as store:
        ask(comparisons(1, strategy="random"), completions(comparisons(1)), Scripted(), store)
        row = store.labels().iloc[0]
    assert (row["annotator"], row["strategy"], row["reason"]) == ("script", "random", "K 0.5")
    assert before <= row["time"] <= time.time()


# two processes, and kill -9

WRITER = """
import sys
from pathlib import Path
import pandas as pd
from shfcas_lib.storage.labels import LabelStore
with LabelStore(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for k in range(int(sys.argv[2])):
        row = {"prompt_id": sys.argv[3], "i": k, "j": k + 1, "strategy": "s", "reason": "r"}
        store.add(pd.Series(row), "tie", sys.argv[3])
"""


def test_two_processes_that_write_at_once_lose_nothing(path):
    with LabelStore(path) as store:
        writers = [start(WRITER, path, 60, name) for name in ("one", "two")]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n", writer.stderr.read()
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for k in range(60):
            store.add(
                pd.Series({"prompt_id": "me", "i": k, "j": k + 1, "strategy": "s", "reason": "r"}),
                "first",
                "me",
            )
        for writer in writers:
            assert writer.wait(timeout=120) == 0, writer.stderr.read()
            writer.stdin.close()
            writer.stdout.close()
            writer.stderr.close()
        labels = store.labels()
    assert labels["annotator"].value_counts().to_dict() == {"me": 60, "one": 60, "two": 60}
    assert not labels.duplicated(KEY).any()


def test_opening_a_store_waits_for_a_process_that_is_writing_to_it(path):
    """Two annotators who start at the same moment: the file is there, and not yet in WAL mode."""
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    release.start()
    try:
        LabelStore(path).close()
    finally:
        release.join()
        other.close()


def test_two_runs_that_ask_the_same_at_once_keep_one_answer(path):
    """The other run is asked, and answers, while ours thinks."""

    class Slow(Scripted):
        def answer(self, comparison, shown):
            with LabelStore(path) as other:
                other.add(comparison, "tie", self.name)
            return super().answer(comparison, shown)

    table = comparisons(4)
    with LabelStore(path) as store:
        ask(table, completions(table), Slow(), store)
        assert store.rows()["answer"].tolist() == ["tie"] * 4


def test_an_answer_costs_the_same_with_few_or_many_answers_before_it(path):
    """SQLite finds a person's earlier answer, and what was taken back, in an index: no statement
    reads the whole table."""
    with LabelStore(path) as store:
        plans = []
        store.connection.set_trace_callback(
            lambda statement: plans.append(statement) if statement.startswith("SELECT") else None
        )
        store.add(
            {"prompt_id": "p", "i": 0, "j": 1, "strategy": "s", "reason": "r"},
            "first",
            "anna",
            after=None,
        )
        store.connection.set_trace_callback(None)
        steps = [
            row[3]
            for statement in plans
            for row in store.connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]
    assert len(steps) == 3 and not any(step.startswith("SCAN") for step in steps), steps


ASKER = """
import os, sys, time
from pathlib import Path
import pandas as pd
from shfcas_lib.feedback import ask
from shfcas_lib.storage.labels import LabelStore

class Slow:
    name = "slow"
    def answer(self, comparison, shown):
        with open(sys.argv[2], "a") as log:
            log.write(f"{comparison['rank']}\\n")
        print(comparison["rank"], flush=True)
        time.sleep(0.003)
        return ("first", "second", "tie")[comparison["rank"] % 3]

rows = [(f"p{k // 6:03d}", 0, 1 + k % 6, k + 1, "shf_cas", "K 0.5") for k in range(90)]
table = pd.DataFrame(rows, columns=["prompt_id", "i", "j", "rank", "strategy", "reason"])
with LabelStore(Path(sys.argv[1])) as store:
    sides = [table[["prompt_id", side]].rename(columns={side: "index"}) for side in ("i", "j")]
    ask(table, pd.concat(sides).drop_duplicates(), Slow(), store)
"""


def test_kill_9_loses_no_given_answer_and_doubles_none(path, tmp_path):
    log = tmp_path / "asked.log"
    for kill_at in (10, 40, 75):
        process = start(ASKER, path, log)
        for line in process.stdout:
            if int(line) >= kill_at:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        asked = [int(line) for line in log.read_text().split()]
        stored = raw_rows(path)
        # The next comparison is asked only when the answer before it is durable: of those asked,
        # all but the last are there.
        assert len(stored) >= max(asked) - 1
        assert len(stored) == len({row[:3] for row in stored})
    finished = start(ASKER, path, log)
    finished.communicate()
    assert finished.returncode == 0
    asked = [int(line) for line in log.read_text().split()]
    # at most the question in flight is put again after a kill
    assert set(asked) == set(range(1, 91)) and len(asked) <= 90 + 3
    stored = raw_rows(path)
    assert len(stored) == 90 == len({row[:3] for row in stored})
    with LabelStore(path) as store:
        labels = ask(comparisons(90), completions(comparisons(90)), Scripted(), store)
    assert labels["answer"].tolist() == [("first", "second", "tie")[k % 3] for k in range(1, 91)]


# the simulated human


@pytest.fixture
def golden():
    """40 prompts x 5 completions with a gold score in a column of their own."""
    rows = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:02d}" for k in range(40)], 5),
            "index": np.tile(range(5), 40),
        }
    )
    return rows.assign(gold=np.random.default_rng(0).normal(size=200))


@pytest.fixture
def questions(golden):
    first, second = np.triu_indices(5, 1)
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(golden["prompt_id"].unique(), 10),
            "i": np.tile(first, 40),
            "j": np.tile(second, 40),
        }
    )


def read_gold(table):
    return table["gold"].to_numpy()


def shown(golden, row):
    """The two completions of a comparison, i then j, as `ask` shows them."""
    return golden.set_index(["prompt_id", "index"], drop=False).loc[
        [(row["prompt_id"], row["i"]), (row["prompt_id"], row["j"])]
    ]


def answers(human, questions, golden):
    return pd.Series(
        [human.answer(row, shown(golden, row)) for _, row in questions.iterrows()],
        index=questions.index,
    )


def difference(golden, questions):
    gold = golden.set_index(["prompt_id", "index"])["gold"]
    return np.array(
        [gold[r.prompt_id, r.i] - gold[r.prompt_id, r.j] for r in questions.itertuples()]
    )


def test_simulated_human_without_noise_tells_the_truth(golden, questions):
    found = answers(SimulatedHuman(read_gold), questions, golden)
    assert found.tolist() == np.where(difference(golden, questions) > 0, "first", "second").tolist()


def test_a_gold_that_is_dear_to_call_is_called_once_for_a_round_and_answers_alike(
    golden, questions
):
    calls = []

    def dear(table):
        calls.append(len(table))
        return read_gold(table)

    dear.at_once = True
    human = load_annotator(Feedback(noise=0.3, tie_margin=0.2), dear, seed=4)
    known = set(questions[["prompt_id", "i", "j"]].head(3).itertuples(index=False, name=None))
    completions = golden.set_index(["prompt_id", "index"], drop=False)
    found = [
        (row["prompt_id"], row["i"], row["j"], answer, name)
        for row, answer, name in human.answer_all(questions, completions, known)
    ]
    assert isinstance(human, SimulatedHumanAtOnce) and calls == [2 * (len(questions) - 3)]
    expected = answers(
        SimulatedHuman(read_gold, noise=0.3, tie_margin=0.2, seed=4), questions.iloc[3:], golden
    )
    assert [answer for *_, answer, _ in found] == expected.tolist() and {
        name for *_, name in found
    } == {"gold"}
    assert list(human.answer_all(questions.head(3), completions, known)) == [] and len(calls) == 1


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_simulated_human_is_wrong_as_often_as_its_noise_says(golden, questions, noise):
    found = answers(SimulatedHuman(read_gold, noise=noise, seed=1), questions, golden)
    wrong = (found != np.where(difference(golden, questions) > 0, "first", "second")).mean()
    assert abs(wrong - noise) <= 4 * np.sqrt(noise * (1 - noise) / len(questions))


def test_differences_up_to_the_margin_are_ties_even_under_noise(golden, questions):
    found = answers(SimulatedHuman(read_gold, noise=0.5, tie_margin=0.4, seed=1), questions, golden)
    small = np.abs(difference(golden, questions)) <= 0.4
    assert 0 < small.sum() < len(questions)
    assert ((found == "tie") == small).all()


def test_equal_gold_is_a_tie_without_any_margin(golden, questions):
    assert set(answers(SimulatedHuman(read_gold), questions.head(5), golden.assign(gold=1.0))) == {
        "tie"
    }


def test_a_difference_of_exactly_the_margin_is_a_tie():
    golden = pd.DataFrame({"prompt_id": "p", "index": [0, 1, 2], "gold": [0.0, 0.25, 0.5625]})
    human = SimulatedHuman(read_gold, tie_margin=0.25)
    questions = pd.DataFrame({"prompt_id": "p", "i": [0, 1], "j": [1, 2]})
    assert answers(human, questions, golden).tolist() == ["tie", "second"]


def test_simulated_answers_do_not_depend_on_the_order_of_asking(golden, questions):
    shuffled = questions.sample(frac=1, random_state=2)
    forwards = answers(SimulatedHuman(read_gold, noise=0.4, seed=3), questions, golden)
    backwards = answers(
        SimulatedHuman(read_gold, noise=0.4, seed=3),
        shuffled,
        golden.sample(frac=1, random_state=5),
    )
    pd.testing.assert_series_equal(backwards.sort_index(), forwards)


def test_simulated_answers_differ_between_seeds(golden, questions):
    one, other = (
        answers(SimulatedHuman(read_gold, noise=0.4, seed=seed), questions, golden)
        for seed in (0, 1)
    )
    assert (one != other).any()


def test_gold_is_asked_about_the_two_completions_and_no_others(golden, path):
    seen = []

    def spy(table):
        seen.extend(zip(table["prompt_id"], table["index"], strict=True))
        return table["gold"].to_numpy()

    question = pd.DataFrame(
        {"prompt_id": ["p07"], "i": [1], "j": [4], "strategy": "random", "reason": ""}
    )
    with LabelStore(path) as store:
        ask(question, golden, SimulatedHuman(spy), store)
    assert seen == [("p07", 1), ("p07", 4)]


def test_a_large_difference_is_much_better_whichever_way_round_it_is_answered(golden, questions):
    plain = answers(SimulatedHuman(read_gold, noise=0.3, tie_margin=0.2, seed=1), questions, golden)
    human = SimulatedHuman(read_gold, noise=0.3, tie_margin=0.2, seed=1, much=1.5)
    gap = np.abs(difference(golden, questions))
    words = np.where(gap > 1.5, "_much_better", "_better")
    expected = [
        word if word == "tie" else word + more for word, more in zip(plain, words, strict=True)
    ]
    assert answers(human, questions, golden).tolist() == expected
    assert len(set(expected)) == 5


def test_the_parameters_say_whether_the_simulated_human_grades(golden, questions):
    for graded, words in ((False, {"first", "second"}), (True, set(GRADED))):
        human = load_annotator(Feedback(graded=graded, much=1.0), read_gold, seed=0)
        assert set(answers(human, questions, golden)) == words
    edge = pd.DataFrame({"prompt_id": "p", "index": [0, 1], "gold": [0.0, 1.0]})
    one = pd.DataFrame({"prompt_id": ["p"], "i": [0], "j": [1]})
    assert answers(human, one, edge).tolist() == ["second_better"], "above, not at"


def test_grades_reach_the_labels_that_are_learnt_from(golden, questions, path):
    asked = questions.head(30).assign(strategy="random", reason="")
    with LabelStore(path) as store:
        labels = ask(asked, golden, SimulatedHuman(read_gold, much=1.0), store)
    gap = np.abs(difference(golden, asked))
    assert labels["grade"].tolist() == np.where(gap > 1.0, 2.0, 1.0).tolist()
    assert set(labels["answer"]) == {"first", "second"}


# people, who answer in their own time


def test_a_person_is_never_waited_for_and_the_sentence_says_what_to_do(path):
    with LabelStore(path) as store:
        store.add(comparisons(3).iloc[1], "tie", "anna")
        with pytest.raises(
            Unanswered,
            match="2 of 3 comparisons .* wait for a person: open notebook 03 in JupyterLab",
        ) as raised:
            ask(comparisons(3), completions(comparisons(3)), Person(), store)
    assert len(raised.value.comparisons) == 3 and raised.value.missing == 2
    assert len(str(raised.value).splitlines()) == 1 and raised.value._render_traceback_() == [
        str(raised.value)
    ]


def test_a_store_that_holds_every_answer_needs_no_person(path):
    with LabelStore(path) as store:
        for (_, comparison), word in zip(
            comparisons(3).iterrows(), ("first", "skip", "both_bad"), strict=True
        ):
            store.add(comparison, word, "anna")
        labels = ask(
            comparisons(3),
            completions(comparisons(3)),
            load_annotator(Feedback(kind="person"), None, 0),
            store,
        )
    assert labels["answer"].tolist() == ["first", "skip", "both_bad"]
    assert labels["label"].tolist()[::2] == [1.0, 0.5] and np.isnan(labels["label"][1])


def test_where_two_people_are_wanted_one_is_not_enough(path):
    with LabelStore(path) as store:
        store.add(comparisons(1).iloc[0], "first", "anna")
        with pytest.raises(Unanswered):
            ask(comparisons(1), completions(comparisons(1)), Person(people=2), store)
        store.add(comparisons(1).iloc[0], "tie", "ben")
        labels = ask(comparisons(1), completions(comparisons(1)), Person(people=2), store)
    assert labels[["answer", "label", "annotator"]].values.tolist() == [
        ["first", 0.75, "anna, ben"]
    ]


# answers from a file


def test_replay_gives_the_answers_of_the_file():
    table = comparisons(3).assign(answer=["tie", "second", "first"])
    assert answers(Replay(table), comparisons(3), completions(comparisons(3))).tolist() == [
        "tie",
        "second",
        "first",
    ]


def test_replay_names_a_comparison_that_the_file_lacks():
    with pytest.raises(InputError, match="no answer for prompt p000, completions 0 and 3"):
        Replay(comparisons(2).assign(answer="tie")).answer(comparisons(3).iloc[2], None)


@pytest.mark.parametrize("column", [*KEY, "answer"])
def test_replay_names_a_column_that_is_missing(column):
    with pytest.raises(InputError, match=f"no column '{column}'"):
        Replay(comparisons(2).assign(answer="tie").drop(columns=column))


def test_replay_names_the_row_of_an_answer_that_is_none():
    table = comparisons(3).assign(answer=["tie", "left", "tie"])
    with pytest.raises(InputError, match="row 2: answer 'left', expected first, second, tie"):
        Replay(table)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_replay_reads_files_and_keeps_ids_that_look_like_numbers(tmp_path, suffix):
    table = comparisons(2).assign(prompt_id="0012345678901234", answer=["tie", "first"])
    path = tmp_path / f"answers{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    human = load_annotator(Feedback(kind="replay", file=str(path)), None, 0)
    assert answers(human, table, completions(table)).tolist() == ["tie", "first"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_replay_reads_grades_where_answers_are_graded(tmp_path, suffix):
    table = comparisons(5).assign(
        answer=["tie", "first", "second", "first", "first"], grade=[np.nan, 1, 2, np.nan, 1.5]
    )
    path = tmp_path / f"answers{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    for graded, expected in {
        True: ["tie", "first_better", "second_much_better", "first_better", "first_much_better"],
        False: table["answer"].tolist(),
    }.items():
        human = load_annotator(Feedback(kind="replay", file=str(path), graded=graded), None, 0)
        assert answers(human, table, completions(table)).tolist() == expected


def test_replay_names_the_row_of_a_grade_that_is_none(tmp_path):
    table = comparisons(2).assign(answer="first", grade=["1", "much"])
    table.to_csv(tmp_path / "answers.csv", index=False)
    feedback = Feedback(kind="replay", file=str(tmp_path / "answers.csv"), graded=True)
    with pytest.raises(InputError, match="row 2.*'grade' is 'much', expected 1 .*, 2"):
        load_annotator(feedback, None, 0)
    plain = load_annotator(feedback.model_copy(update={"graded": False}), None, 0)
    assert answers(plain, table, completions(table)).tolist() == ["first", "first"]


@pytest.mark.parametrize("file", [None, "no/such/file.csv"])
def test_a_replay_file_that_is_not_there_is_an_error(file):
    with pytest.raises(InputError, match="feedback.file"):
        load_annotator(Feedback(kind="replay", file=file), None, 0)


def test_a_simulated_human_needs_gold():
    with pytest.raises(InputError, match="gold.kind is 'none'"):
        load_annotator(Feedback(), None, 0)


def test_every_answer_has_a_label_in_the_unit_interval():
    labels = pd.Series(ANSWERS)
    assert labels.dropna().to_dict() == {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
    assert labels.index[labels.isna()].tolist() == ["skip"]


def test_answers_given_twice_are_counted_by_pairs_of_answers(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        assert feedback.answered_twice(store) == (0, 0)
        asked = {"prompt_id": "p", "i": 0, "strategy": "random", "reason": ""}
        answers = [
            (1, "first", "ann", False),
            (1, "first", "ann", True),
            (1, "second", "bob", False),
        ]
        answers += [
            (2, "tie", "ann", False),
            (2, "first", "bob", False),
            (3, "first", "ann", False),
        ]
        for j, answer, who, repeat in answers:
            store.add(asked | {"j": j}, answer, who, repeat=repeat, after=None)
        assert feedback.answered_twice(store) == (1, 2)
