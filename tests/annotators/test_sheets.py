"""Questions without a run: a file out, answers back in, none ever lost."""

import csv
import io
import json
import sqlite3

import pandas as pd
import pytest
from own_files import refusal

from shfcas_lib.annotators import sheets
from shfcas_lib.base import dialogues
from shfcas_lib.data.completions import read_completions
from shfcas_lib.selection import choose
from shfcas_lib.storage.labels import LabelStore

TURNS = [
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "A wren."},
    {"role": "user", "content": "Another."},
]


@pytest.fixture
def completions():
    rows = [
        (
            f"Say {k}",
            f"answer {k}.{n}" if n else f"=formula {k}",
            -1.0 - n * k,
            float((n * 7 + k) % 5),
        )
        for k in range(6)
        for n in range(3)
    ]
    return read_completions(pd.DataFrame(rows, columns=["prompt", "completion", "logp", "reward"]))


def written(folder, completions, name="questions.csv", **more):
    path = folder / name
    sheets.write_sheet(path, choose(completions, 6, "random"), completions, **more)
    return path


def rows(path):
    text = path.read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def fill(path, answers, target=None, **cells):
    """Write answers into the rows of a csv, in their order."""
    filled = rows(path)
    for row, answer in zip(filled, answers, strict=False):
        row.update(cells, answer=answer)
    with open(target or path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(filled[0]))
        writer.writeheader()
        writer.writerows(filled)
    return target or path


def test_answers_of_a_spreadsheet_become_preferences(tmp_path, completions):
    path = written(tmp_path, completions)
    shown = rows(path)
    fill(path, ["left", "right", "tie", "skip", "", "both_bad"], annotator="anna")
    sheet = sheets.open_sheet(path)
    assert sheets.take_in(sheet, path) == {"added": 5, "known": 0}
    assert sheets.take_in(sheet, path) == {"added": 0, "known": 5}
    table, counts = sheets.preferences(sheet)
    assert counts == {**{"questions": 6, "answered": 5, "skipped": 1, "ties": 2, "preferences": 2}}
    said = {tuple(row) for row in table[["prompt", "chosen", "rejected"]].to_numpy()}
    plain = [{name: cell.lstrip("'") for name, cell in row.items()} for row in shown]
    assert said == {
        (plain[0]["prompt"], plain[0]["left"], plain[0]["right"]),
        (plain[1]["prompt"], plain[1]["right"], plain[1]["left"]),
    }


def test_a_file_that_travelled_alone_is_enough(tmp_path, completions):
    path = written(tmp_path, completions)
    before = sheets.open_sheet(path)
    sheets.store_of(path).unlink()
    fill(path, ["left"])
    sheet = sheets.open_sheet(path)
    columns = ["prompt_id", "i", "j", "prompt", "one", "other", "code"]
    pd.testing.assert_frame_equal(sheet.asked[columns], before.asked[columns])
    assert sheets.take_in(sheet, path)["added"] == 1


def test_a_file_alone_whose_texts_were_changed_is_refused(tmp_path, completions):
    path = written(tmp_path, completions)
    sheets.store_of(path).unlink()
    fill(path, ["left"], left="something else")
    said = refusal(sheets.open_sheet, path)
    assert "row 1" in said and "bring questions.sqlite" in said


def test_label_studio_out_and_back(tmp_path, completions):
    path = written(tmp_path, completions, "tasks.json")
    assert path.with_suffix(".xml").exists()
    tasks = json.loads(path.read_text())
    exported = []
    for number, task in enumerate(tasks[:3], 1):
        value = {"choices": [("left", "right", "tie")[number - 1]]}
        result = [{"type": "choices", "from_name": "answer", "to_name": "prompt", "value": value}]
        annotation = {"id": number, "completed_by": 7, "result": result, "created_at": "2026"}
        exported.append({"id": number, "data": task["data"], "annotations": [annotation]})
    export = tmp_path / "export.json"
    export.write_text(json.dumps(exported))
    sheet = sheets.open_sheet(path)
    assert sheets.take_in(sheet, export) == {"added": 3, "known": 0}
    table, counts = sheets.preferences(sheet)
    assert counts["preferences"] == 2 and counts["ties"] == 1 and len(table) == 2


def test_graded_answers_have_a_margin(tmp_path, completions):
    path = written(tmp_path, completions, graded=True)
    fill(path, ["much_left", "right", "left"])
    sheet = sheets.open_sheet(path)
    sheets.take_in(sheet, path)
    table, _ = sheets.preferences(sheet)
    assert sorted(table["margin"]) == [0.0, 0.0, 1.0]
    plain = written(tmp_path, completions, "plain.csv")
    fill(plain, ["much_left"])
    said = refusal(sheets.take_in, sheets.open_sheet(plain), plain)
    assert "much_left" in said


def test_prompts_of_several_turns_go_out_as_text_and_come_back_as_messages(tmp_path):
    table = pd.DataFrame(
        {
            "prompt": [TURNS, TURNS, "Name a fish."[:12], "Name a fish."],
            "completion": ["A robin.", "A kite.", "A cod.", "A carp."],
            "logp": [-1.0, -2.0, -3.0, -1.0],
            "reward": [1.0, 2.0, 1.0, 3.0],
        }
    )
    completions = read_completions(table)
    path = tmp_path / "q.csv"
    sheets.write_sheet(path, choose(completions, 2, "random"), completions)
    assert any("Assistant: A wren." in row["prompt"] for row in rows(path))
    fill(path, ["left", "right"])
    sheet = sheets.open_sheet(path)
    sheets.take_in(sheet, path)
    made, _ = sheets.preferences(sheet)
    prompts = {len(prompt): prompt for prompt in made["prompt"]}
    assert prompts[3] == TURNS and prompts[1] == [{"role": "user", "content": "Name a fish."}]
    assert all(text[0]["role"] == "assistant" for text in made["chosen"])
    for name in ("p.jsonl", "p.parquet"):
        sheets.write_preferences(made, tmp_path / name)
    assert (
        len((tmp_path / "p.jsonl").read_text().splitlines())
        == len(pd.read_parquet(tmp_path / "p.parquet"))
        == 2
    )
    assert ".jsonl or .parquet" in refusal(sheets.write_preferences, made, tmp_path / "p.csv")


def test_nothing_that_holds_an_answer_is_written_over(tmp_path, completions):
    path = written(tmp_path, completions)
    written(tmp_path, completions)  # nobody has answered: new questions take their place
    fill(path, ["left"])
    assert "holds answers" in refusal(written, tmp_path, completions)
    sheet = sheets.open_sheet(path)
    sheets.take_in(sheet, path)
    path.unlink()
    assert "holds 1 answers to other questions" in refusal(written, tmp_path, completions)
    path.write_text("no questions at all")
    sheets.store_of(path).unlink()
    assert "holds answers" in refusal(written, tmp_path, completions), "it cannot be read"
    assert path.read_text() == "no questions at all"


def test_an_answer_to_another_sheet_and_a_half_sorted_one_are_refused_whole(tmp_path, completions):
    path = written(tmp_path, completions)
    other = written(tmp_path, completions, "other.csv", seed=9)
    moved = fill(path, ["left", "right"], tmp_path / "moved.csv", left="of another row")
    sheet = sheets.open_sheet(path)
    assert "only a part of the sheet sorted" in refusal(sheets.take_in, sheet, moved)
    foreign = fill(other, ["left"] * 6, tmp_path / "foreign.csv", question="q-feed-0-1-00000000")
    assert "asks no such question" in refusal(sheets.take_in, sheet, foreign)
    with LabelStore(sheet.store) as store:
        assert not len(store.rows())


def test_no_answer_yet_is_said(tmp_path, completions):
    path = written(tmp_path, completions)
    assert "no answer says which is better yet (0 of 6" in refusal(
        sheets.preferences, sheets.open_sheet(path)
    )
    assert "does not exist" in refusal(sheets.open_sheet, tmp_path / "nowhere.csv")
    stranger = tmp_path / "stranger.csv"
    sqlite3.connect(sheets.store_of(stranger)).close()
    assert "holds no questions" in refusal(sheets.open_sheet, stranger)


def test_the_prompt_of_one_turn_that_looks_like_json_stays_text(tmp_path):
    text = dialogues.encode(TURNS)
    assert dialogues.messages(text) == TURNS
