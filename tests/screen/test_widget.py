"""The annotation screen without a browser: what it shows, what an answer does, and that nothing
is lost or doubled."""

import os
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import papermill
import pytest
import tiny_run
from project import PATHS, ROOT

from shfcas_lib import loop, trust
from shfcas_lib.annotators.mixed import Mixed
from shfcas_lib.annotators.people import Person, Unanswered
from shfcas_lib.base.errors import InputError
from shfcas_lib.feedback import SimulatedHuman
from shfcas_lib.screen import widget
from shfcas_lib.screen.session import CHOICES, Session, arranged, visible
from shfcas_lib.storage.labels import LabelStore


def comparisons(n):
    rows = [(f"p{k // 6:03d}", 0, 1 + k % 6, "shf_cas", f"reason {k}") for k in range(n)]
    return pd.DataFrame(rows, columns=["prompt_id", "i", "j", "strategy", "reason"])


def completions(table):
    rows = [
        (p, k, f"prompt {p}", f"completion {k} of {p}")
        for p in table["prompt_id"].unique()
        for k in range(7)
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion"])


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        yield store


def session(store, n=10, name="anna", repeats=0.0, **more):
    return Session(
        store,
        arranged(comparisons(n), name, 0, repeats),
        completions(comparisons(n)),
        name,
        **more,
    )


def answer(session, word="left", **more):
    session.handle({"do": "answer", "turn": session.turn, "answer": word, "seconds": 2.0} | more)


def do(session, what):
    session.handle({"do": what, "turn": session.turn})


def text(segments):
    return "".join(part for part, _ in segments)


# hostile texts


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("\x1b[31mred", "⟨U+001B⟩[31mred"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("a\u202eb\u202c", "a⟨U+202E⟩b⟨U+202C⟩"),
        ("\ufeffx", "⟨U+FEFF⟩x"),
        ("a\rb\x00", "a⟨U+000D⟩b⟨U+0000⟩"),
        ("soft\u00adhyphen", "soft⟨U+00AD⟩hyphen"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("\u3164", "⟨U+3164⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\u200db", "a⟨U+200D⟩b"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("line\u2028end", "line⟨U+2028⟩end"),
        ("\u0600\u200d\u202e", "⟨U+0600⟩⟨U+200D⟩⟨U+202E⟩"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(raw, shown):
    assert text(visible(raw)) == shown
    assert all(marker == part.startswith("⟨U+") for part, marker in visible(raw))


@pytest.mark.parametrize(
    "raw",
    [
        "<script>alert(1)</script>",
        "a\n\tb  c",
        "שלום עולם",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "❤\ufe0f\u200d\U0001f525",
        "می\u200cخواهم",
        "\U0001f1eb\U0001f1ee",
        "e\u0301",
        "日本語\u3000x",
        "a\u00a0b",
        "क्\u200dष",
    ],
)
def test_what_can_be_seen_is_left_alone(raw):
    assert visible(raw) == [[raw, False]]


def test_windows_line_ends_are_line_ends_and_nothing_is_nothing():
    assert visible("a\r\nb") == [["a\nb", False]] and visible("") == [["⟨empty⟩", True]]


def test_a_page_of_invisible_characters_stays_one_piece():
    assert len(visible("a\u200b" * 50_000)) == 1 and text(visible("a\u200b" * 3)) == "a⟨U+200B⟩" * 3


def test_every_hostile_text_reaches_the_front_end_whole(runs_folder):
    """100 kB in one completion too. The views must also survive JSON, which is how they travel."""
    import json

    run, setting = tiny_run.make(tiny_run.settings())
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"), repeats=0)
    seen = set()
    while screen.view["state"] == "ask":
        view = json.loads(json.dumps(screen.view))
        seen |= {text(part) for part in view["texts"]}
        screen.handle({"do": "answer", "turn": view["turn"], "answer": "tie"})
    assert seen == {text(visible(raw)) for raw in tiny_run.HOSTILE}


# answering


def test_what_was_clicked_is_what_is_stored(store):
    screen = session(store)
    for word in ("left", "right", "tie", "both_bad", "skip"):
        view, question = screen.view(), screen.shown
        assert text(view["texts"][0]) == f"completion {question.left} of {question.prompt_id}"
        answer(screen, word, note=f"note on {word}")
        row = store.rows().iloc[-1]
        expected = {
            "left": "first" if question.left == question.i else "second",
            "right": "second" if question.left == question.i else "first",
        }.get(word, word)
        assert (row["answer"], row["shown_left"], row["note"], row["latency"]) == (
            expected,
            question.left,
            f"note on {word}",
            2.0,
        )
    assert screen.view()["done"] == 5


def test_a_graded_screen_stores_the_side_and_the_grade_and_shows_them_again(store):
    screen = session(store, scale="graded")
    for word in ("much_left", "left", "tie", "right", "much_right", "both_bad", "skip"):
        question = screen.shown
        answer(screen, word, note=f"note on {word}")
        side = word.removeprefix("much_")
        on = {"left": question.left, "right": question.right}.get(side)
        row = store.rows().iloc[-1]
        expected = side if on is None else "first" if on == question.i else "second"
        assert row["answer"] == expected
        assert (0 if pd.isna(row["grade"]) else row["grade"]) == (
            0 if on is None else 2 if word.startswith("much") else 1
        )
        do(screen, "back")
        assert screen.view()["given"] == word
        do(screen, "resume")
    assert screen.view()["last"]["answer"] == "Skip" and screen.view()["done"] == 7


def test_undo_and_a_changed_mind_keep_to_their_grades(store):
    screen = session(store, scale="graded")
    answer(screen, "much_right")
    do(screen, "back")
    answer(screen, "right")
    assert screen.view()["last"]["answer"] == "Right is better"
    do(screen, "undo")
    assert screen.view()["given"] == "much_right"
    assert store.labels()["grade"].tolist() == [2.0]
    do(screen, "resume")
    assert screen.view()["last"]["answer"] == "Right is much better"


def test_much_better_is_no_answer_where_answers_are_not_graded(store):
    screen = session(store)
    answer(screen, "much_left")
    assert len(store.rows()) == 0 and screen.view()["done"] == 0
    assert [word for word, _, _ in screen.view()["choices"]] == [
        "left",
        "tie",
        "both_bad",
        "skip",
        "right",
    ]


def test_people_who_share_a_graded_store_do_not_do_the_work_twice(store):
    anna, ben = (session(store, name=name, scale="graded") for name in ("anna", "ben"))
    for _ in range(4):
        answer(anna, "much_left")
    do(ben, "resume")
    assert ben.shown.key == anna.shown.key and ben.view()["done"] == 4


def test_an_answer_is_durable_before_the_next_comparison_is_shown(store, tmp_path):
    screen = session(store)
    seen = []
    settle = screen._settle
    screen._settle = lambda *a: (
        seen.append(len(LabelStore(tmp_path / "labels.sqlite").rows())),
        settle(*a),
    )
    answer(screen)
    assert seen == [1]


def test_a_double_click_answers_once(store):
    screen = session(store)
    message = {"do": "answer", "turn": screen.turn, "answer": "left"}
    screen.handle(message)
    screen.handle(message)
    assert len(store.rows()) == 1 and screen.view()["done"] == 1


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        [],
        "left",
        {"do": "answer"},
        {"do": "answer", "answer": "left"},
        {"do": "explode", "turn": "T"},
        {"do": "answer", "turn": "T", "answer": "first"},
        {"do": "answer", "turn": "T", "answer": None},
        {"do": "answer", "turn": "T", "answer": ["left"]},
    ],
)
def test_a_message_that_makes_no_sense_is_ignored(store, message):
    screen = session(store)
    if isinstance(message, dict) and message.get("turn") == "T":
        message = message | {"turn": screen.turn}
    screen.handle(message)
    assert len(store.rows()) == 0 and screen.view()["done"] == 0


@pytest.mark.parametrize("seconds", [None, "3", -1, float("nan"), float("inf"), True, 1e30])
def test_a_latency_that_is_none_is_left_empty(store, seconds):
    screen = session(store)
    answer(screen, seconds=seconds, note=None)
    assert pd.isna(store.rows()["latency"][0]) and store.rows()["note"][0] == ""


def test_a_note_with_half_an_emoji_does_not_cost_the_answer(store):
    screen = session(store)
    answer(screen, note="\ud83d broken " + "x" * 5000)
    assert len(store.rows()) == 1 and len(store.rows()["note"][0]) == 2000


# undo, back, resume


def test_undo_shows_the_same_comparison_again_and_keeps_the_row(store):
    screen = session(store)
    answer(screen)
    answer(screen, "tie")
    undone = screen.asked[1]
    do(screen, "undo")
    assert (
        screen.shown == undone
        and screen.view()["done"] == 1
        and store.rows()["answer"].tolist()[-1] == "undo"
    )
    do(screen, "undo")
    do(screen, "undo")
    assert screen.view()["done"] == 0 and not screen.view()["undo"] and len(store.rows()) == 4


def test_back_shows_what_was_said_and_a_new_answer_replaces_it(store):
    screen = session(store)
    for word in ("left", "tie", "right"):
        answer(screen, word, note=word)
    do(screen, "back")
    do(screen, "back")
    assert (
        screen.shown == screen.asked[1]
        and screen.view()["given"] == "tie"
        and screen.view()["note"] == "tie"
        and screen.view()["earlier"]
    )
    answer(screen, "both_bad")
    assert (
        screen.shown == screen.asked[3]
        and store.labels()["answer"].tolist()[1] == "both_bad"
        and len(store.rows()) == 4
    )
    do(screen, "undo")
    assert screen.view()["given"] == "tie", "the earlier answer stands again"
    do(screen, "resume")
    assert screen.shown == screen.asked[3]


def test_going_back_from_the_first_is_nothing(store):
    screen = session(store)
    do(screen, "back")
    assert screen.shown == screen.asked[0] and not screen.view()["back"]


def test_who_comes_back_tomorrow_is_at_the_same_place(store):
    today = session(store, repeats=0.2)
    for _ in range(5):
        answer(today)
    do(today, "undo")
    tomorrow = session(store, repeats=0.2)
    same = [
        {k: v for k, v in s.view().items() if k not in ("turn", "message")}
        for s in (today, tomorrow)
    ]
    assert same[0] == same[1] and tomorrow.view()["done"] == 4


def test_the_end_can_still_be_gone_back_from(store):
    screen = session(store, n=2)
    answer(screen)
    answer(screen)
    assert screen.view()["state"] == "review" and screen.complete
    do(screen, "back")
    assert screen.view()["state"] == "ask" and screen.shown == screen.asked[1]


def test_progress_has_a_rate_and_a_time(store):
    screen = session(store)
    assert screen.view()["per_minute"] is None
    for seconds in (4, 6, 5, 5000):
        answer(screen, seconds=seconds)
    # a coffee break counts as two minutes
    assert screen.view()["per_minute"] == pytest.approx(60 / ((4 + 6 + 5 + 120) / 4))
    assert screen.view()["minutes_left"] == pytest.approx(6 / screen.view()["per_minute"])


def test_sources_and_scores_are_hidden_until_the_answer(store):
    screen = session(store)
    assert "reason" not in str(screen.view()) and "shf_cas" not in str(screen.view())
    answer(screen)
    assert screen.view()["last"] == {
        "answer": "Left is better",
        "reason": "reason 0",
        "strategy": "shf_cas",
    }


# order and repeats


def test_the_side_is_random_fixed_and_each_persons_own():
    sides = {
        name: [q.left == q.i for q in arranged(comparisons(200), name, seed)]
        for name, seed in (("anna", 0), ("ben", 0), ("anna ", 1))
    }
    assert all(60 < sum(side) < 140 for side in sides.values()) and sides["anna"] != sides["ben"]
    assert arranged(comparisons(200), "anna", 0) == arranged(comparisons(200), "anna", 0)


@pytest.mark.parametrize(
    "n, share, expected",
    [
        (30, 0.1, 3),
        (15, 0.1, 2),
        (5, 0.1, 0),
        (1, 1.0, 0),
        (0, 0.1, 0),
        (20, 0.0, 0),
        (20, 0.5, 10),
    ],
)
def test_a_share_is_asked_again_later_and_never_last(n, share, expected):
    asked = arranged(comparisons(n), "anna", 0, share)
    repeats = [k for k, q in enumerate(asked) if q.repeat]
    assert len(repeats) == expected and [q for q in asked if not q.repeat] == arranged(
        comparisons(n), "anna", 0, 0.0
    )
    for k in repeats:
        first = next(m for m, q in enumerate(asked) if q.key[:3] == asked[k].key[:3])
        assert k - first > min(5, max(1, n // 3)) - 1
    assert not n or not asked[-1].repeat


def test_a_repeat_looks_like_any_other_and_is_flagged_in_the_store(store):
    screen = session(store, n=20, repeats=0.2)
    views = []
    while not screen.complete:
        views.append(screen.view())
        answer(screen)
    assert len(views) == 24 and len({tuple(sorted(view)) for view in views}) == 1
    table = store.by_annotator()
    assert table["repeat"].sum() == 4 and len(store.labels()) == 20
    first = table[~table["repeat"]].set_index(["prompt_id", "i", "j"])["shown_left"]
    again = table[table["repeat"]].set_index(["prompt_id", "i", "j"])["shown_left"]
    assert set(again.index) <= set(first.index)


# several people and windows


def test_two_people_who_share_the_work_do_not_do_it_twice(store):
    anna, ben = session(store), session(store, name="ben")
    for _ in range(4):
        answer(anna)
    do(ben, "resume")
    assert ben.shown.key == anna.shown.key
    for _ in range(6):
        answer(ben)
    do(anna, "resume")
    assert anna.complete and ben.complete and len(store.rows()) == 10


def test_where_two_are_wanted_each_sees_all(store):
    anna, ben = session(store, people=2), session(store, name="ben", people=2)
    for _ in range(10):
        answer(anna)
    do(ben, "resume")
    assert anna.complete and ben.view()["done"] == 0
    for _ in range(10):
        answer(ben, "tie")
    assert set(store.labels()["label"]) <= {0.25, 0.75}


def test_the_same_person_in_two_windows_answers_once(store):
    one, other = session(store), session(store)
    answer(one, "tie")
    answer(other, "both_bad")
    assert (
        store.rows()["answer"].tolist() == ["tie"] and "another window" in other.view()["message"]
    )
    assert other.shown == other.asked[1]


WORKER = """
import random, sys
from pathlib import Path
sys.path[:0] = ["tests/screen", "tests/support"]
from test_widget import session
from shfcas_lib.storage.labels import LabelStore
with LabelStore(Path(sys.argv[1])) as store:
    screen = session(store, n=60, name=sys.argv[2], repeats=0.1, people=int(sys.argv[3]))
    print("ready", flush=True)
    while not screen.complete:
        said = random.choice(["left", "right", "tie"])
        screen.handle({"do": "answer", "turn": screen.turn, "answer": said, "seconds": 1})
        print(len(screen.open), flush=True)
"""


def start(path, name, people):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), name, str(people)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9_in_the_middle_of_labelling_loses_nothing_and_doubles_nothing(tmp_path):
    path = tmp_path / "labels.sqlite"
    confirmed = 66
    for stop in (50, 20):
        process = start(path, "anna", 1)
        for line in process.stdout:
            if line.strip() != "ready" and int(line) <= stop:
                confirmed = int(line)
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with LabelStore(path) as store:
            assert 66 - len(store.rows()) <= confirmed, "an answer that was confirmed is gone"
    finished = start(path, "anna", 1)
    _, errors = finished.communicate(timeout=120)
    assert finished.returncode == 0, errors
    with LabelStore(path) as store:
        assert (
            len(store.rows()) == 66
            and not store.rows().duplicated(["prompt_id", "i", "j", "repeat"]).any()
        )


def test_people_in_two_processes_at_once_lose_nothing(tmp_path):
    workers = [start(tmp_path / "labels.sqlite", name, 2) for name in ("anna", "ben")]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    with LabelStore(tmp_path / "labels.sqlite") as store:
        assert (
            store.by_annotator()["annotator"].value_counts().to_dict() == {"anna": 66, "ben": 66}
            and len(store.rows()) == 132
        )


# ratings


@pytest.mark.parametrize(
    "scale, words",
    [("safety", {"safe", "unsafe", "unsure", "skip"}), ("five", {"1", "2", "3", "4", "5", "skip"})],
)
def test_single_completions_are_rated_in_the_same_store(tmp_path, scale, words):
    table = completions(comparisons(6))
    screen = widget.rate(table, tmp_path / "labels.sqlite", "anna", scale, repeats=0.2)
    while screen.view["state"] == "ask":
        assert (
            len(screen.view["texts"]) == 1
            and {choice[0] for choice in screen.view["choices"]} == words
        )
        screen.handle(
            {
                "do": "answer",
                "turn": screen.view["turn"],
                "answer": sorted(words)[screen.view["done"] % len(words)],
            }
        )
    with LabelStore(tmp_path / "labels.sqlite") as store:
        assert len(store.ratings()) == screen.view["total"] and len(store.labels()) == 0
    screen.export(tmp_path / "out")
    assert len(pd.read_parquet(tmp_path / "out" / "ratings.parquet")) == screen.view["total"]


def test_no_two_choices_share_a_key_with_each_other_or_with_a_tool():
    for choices in CHOICES.values():
        keys = [key for _, key, _ in choices] + [
            "u",
            "Backspace",
            "p",
            "c",
            "n",
            "r",
            "?",
            "Enter",
            "Escape",
        ]
        assert len(keys) == len(set(keys))


# the whole loop


def finish(screen, choose=lambda view: "left"):
    """Answer all that a screen asks; returns how many answers that took."""
    given = 0
    while screen.view["state"] != "done":
        if screen.view["state"] == "ask":
            screen.handle(
                {
                    "do": "answer",
                    "turn": screen.view["turn"],
                    "answer": choose(screen.view),
                    "seconds": 1.0,
                }
            )
            given += 1
        else:
            assert screen.view["finish"] == "Finish the round"
            screen.handle({"do": "finish", "turn": screen.view["turn"]})
        assert given < 100
    return given


def test_the_screen_takes_the_loop_through_its_rounds(runs_folder):
    run, setting = tiny_run.make(tiny_run.settings())
    stage = run.stage("03_feedback")
    with pytest.raises(Unanswered):
        loop.run_rounds("shf_cas", setting, Person(), stage / "shf_cas")
    screen = widget.annotate(setting, Person(), stage, "anna")
    assert screen.view["where"] == "round 1 of 2"
    assert finish(screen) == 14  # twelve comparisons, and one blind repeat a round
    again = loop.run_rounds("shf_cas", setting, Person(), stage / "shf_cas")
    assert (
        len(again.labels) == 12
        and set(again.labels["annotator"]) == {"anna"}
        and len(again.rounds) == 2
    )
    assert not [p for p in stage.folder.rglob(".*")], "a temporary file was left behind"
    table = screen.export()
    assert table["measure"].tolist() == ["self-agreement"] and table["items"].tolist() == [2]
    assert len(pd.read_parquet(stage.folder / "shf_cas" / "export" / "preferences.parquet")) == 12


def test_grades_go_through_the_loop_into_labels_and_exports(runs_folder):
    graded = {"kind": "person", "graded": True}
    run, setting = tiny_run.make(tiny_run.settings(feedback=graded))
    stage = run.stage("03_feedback")
    screen = widget.annotate(setting, Person(), stage, "anna", repeats=0)
    finish(screen, lambda view: "much_left" if view["done"] % 2 else "left")
    labels = screen.outcomes["shf_cas"].labels
    assert labels["grade"].tolist() == [1.0, 2.0] * 6
    written = pd.read_parquet(stage.folder / "shf_cas" / "round_2" / "labels.parquet")
    assert written["grade"].tolist() == [1.0, 2.0] * 3
    screen.export()
    pairs = pd.read_parquet(stage.folder / "shf_cas" / "export" / "preferences.parquet")
    assert sorted(pairs["margin"]) == [0.0] * 6 + [1.0] * 6


def test_a_screen_made_anew_goes_on_in_the_second_round(runs_folder):
    run, setting = tiny_run.make(tiny_run.settings())
    stage = run.stage("03_feedback")
    screen = widget.annotate(setting, Person(), stage)
    while "round 1" in screen.view.get("where", ""):
        what = (
            {"do": "answer", "answer": "tie"} if screen.view["state"] == "ask" else {"do": "finish"}
        )
        screen.handle(what | {"turn": screen.view["turn"]})
    screen.handle({"do": "answer", "answer": "right", "turn": screen.view["turn"]})
    anew = widget.annotate(setting, Person(), stage)
    assert (
        anew.view["where"] == "round 2 of 2"
        and anew.view["done"] == 1
        and anew.view["texts"] == screen.view["texts"]
    )


def test_person_and_gold_make_the_same_reward_of_the_same_answers(runs_folder):
    """The loop does not know who answers: a person who says what the simulated human would gets
    the same reward."""
    run, setting = tiny_run.make(tiny_run.settings(), hostile=False)
    human = SimulatedHuman(lambda shown: -shown["index"].to_numpy(float))
    expected = loop.run_rounds("shf_cas", setting, human, run.stage("03_feedback") / "gold")
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"))
    finish(
        screen, lambda view: "left" if text(view["texts"][0]) < text(view["texts"][1]) else "right"
    )
    outcome = screen.outcomes["shf_cas"]
    columns = ["prompt_id", "i", "j", "answer", "label"]
    pd.testing.assert_frame_equal(outcome.labels[columns], expected.labels[columns])
    one, other = (trust.inner(result.reward) for result in (outcome, expected))
    assert (one.weight == other.weight).all()


def test_all_skipped_is_a_round_without_labels(runs_folder):
    run, setting = tiny_run.make(tiny_run.settings())
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"))
    finish(screen, lambda view: "skip")
    assert screen.outcomes["shf_cas"].rounds["labels"].tolist() == [0, 0]


def test_two_people_wanted_and_one_done_is_said(runs_folder):
    run, setting = tiny_run.make(tiny_run.settings())
    screen = widget.annotate(setting, Person(people=2), run.stage("03_feedback"), "anna")
    while screen.view["state"] == "ask":
        screen.handle({"do": "answer", "answer": "left", "turn": screen.view["turn"]})
    assert (
        screen.view["finish"] == "Look again" and "6 comparisons still wait" in screen.view["words"]
    )
    screen.handle({"do": "finish", "turn": screen.view["turn"]})
    assert screen.view["finish"] == "Look again"


def test_a_disk_that_does_not_take_the_answer_is_said_and_the_question_stays(runs_folder):
    run, setting = tiny_run.make(tiny_run.settings())
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"))
    before = screen.view["texts"]
    screen._work.session.store.connection.execute("PRAGMA query_only = ON")
    screen.handle({"do": "answer", "answer": "left", "turn": screen.view["turn"]})
    assert screen.view["message"].startswith("Not saved:") and screen.view["texts"] == before
    screen._work.session.store.connection.execute("PRAGMA query_only = OFF")
    screen.handle({"do": "answer", "answer": "left", "turn": screen.view["turn"]})
    assert screen.view["done"] == 1


def test_a_round_that_cannot_be_finished_says_so(runs_folder, monkeypatch):
    run, setting = tiny_run.make(tiny_run.settings())
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"))
    while screen.view["state"] == "ask":
        screen.handle({"do": "answer", "answer": "left", "turn": screen.view["turn"]})
    monkeypatch.setattr(loop.refine, "update", lambda *a, **k: 1 / 0)
    screen.handle({"do": "finish", "turn": screen.view["turn"]})
    assert (
        screen.view["lead"] == "The round could not be finished."
        and "division by zero" in screen.view["words"]
    )
    monkeypatch.undo()
    monkeypatch.setenv("SHFCAS_RUNS", str(runs_folder))
    assert (
        widget.annotate(setting, Person(), run.stage("03_feedback")).view["where"] == "round 2 of 2"
    )


def told(screen, count):
    """What the line at the bottom says after each of so many answers."""
    words = []
    for _ in range(count):
        screen.handle({"do": "answer", "answer": "left", "turn": screen.view["turn"]})
        screen._thread.join()
        words.append(screen.estimate)
    return words


def test_after_every_ten_labels_the_screen_says_how_wrong_the_proxy_is(runs_folder):
    run, setting = tiny_run.make(
        tiny_run.settings(
            selection={
                "strategies": ["shf_cas"],
                "budget": 24,
                "rounds": 1,
                "random_share": 0.8,
            }
        ),
        hostile=False,
    )
    stage = run.stage("03_feedback")
    screen = widget.annotate(setting, Person(), stage, repeats=0)
    words = told(screen, 20)
    assert set(words[:9]) == {""} and len(set(words[9:19])) == 1 and words[18] != words[19]
    assert all(sentence.startswith("The proxy is right on ") for sentence in words[9:])
    assert "chance" not in str(screen.view | {"last": None}), "nothing tells before the answer"
    drawn = pd.read_parquet(stage.folder / "shf_cas/round_1/comparisons.parquet")["drawn"]
    for place, sentence in ((10, words[9]), (20, words[19])):
        assert f"by {drawn.head(place).sum()} labels drawn by chance" in sentence

    # drawn pairs are known as such from the label store, after the answer, and in the labels
    with LabelStore(stage.folder / "shf_cas" / "labels.sqlite") as store:
        reasons = store.rows()["reason"]
    assert (reasons.eq("drawn by chance").to_numpy() == drawn.head(20).to_numpy()).all()
    told(screen, 4)
    screen.handle({"do": "finish", "turn": screen.view["turn"]})
    labels = screen.outcomes["shf_cas"].labels
    assert labels["drawn"].tolist() == drawn.tolist() and drawn.sum() == 20


def test_labels_of_chosen_pairs_alone_get_a_sentence_and_no_number(runs_folder):
    run, setting = tiny_run.make(
        tiny_run.settings(selection={"strategies": ["shf_cas"], "budget": 12, "rounds": 1}),
        hostile=False,
    )
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"), repeats=0)
    words = told(screen, 10)
    assert set(words[:9]) == {""} and "selection.random_share" in words[9]


def test_a_comparison_that_another_person_must_still_answer_does_not_count(runs_folder):
    run, setting = tiny_run.make(
        tiny_run.settings(selection={"strategies": ["random"], "budget": 12, "rounds": 1}),
        hostile=False,
    )
    stage = run.stage("03_feedback")
    anna = widget.annotate(setting, Person(people=2), stage, "anna", repeats=0)
    assert told(anna, 12)[-1].endswith("so far there are 0.")
    bert = widget.annotate(setting, Person(people=2), stage, "bert", repeats=0)
    words = told(bert, 8)
    assert words[6].endswith("so far there are 0.") and words[7] != words[6]
    with LabelStore(stage.folder / "random" / "labels.sqlite") as store:
        labels = store.labels()
    both = labels["annotator"].eq("anna, bert") & labels["label"].ne(0.5)
    assert str(both.sum()) in words[7] and both.sum() > 0


def test_nobody_is_shown_a_screen_where_nobody_is_asked(runs_folder):
    run, setting = tiny_run.make(tiny_run.settings())
    assert widget.annotate(setting, SimulatedHuman(None), run.stage("03_feedback")) is None


@pytest.mark.parametrize("bad", [{"name": "a\nb"}, {"name": "x" * 65}, {"repeats": 1.5}])
def test_a_bad_name_or_share_is_refused(runs_folder, bad):
    run, setting = tiny_run.make(tiny_run.settings())
    with pytest.raises(InputError):
        widget.annotate(setting, Person(), run.stage("03_feedback"), **bad)


def test_no_front_end_file_writes_html():
    source = (ROOT / "shfcas_lib" / "screen" / "screen.js").read_text()
    assert not any(
        word in source
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        )
    )


# the notebook, headless


def test_the_notebook_stops_with_one_sentence_headless_and_goes_through_once_all_is_answered(
    runs_folder, tmp_path, monkeypatch
):
    run, setting = tiny_run.make(tiny_run.settings())
    monkeypatch.setenv("PYTHONPATH", PATHS)
    execute = lambda out: papermill.execute_notebook(  # noqa: E731
        ROOT / "notebooks" / "03_targeted_feedback.ipynb",
        out,
        parameters=run.params.model_dump(),
        cwd=ROOT,
        kernel_name="python3",
        progress_bar=False,
    )
    with pytest.raises(
        papermill.PapermillExecutionError,
        match="6 of 6 comparisons .* open notebook 03 in JupyterLab",
    ) as stopped:
        execute(tmp_path / "stopped.ipynb")
    assert stopped.value.ename == "Unanswered"
    screen = widget.annotate(setting, Person(), run.stage("03_feedback"), "anna", repeats=0)
    finish(screen, lambda view: ("left", "right", "tie", "both_bad", "skip")[view["done"] % 5])
    execute(tmp_path / "done.ipynb")
    written = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    with LabelStore(run.folder / "03_feedback" / "shf_cas" / "labels.sqlite") as store:
        given = store.labels()["label"].notna().sum()
    assert given == 10 and any(
        f"shf_cas: {given} labels" in str(cell.get("outputs")) for cell in written.cells
    )


class EchoJudge:
    """Prefers the first completion; stands in for the language model, whose own tests are in
    test_judge."""

    name = "judge:echo"

    def answer_all(self, comparisons, shown, known):
        for _, comparison in comparisons.iterrows():
            if tuple(comparison[["prompt_id", "i", "j"]]) not in known:
                yield comparison, "first", self.name


def test_beside_a_judge_the_screen_asks_the_person_for_the_top_conflicts_alone(runs_folder):
    run, setting = tiny_run.make(
        tiny_run.settings(selection={"strategies": ["shf_cas"], "budget": 12, "rounds": 1})
    )
    stage = run.stage("03_feedback")
    screen = widget.annotate(setting, Mixed(Person(), EchoJudge(), 0.25), stage, "anna", repeats=0)
    for _ in range(3):
        screen.handle({"do": "answer", "turn": screen.view["turn"], "answer": "left"})
    screen.handle({"do": "finish", "turn": screen.view["turn"]})
    labels = screen.outcomes["shf_cas"].labels
    assert labels["annotator"].value_counts().to_dict() == {"judge:echo": 9, "anna": 3}
    assert set(labels.loc[labels["annotator"] == "anna", "rank"]) == {1, 2, 3}
