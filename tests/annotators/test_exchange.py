"""Questions to a team and its answers: Label Studio's files, and spreadsheets that must not come
alive."""

import copy
import csv
import io
import json
from xml.etree import ElementTree

import pandas as pd
import pytest
import team_run
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas_lib.annotators import exchange, label_studio, spreadsheet
from shfcas_lib.annotators.questions import parsed
from shfcas_lib.base import texts
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli import program
from shfcas_lib.storage.labels import LabelStore

FORMULA = tuple("=+-@＝＋－＠\t\r\n")
# Without half characters, which no UTF-8 file holds.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SPICED = st.lists(
    st.one_of(TEXT, st.sampled_from([*"=+-@'\";,\t\r\n ＝", "\r\n"])), max_size=12
).map("".join)


@pytest.fixture
def waiting(planted):
    """A run that stopped because its first round waits for the team."""
    run, go_on = team_run.start(planted[0])
    with pytest.raises(InputError, match="8 comparisons of this round wait for the team"):
        go_on()
    return run, go_on


def labels(run, strategy="shf_cas"):
    with LabelStore(run.folder / "03_feedback" / strategy / "labels.sqlite") as store:
        return store.labels()


def raw(run, strategy="shf_cas"):
    with LabelStore(run.folder / "03_feedback" / strategy / "labels.sqlite") as store:
        return store.connection.execute(
            "SELECT prompt_id, i, j, answer, annotator FROM answers ORDER BY id"
        ).fetchall()


def annotated(tasks, answers, who=1, start=0):
    """What Label Studio exports for these tasks: the documented fields, those that we do not read
    included."""
    out = []
    for number, (task, answer) in enumerate(zip(tasks, answers, strict=False), 1 + start):
        annotation = {
            "id": 100 + number,
            "completed_by": who,
            "was_cancelled": answer is None,
            "ground_truth": False,
            "created_at": f"2026-01-01T10:{number:02d}:00.000000Z",
            "updated_at": f"2026-01-01T10:{number:02d}:00.000000Z",
            "lead_time": 3.2,
            "result": (
                []
                if answer is None
                else [
                    {
                        "id": "Abc",
                        "type": "choices",
                        "from_name": "answer",
                        "to_name": "prompt",
                        "origin": "manual",
                        "value": {"choices": [answer]},
                    }
                ]
            ),
        }
        out.append(
            {
                "id": number,
                "data": task["data"],
                "annotations": [annotation],
                "predictions": [],
                "project": 1,
                "inner_id": number,
                "file_upload": "x.json",
            }
        )
    return out


def sides(task):
    _, left, right, _ = parsed(task["data"]["question"], "")
    return left, right


def save(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# what is asked


def test_what_waits_is_exported_in_a_drawn_order_that_stays(waiting):
    run, _ = waiting
    questions = exchange.pending(run)
    chosen = pd.read_parquet(run.folder / "03_feedback/shf_cas/round_1/comparisons.parquet")
    pool = run.require("02_conflict", "pool_feedback").set_index(["prompt_id", "index"])
    assert len(questions) == 8
    turned = []
    for row, comparison in zip(questions.itertuples(), chosen.itertuples(), strict=True):
        prompt, left, right, _ = parsed(row.question, "")
        assert (prompt, *sorted([left, right])) == (
            comparison.prompt_id,
            comparison.i,
            comparison.j,
        )
        assert (
            row.left == pool.loc[(prompt, left), "completion"]
            and row.right == pool.loc[(prompt, right), "completion"]
        )
        assert row.prompt == pool.loc[(prompt, left), "prompt"]
        turned.append(left > right)
    assert len(set(turned)) == 2
    pd.testing.assert_frame_equal(exchange.pending(run), questions)


def test_the_file_does_not_tell_strategy_reward_or_source(waiting, tmp_path):
    exchange.write_questions(exchange.pending(waiting[0]), tmp_path / "tasks.json")
    assert set(json.loads((tmp_path / "tasks.json").read_text())[0]["data"]) == {
        "question",
        "prompt",
        "left",
        "right",
    }


def test_export_before_the_loop_asked_says_what_to_run(planted):
    run, _ = team_run.start(planted[0])
    with pytest.raises(InputError, match="run notebook 03"):
        exchange.pending(run)


def test_completions_of_two_policies_under_one_index_are_two_questions(waiting):
    """Trained policies sample anew for each strategy; their completions have the same indices."""
    run, _ = waiting
    chosen = pd.read_parquet(run.folder / "03_feedback/shf_cas/round_1/comparisons.parquet").head(1)
    for name, text in (("shf_cas", "one"), ("random", "other")):
        stage = run.stage("03_feedback") / name
        fresh = run.require("02_conflict", "pool_feedback").assign(completion=text)
        fresh["completion"] += fresh.index.astype(str)
        (stage / "round_1").table(
            "next_pool", lambda fresh=fresh: fresh.assign(index=fresh["index"] + 6)
        )
        (stage / "round_2").table(
            "comparisons",
            lambda name=name: chosen.assign(i=chosen["i"] + 6, j=chosen["j"] + 6, strategy=name),
        )
    new = exchange.pending(run)
    new = new[[max(parsed(q, "")[1:3]) > 5 for q in new["question"]]]
    assert (
        new["question"].nunique() == 2 and len({q.rsplit("-", 1)[0] for q in new["question"]}) == 1
    )
    assert sorted(text[:3] for text in new["left"]) == ["one", "oth"]


# Label Studio


def test_the_labelling_configuration_shows_text_and_offers_the_answers():
    root = ElementTree.fromstring(label_studio.labelling_configuration())
    shown = {tag.get("name"): tag.get("value") for tag in root.iter("Text")}
    assert shown == {"prompt": "$prompt", "left": "$left", "right": "$right"}
    assert not list(root.iter("HyperText")) and {
        tag.get("valueType") for tag in root.iter("Text")
    } == {"text"}
    choices = root.find("Choices")
    assert choices.get("choice") == "single-radio" and choices.get("toName") in shown
    assert [c.get("value") for c in choices][:3] == ["left", "right", "tie"] and len(
        {c.get("hotkey") for c in choices}
    ) == len(choices)


def test_graded_answers_are_offered_and_come_back_from_both_kinds_of_file(planted, tmp_path):
    """One file is exported by Label Studio, the other is a sheet; they agree."""
    words = ["much_left", "left", "tie", "right", "much_right", "both_bad", "left", "much_right"]
    tables = {}
    for name in ("studio", "sheet"):
        feedback = {"kind": "team", "graded": True}
        run, go_on = team_run.start(planted[0], run=name, feedback=feedback)
        with pytest.raises(InputError):
            go_on()
        questions = exchange.pending(run)
        if name == "studio":
            exchange.write_questions(questions, tmp_path / "tasks.json", graded=True)
            root = ElementTree.fromstring((tmp_path / "tasks.xml").read_text())
            choices = [choice.get("value") for choice in root.find("Choices")]
            assert choices == ["much_left", "left", "right", "much_right", "tie", "both_bad"]
            tasks = json.loads((tmp_path / "tasks.json").read_text())
            path = save(tmp_path / "answers.json", annotated(tasks, words))
        else:
            rows = filled(run, tmp_path / "q.csv", [word.replace("_", " ") for word in words])
            path = written(tmp_path / "answers.csv", rows)
        assert exchange.bring_in(run, path)["added"] == 8
        assert exchange.bring_in(run, path)["known"] == 8
        tables[name] = labels(run)[["prompt_id", "i", "j", "answer", "label", "grade"]]
    pd.testing.assert_frame_equal(tables["studio"], tables["sheet"])
    got = tables["sheet"].set_index(["prompt_id", "i", "j"])
    for question, word in zip(questions["question"], words, strict=True):
        prompt, left, right, _ = parsed(question, "")
        row = got.loc[prompt, min(left, right), max(left, right)]
        side = word.removeprefix("much_")
        if side in ("left", "right"):
            first = (side == "left") == (left < right)
            assert row["answer"] == ("first" if first else "second")
            assert row["grade"] == (2.0 if word.startswith("much") else 1.0)
        else:
            assert row["answer"] == word and pd.isna(row["grade"])


def test_a_changed_grade_is_a_new_answer(planted, tmp_path):
    run, go_on = team_run.start(planted[0], feedback={"kind": "team", "graded": True})
    with pytest.raises(InputError):
        go_on()
    tasks = label_studio.tasks(exchange.pending(run))
    exchange.bring_in(run, save(tmp_path / "a.json", annotated(tasks, ["left"] * 8)))
    changed = annotated(tasks, ["much_left"] + ["left"] * 7)
    counts = exchange.bring_in(run, save(tmp_path / "a.json", changed))
    assert (counts["added"], counts["known"]) == (1, 7)
    assert sorted(labels(run)["grade"]) == [1.0] * 7 + [2.0]


def test_much_better_is_refused_where_answers_are_not_graded(waiting, tmp_path):
    rows = filled(waiting[0], tmp_path / "q.csv", ["tie", "much_left"])
    with pytest.raises(InputError, match="row 2: answer 'much_left', expected left, right, tie"):
        exchange.bring_in(waiting[0], written(tmp_path / "a.csv", rows))
    assert raw(waiting[0]) == []


def test_label_studio_round_trip_then_the_loop_goes_on(waiting, tmp_path):
    run, go_on = waiting
    written = exchange.write_questions(exchange.pending(run), tmp_path / "tasks.json")
    assert [path.name for path in written] == ["tasks.json", "tasks.xml"]
    tasks = json.loads(written[0].read_text())
    answers = ["left", "right", "tie", "left", "right", "tie", "left", "right"]
    counts = exchange.bring_in(run, save(tmp_path / "answers.json", annotated(tasks, answers)))
    assert counts == {"added": 8, "known": 0, "closed": 0, "waiting": 0}
    with pytest.raises(InputError, match="8 comparisons of this round"):
        go_on()  # the second round
    first = pd.read_parquet(run.folder / "03_feedback/shf_cas/round_1/labels.parquet").set_index(
        ["prompt_id", "i", "j"]
    )
    for task, answer in zip(tasks, answers, strict=True):
        left, right = sides(task)
        expected = (
            "tie"
            if answer == "tie"
            else "first"
            if (answer == "left") == (left < right)
            else "second"
        )
        row = first.loc[(task["data"]["question"].split("-")[1], *sorted([left, right]))]
        assert (row["answer"], row["annotator"]) == (expected, "label-studio:1")
    again = json.loads(
        exchange.write_questions(exchange.pending(run), tmp_path / "second.json")[0].read_text()
    )
    assert len(again) == 8 and not {t["data"]["question"] for t in again} & {
        t["data"]["question"] for t in tasks
    }
    # Label Studio exports the whole project
    both = annotated(tasks, answers) + annotated(again, ["tie"] * 8, who=2, start=8)
    assert exchange.bring_in(run, save(tmp_path / "all.json", both)) == {
        "added": 8,
        "known": 8,
        "closed": 0,
        "waiting": 0,
    }
    assert len(go_on().labels) == 16


def test_importing_twice_changes_nothing_and_a_changed_mind_is_a_new_row(waiting, tmp_path):
    run, _ = waiting
    tasks = label_studio.tasks(exchange.pending(run))
    path = save(tmp_path / "a.json", annotated(tasks, ["tie"] * 8))
    exchange.bring_in(run, path)
    assert (
        exchange.bring_in(run, path) == {"added": 0, "known": 8, "closed": 0, "waiting": 0}
        and len(raw(run)) == 8
    )
    exchange.bring_in(run, save(path, annotated(tasks, ["left"] + ["tie"] * 7)))
    assert len(raw(run)) == 9 and (labels(run)["answer"] != "tie").sum() == 1


def test_several_annotators_are_all_kept_in_the_order_of_their_work(waiting, tmp_path):
    run, _ = waiting
    tasks = label_studio.tasks(exchange.pending(run))[:1]
    exported = annotated(tasks, ["left"], who={"id": 7, "email": "ann@example.org"})
    late, early = (copy.deepcopy(exported[0]["annotations"][0]) for _ in range(2))
    late |= {"id": 5, "completed_by": 9, "updated_at": "2026-01-02T00:00:00.000000Z"}
    early |= {"id": 6, "completed_by": 8, "updated_at": "2025-12-31T00:00:00.000000Z"}
    early["result"][0]["value"]["choices"] = ["tie"]
    exported[0]["annotations"] = [late, exported[0]["annotations"][0], early]
    exchange.bring_in(run, save(tmp_path / "a.json", exported))
    assert [row[4] for row in raw(run)] == [
        "label-studio:8",
        "label-studio:ann@example.org",
        "label-studio:9",
    ]


def test_skipped_tasks_and_tasks_without_annotations_stay_open(waiting, tmp_path):
    run, _ = waiting
    exported = annotated(label_studio.tasks(exchange.pending(run)), ["tie", None, "left"])
    exported[2]["annotations"] = []
    assert exchange.bring_in(run, save(tmp_path / "a.json", exported)) == {
        "added": 1,
        "known": 0,
        "closed": 0,
        "waiting": 7,
    }


def test_an_answer_to_a_finished_round_is_counted_and_not_stored(waiting, tmp_path):
    run, go_on = waiting
    tasks = label_studio.tasks(exchange.pending(run))
    exchange.bring_in(run, save(tmp_path / "a.json", annotated(tasks, ["tie"] * 8)))
    with pytest.raises(InputError):
        go_on()
    counts = exchange.bring_in(
        run, save(tmp_path / "a.json", annotated(tasks, ["left"] * 8, who=2))
    )
    assert counts == {"added": 0, "known": 0, "closed": 8, "waiting": 8} and len(raw(run)) == 8


def spoilt(kind, exported):
    annotation = exported[3]["annotations"][0]
    if kind == "unknown question":
        exported[3]["data"] = exported[3]["data"] | {"question": "q-p99-0-1-0123abcd"}
    elif kind == "other texts":
        exported[3]["data"] = exported[3]["data"] | {
            "question": exported[3]["data"]["question"][:-8] + "00000000"
        }
    elif kind == "no id":
        exported[3]["data"] = {"text": "somebody else's task"}
    elif kind == "two answers":
        annotation["result"] *= 2
    elif kind == "two choices":
        annotation["result"][0]["value"]["choices"] = ["left", "right"]
    elif kind == "strange answer":
        annotation["result"][0]["value"]["choices"] = ["middle"]
    elif kind == "nobody":
        annotation["completed_by"] = None
    elif kind == "json-min":
        exported[3] = {"id": 4, "answer": "left", **exported[3]["data"]}
    elif kind == "not a list":
        return {"tasks": exported}
    elif kind == "annotation of another shape":
        exported[3]["annotations"] = ["left"]
    return exported


@pytest.mark.parametrize(
    "kind, words",
    [
        ("unknown question", "task 4 .*'team' asks no such question"),
        ("other texts", "asks no such question"),
        ("no id", "none of ours"),
        ("two answers", "holds 2 answers"),
        ("two choices", "annotation 104 holds 2 answers"),
        ("strange answer", "'middle', expected left, right, tie"),
        ("nobody", "completed_by"),
        ("json-min", "not JSON-MIN"),
        ("not a list", "list of tasks"),
        ("annotation of another shape", "annotation is str"),
    ],
)
def test_a_bad_export_is_refused_whole_in_one_sentence(waiting, tmp_path, kind, words):
    run, _ = waiting
    exported = annotated(label_studio.tasks(exchange.pending(run)), ["tie"] * 8)
    with pytest.raises(InputError, match=words) as caught:
        exchange.bring_in(run, save(tmp_path / "a.json", spoilt(kind, exported)))
    assert raw(run) == [] and "\n" not in str(caught.value) and "a.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_what_is_no_export_is_one_sentence(waiting, tmp_path, text):
    with pytest.raises(InputError, match="a.json"):
        exchange.bring_in(waiting[0], save(tmp_path / "a.json", text))


# spreadsheets


@given(SPICED)
@settings(max_examples=400, deadline=None)
def test_a_cell_is_harmless_and_comes_back(text):
    cell = texts.neutral(text)
    assert texts.restored(cell) == text
    assert not cell.lstrip(' "').startswith(FORMULA)


@given(st.lists(st.tuples(SPICED, SPICED, SPICED, SPICED), max_size=5))
@settings(max_examples=200, deadline=None)
def test_csv_comes_back_whole(rows):
    table = pd.DataFrame(rows, columns=["question", "left", "right", "answer"], dtype=object)
    wanted = table.to_dict("records")
    for row in wanted:
        if not any(texts.neutral(cell).strip() for cell in row.values()):
            row.clear()
    while wanted and not wanted[-1]:
        wanted.pop()
    assert spreadsheet.csv_rows(spreadsheet.csv_text(table), "x") == wanted


@given(st.lists(st.tuples(SPICED, SPICED), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_cell_is_a_formula_even_where_the_file_is_opened_with_another_separator(rows):
    text = spreadsheet.csv_text(pd.DataFrame(rows, columns=["question", "answer"], dtype=object))
    for separator in ",;\t":
        for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            assert not any(cell.lstrip(" ").startswith(tuple("=+-@＝＋－＠")) for cell in line), (
                separator,
                line,
            )


def filled(run, path, answers, **columns):
    """Export a sheet, and fill it in as a person would."""
    exchange.write_questions(exchange.pending(run), path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, answer in zip(rows, answers, strict=False):
        row |= {"answer": answer, **columns}
    return rows


def written(path, rows, delimiter=",", encoding="utf-8-sig", names=None):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(
            file, names or list(rows[0]), delimiter=delimiter, extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheet_round_trip_then_the_loop_goes_on(waiting, tmp_path, delimiter):
    run, go_on = waiting
    rows = filled(
        run,
        tmp_path / "q.csv",
        ["left", " Right ", "TIE", "left", "right", "tie", "left", ""],
        annotator="=ann",
    )
    for row in rows:  # what Excel does to line ends
        row["left"] = row["left"].replace("\r\n", "\n").replace("\r", "\n")
    counts = exchange.bring_in(run, written(tmp_path / "a.csv", rows[::-1], delimiter))
    assert counts == {"added": 7, "known": 0, "closed": 0, "waiting": 1}
    got = labels(run).set_index(["prompt_id", "i", "j"])
    for row in rows[:7]:
        prompt, left, right, _ = parsed(row["question"], "")
        given = row["answer"].strip().lower()
        expected = (
            "tie"
            if given == "tie"
            else "first"
            if (given == "left") == (left < right)
            else "second"
        )
        assert tuple(got.loc[(prompt, *sorted([left, right])), ["answer", "annotator"]]) == (
            expected,
            "=ann",
        )
    with pytest.raises(InputError, match="1 comparisons of this round"):
        go_on()


def test_a_sheet_with_only_ids_and_answers_is_enough(waiting, tmp_path):
    run, _ = waiting
    rows = filled(run, tmp_path / "q.csv", ["tie"] * 8)
    path = written(tmp_path / "a.csv", rows, names=["answer", "question"])
    assert exchange.bring_in(run, path, "ann")["added"] == 8 and set(labels(run)["annotator"]) == {
        "ann"
    }


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda row: row | {"answer": "middle"},
            "row 4: answer 'middle', expected left, right, tie",
        ),
        (lambda row: row | {"question": "4"}, "row 4: question '4' is none of ours"),
        (
            lambda row: row | {"question": "q-p99-0-1-0123abcd"},
            "row 4: run 'team' asks no such question",
        ),
        (lambda row: row | {"question": row["question"][:-1] + "x"}, "row 4"),
        (
            lambda row: row | {"left": "moved"},
            "row 4: the text under 'left' is not that of q-.*sorted",
        ),
    ],
)
def test_a_bad_row_is_refused_by_number_and_nothing_is_imported(waiting, tmp_path, change, words):
    run, _ = waiting
    rows = filled(run, tmp_path / "q.csv", ["tie"] * 8)
    rows[3] = change(rows[3])
    with pytest.raises(InputError, match=words) as caught:
        exchange.bring_in(run, written(tmp_path / "a.csv", rows))
    assert raw(run) == [] and "\n" not in str(caught.value)


def test_one_person_with_two_answers_is_refused_and_two_persons_are_not(waiting, tmp_path):
    run, _ = waiting
    rows = filled(run, tmp_path / "q.csv", ["tie"] * 8)
    with pytest.raises(
        InputError, match="row 9: 'spreadsheet' answers this question another way than in row 2"
    ):
        exchange.bring_in(run, written(tmp_path / "a.csv", [*rows, rows[1] | {"answer": "left"}]))
    assert raw(run) == []
    assert (
        exchange.bring_in(
            run,
            written(tmp_path / "a.csv", [*rows, rows[1] | {"answer": "left", "annotator": "bob"}]),
        )["added"]
        == 9
    )


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "it has no header"),
        (b"answer\nleft\n", "no column 'question'"),
        (b"question;given\n", "no column 'answer'"),
        (b'question,answer\n"q', "after row 0"),
        (b"question,answer\nq,tie,more\n", "row 1: 3 cells, expected 2"),
        (b"question,answer\nq,\x00\x01\x81\x8d\xff\n", "CSV UTF-8"),
        (b"question,answer,Answer\nq,tie,tie\n", "names 'answer' twice"),
    ],
)
def test_what_is_no_sheet_of_ours_is_one_sentence(waiting, tmp_path, data, words):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match=words):
        exchange.bring_in(waiting[0], tmp_path / "a.csv")


def test_a_failure_within_the_import_leaves_nothing(waiting, tmp_path, monkeypatch):
    run, _ = waiting
    rows = filled(run, tmp_path / "q.csv", ["tie"] * 8)
    path = written(tmp_path / "a.csv", rows)
    insert, calls = LabelStore._insert, []

    def failing(*arguments, **facts):
        calls.append(1)
        if len(calls) == 5:
            raise OSError("disk full")
        return insert(*arguments, **facts)

    monkeypatch.setattr(LabelStore, "_insert", failing)
    with pytest.raises(OSError):
        exchange.bring_in(run, path)
    monkeypatch.undo()
    monkeypatch.setenv("SHFCAS_RUNS", str(run.folder.parent))
    assert raw(run) == [] and exchange.bring_in(run, path)["added"] == 8


def test_a_comparison_that_two_strategies_chose_is_asked_once_and_answered_for_both(
    planted, tmp_path
):
    run, go_on = team_run.start(
        planted[0], selection={"budget": 200, "rounds": 1, "strategies": ["shf_cas", "random"]}
    )
    for name in ("shf_cas", "random"):
        with pytest.raises(InputError):
            go_on(name)
    chosen = [
        pd.read_parquet(run.folder / f"03_feedback/{name}/round_1/comparisons.parquet")
        for name in ("shf_cas", "random")
    ]
    both = len(chosen[0].merge(chosen[1], on=["prompt_id", "i", "j"]))
    questions = exchange.pending(run)
    assert both and len(questions) == 400 - both
    path = save(
        tmp_path / "a.json", annotated(label_studio.tasks(questions), ["tie"] * len(questions))
    )
    assert exchange.bring_in(run, path) == {"added": 400, "known": 0, "closed": 0, "waiting": 0}
    assert len(go_on("shf_cas").labels) == len(go_on("random").labels) == 200


# the command line


def test_the_commands(waiting, tmp_path, capsys):
    run, _ = waiting
    config = save(tmp_path / "team.yaml", yaml.safe_dump(run.params.model_dump()))
    assert program.main(["export", str(config), str(tmp_path / "q.csv")]) == 0
    assert "8 comparisons" in capsys.readouterr().out
    rows = list(
        csv.DictReader(
            io.StringIO((tmp_path / "q.csv").read_text(encoding="utf-8-sig"), newline="")
        )
    )
    written(tmp_path / "q.csv", [row | {"answer": "tie"} for row in rows])
    assert program.main(["import", str(config), str(tmp_path / "q.csv"), "--annotator", "ann"]) == 0
    assert (
        "8 answers added" in (out := capsys.readouterr().out)
        and "run the same parameters again" in out
    )
    assert program.main(["export", str(config), str(tmp_path / "q.csv")]) == 2
    assert capsys.readouterr().err == "shfcas: nothing waits for an answer\n"
    for arguments in (
        ["import", str(config), str(tmp_path / "none.csv")],
        ["export", str(config), str(tmp_path / "q.xlsx")],
        ["import", str(config), str(tmp_path)],
    ):
        assert program.main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_files_of_another_run_are_refused(waiting, tmp_path, planted):
    run, _ = waiting
    path = save(
        tmp_path / "a.json", annotated(label_studio.tasks(exchange.pending(run)), ["tie"] * 8)
    )
    pool = planted[0].assign(logp=planted[0]["logp"].to_numpy()[::-1])
    other, go_on = team_run.start(pool.assign(features=list(pool["features"])[::-1]), run="other")
    with pytest.raises(InputError):
        go_on()
    with pytest.raises(InputError, match="'other' asks no such question"):
        exchange.bring_in(other, path)


# people under several names


def studio_csv(path, tasks, answers, who, number=100):
    """Label Studio's csv export: one row an annotation, with columns of its own."""
    rows = []
    for task, answer in zip(tasks, answers, strict=False):
        number += 1
        own = {"answer": answer, "annotator": who, "annotation_id": number, "lead_time": 2.5}
        rows.append(task["data"] | own)
    return written(path, rows)


ANN = {"id": 1, "email": "Ann@example.org"}


@pytest.mark.parametrize(
    "order",
    [
        (1, "csv 1"),
        (ANN, 1),
        (ANN, "csv 1"),
        (ANN, "csv ann@example.org"),
        ("csv 1", 1),
        ("csv ann@example.org", ANN, 1),
        ("sheet ann@example.org", ANN, "csv 1"),
        (1, ANN, "csv ann@example.org"),
        (1, "sheet 1", "sheet 1.0"),
        (1, "csv ann@example.org", ANN),
    ],
    ids=str,
)
def test_one_person_is_one_annotator_whichever_file_brings_the_answers(waiting, tmp_path, order):
    run, _ = waiting
    tasks = label_studio.tasks(exchange.pending(run))
    for step, who in enumerate(order):
        path = tmp_path / f"{step}.json"
        kind, _, name = str(who).partition(" ")
        if kind == "csv":
            path = studio_csv(tmp_path / f"{step}.csv", tasks, ["left"] * 8, name)
        elif kind == "sheet":
            rows = [task["data"] | {"answer": "left", "annotator": name} for task in tasks]
            path = written(tmp_path / f"{step}.csv", rows)
        else:
            save(path, annotated(tasks, ["left"] * 8, who=who))
        exchange.bring_in(run, path)
    with LabelStore(run.folder / "03_feedback/shf_cas/labels.sqlite") as store:
        table = store.by_annotator()
    assert len(table) == 8 and table["annotator"].nunique() == 1


def test_two_people_stay_two(waiting, tmp_path):
    run, _ = waiting
    tasks = label_studio.tasks(exchange.pending(run))
    for number, who in enumerate([{"id": 1, "email": "a@x.org"}, {"id": 2, "email": "b@x.org"}, 3]):
        path = save(tmp_path / f"{number}.json", annotated(tasks, ["left"] * 8, who=who))
        assert exchange.bring_in(run, path)["added"] == 8
    assert len(set(row[4] for row in raw(run))) == 3


def test_the_later_of_two_annotations_in_a_studio_csv_counts(waiting, tmp_path):
    run, _ = waiting
    tasks = label_studio.tasks(exchange.pending(run))[:1]
    path = studio_csv(tmp_path / "a.csv", tasks * 2, ["left", "tie"], "1")
    assert exchange.bring_in(run, path)["added"] == 1
    assert list(labels(run)["answer"]) == ["tie"]


@pytest.mark.parametrize("kind", ["no result", "no choices", "a note alone"])
def test_an_empty_submitted_annotation_is_skipped_and_counted(waiting, tmp_path, kind, capsys):
    run, _ = waiting
    exported = annotated(label_studio.tasks(exchange.pending(run)), ["tie"] * 8)
    result = exported[3]["annotations"][0]["result"]
    if kind == "no result":
        result.clear()
    elif kind == "no choices":
        result[0]["value"]["choices"] = []
    else:
        result[0] |= {"type": "textarea", "from_name": "note", "value": {"text": ["hm"]}}
    path = save(tmp_path / "a.json", exported)
    counts = exchange.bring_in(run, path)
    assert (counts["added"], counts["waiting"], counts["empty"]) == (7, 1, 1)
    config = save(tmp_path / "team.yaml", yaml.safe_dump(run.params.model_dump()))
    assert program.main(["import", str(config), str(path)]) == 0
    assert "1 annotations were submitted without an answer" in capsys.readouterr().out


# what programs make of a sheet


def changed_by_a_spreadsheet(waiting, cells):
    """The run, and its sheet, with these texts and what a spreadsheet made of them."""
    run, _ = waiting
    pool = run.require("02_conflict", "pool_feedback")
    texts_ = list(cells)
    pool["completion"] = [texts_[k % len(texts_)] + " " * 0 for k in range(len(pool))]
    pool.to_parquet(run.folder / "02_conflict/pool_feedback.parquet", index=False)
    rows = []
    for row in exchange.pending(run).to_dict("records"):
        new = {side: cells.get(row[side], row[side]) for side in ("left", "right")}
        rows.append(row | new | {"answer": "left", "annotator": ""})
    return run, rows


CHANGED = {
    "50%": "0.5",
    "2024-01-02": "02.01.2024",
    "1,000": "1000",
    "12:30": "12:30:00",
    "true": "WAHR",
    "1e5": "1.00E+05",
    "00123": "123",
    "12345678901234567890": "1.23457E+19",
    "漢字": "??",
}


def test_what_a_spreadsheet_made_of_numbers_and_dates_is_recognised_and_said(
    waiting, tmp_path, capsys
):
    run, rows = changed_by_a_spreadsheet(waiting, CHANGED)
    path = written(tmp_path / "a.csv", rows)
    counts = exchange.bring_in(run, path)
    assert counts["added"] == 8 and counts["changed"] == 8
    config = save(tmp_path / "team.yaml", yaml.safe_dump(run.params.model_dump()))
    assert program.main(["import", str(config), str(path)]) == 0
    assert (
        "8 rows hold texts that a spreadsheet made numbers or dates of" in capsys.readouterr().out
    )


def test_a_sheet_of_which_a_part_was_sorted_is_refused_and_told_how_to_go_on(waiting, tmp_path):
    run, rows = changed_by_a_spreadsheet(waiting, CHANGED)
    ids = [row["question"] for row in rows]
    moved = [row | {"question": name} for row, name in zip(rows, ids[1:] + ids[:1], strict=True)]
    with pytest.raises(InputError, match="sorted.* delete the columns prompt, left and right"):
        exchange.bring_in(run, written(tmp_path / "a.csv", moved))
    path = written(tmp_path / "a.csv", moved, names=["question", "answer"])
    assert exchange.bring_in(run, path)["added"] == 8


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["", None])
@pytest.mark.parametrize("dialect", ["excel", "unix", "excel-tab"])
def test_the_exported_sheet_survives_pythons_csv_module(
    waiting, tmp_path, encoding, newline, dialect
):
    """Read and written as its pages show, by people who know no byte order mark."""
    run, _ = waiting
    exchange.write_questions(exchange.pending(run), tmp_path / "q.csv")
    with open(tmp_path / "q.csv", encoding=encoding, newline=newline) as file:
        reader = csv.DictReader(file)
        rows = [row | {"answer": "left"} for row in reader]
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline=newline) as file:
        writer = csv.DictWriter(file, reader.fieldnames, dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
    assert exchange.bring_in(run, tmp_path / "a.csv")["added"] == 8


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_answers_come_back_in_any_encoding_and_separator(waiting, tmp_path, encoding, delimiter):
    run, _ = waiting
    rows = [
        {"question": row.question, "answer": "left", "annotator": "Zoë"}
        for row in exchange.pending(run).itertuples()
    ]
    path = written(tmp_path / "a.tsv", rows, delimiter, encoding)
    assert exchange.bring_in(run, path)["added"] == 8
    assert set(labels(run)["annotator"]) == {"Zoë"}


# answers of another run, and of another strategy


def test_answers_of_another_run_come_along_where_the_texts_are_the_same(planted, tmp_path, capsys):
    old, go_on = team_run.start(planted[0])
    with pytest.raises(InputError):
        go_on()
    tasks = label_studio.tasks(exchange.pending(old))
    exchange.bring_in(old, save(tmp_path / "a.json", annotated(tasks, ["left", "tie"] * 4, who=7)))
    bigger = {"budget": 24, "rounds": 2, "strategies": ["shf_cas", "random"]}
    new, go_on_new = team_run.start(planted[0], run="new", selection=bigger)
    with pytest.raises(InputError, match="12 comparisons"):
        go_on_new()
    counts = exchange.bring_in(new, old.folder)
    assert counts["added"] + counts.get("elsewhere", 0) == 8 and counts["added"] > 0
    before, after = labels(old), labels(new)
    both = before.merge(after, on=["prompt_id", "i", "j"])
    assert len(both) == counts["added"] and (both["answer_x"] == both["answer_y"]).all()
    assert set(after["annotator"]) == {"label-studio:7"}
    assert exchange.bring_in(new, old.folder)["added"] == 0
    config = save(tmp_path / "new.yaml", yaml.safe_dump(new.params.model_dump()))
    assert program.main(["import", str(config), str(old.folder)]) == 0
    assert f"{counts['added']} known before" in capsys.readouterr().out


def test_a_folder_without_comparisons_is_no_source_of_answers(waiting, tmp_path):
    with pytest.raises(InputError, match="it has no comparisons"):
        exchange.bring_in(waiting[0], tmp_path)


def test_a_pair_that_was_answered_for_one_strategy_is_not_asked_again_for_another(
    planted, tmp_path
):
    everything = {"budget": 200, "rounds": 1, "strategies": ["shf_cas", "random"]}
    run, go_on = team_run.start(planted[0], selection=everything)
    with pytest.raises(InputError, match="200 comparisons"):
        go_on("shf_cas")
    tasks = label_studio.tasks(exchange.pending(run))
    answers = ["left", "right"] * 100
    exchange.bring_in(run, save(tmp_path / "a.json", annotated(tasks, answers)))
    first = go_on("shf_cas").labels
    with pytest.raises(InputError) as caught:
        go_on("random")
    chosen = pd.read_parquet(run.folder / "03_feedback/random/round_1/comparisons.parquet")
    key = ["prompt_id", "i", "j"]
    both = chosen.merge(first, on=key)
    assert len(both) and str(caught.value).startswith(f"{200 - len(both)} comparisons of this")
    open_ones = {parsed(q, "")[0:3] for q in exchange.pending(run)["question"]}
    asked = {(p, min(a, b), max(a, b)) for p, a, b in open_ones}
    assert not asked & set(first[key].itertuples(index=False, name=None))
    same = labels(run, "random").merge(first, on=key)
    assert len(same) == len(both) and (same["answer_x"] == same["answer_y"]).all()
