"""The screen in a terminal: every answer on disk before the next question."""

import pandas as pd
import pytest

from shfcas_lib.annotators.sheets import open_sheet, write_sheet
from shfcas_lib.data.completions import read_completions
from shfcas_lib.screen import terminal
from shfcas_lib.screen.session import session_of
from shfcas_lib.selection import choose
from shfcas_lib.storage.labels import LabelStore


@pytest.fixture
def path(tmp_path):
    rows = [
        (f"Say {k}", f"text {k}.{n}\x1b[31m", -1.0 - n, float(n * k % 3))
        for k in range(5)
        for n in range(2)
    ]
    table = pd.DataFrame(rows, columns=["prompt", "completion", "logp", "reward"])
    completions = read_completions(table)
    write_sheet(tmp_path / "q.csv", choose(completions, 5, "random"), completions)
    return tmp_path / "q.csv"


class Typist:
    """Types one word after another, and looks into the store before each."""

    def __init__(self, path, *words):
        self.store, self.words = open_sheet(path).store, list(words)
        self.shown, self.stored = [], []

    def read(self, prompt):
        with LabelStore(self.store) as store:
            self.stored.append(len(store.by_annotator()))
        if not self.words:
            raise EOFError
        word = self.words.pop(0)
        if word is KeyboardInterrupt:
            raise KeyboardInterrupt
        return word


def ask(path, *words, name="anna", repeats=0.0):
    typist = Typist(path, *words)
    session = session_of(open_sheet(path), name, repeats)
    left = terminal.ask(session, typist.read, typist.shown.append)
    session.store.close()
    return left, typist, "\n".join(typist.shown)


def test_every_answer_is_on_disk_before_the_next_question_and_the_place_is_kept(path):
    left, typist, _ = ask(path, "l", "R", " = ")
    assert left == 2 and typist.stored == [0, 1, 2, 3]
    left, typist, shown = ask(path, "b", "s")
    assert left == 0 and typist.stored == [3, 4] and "5 of 5 questions answered" in shown
    with LabelStore(open_sheet(path).store) as store:
        answers = store.by_annotator()["answer"].tolist()
    assert sorted(answers[2:]) == ["both_bad", "skip", "tie"]
    assert set(answers[:2]) <= {"first", "second"}


def test_what_stands_left_is_what_left_means(path):
    _, _, shown = ask(path, "l")
    sheet = open_sheet(path)
    with LabelStore(sheet.store) as store:
        row = store.by_annotator().iloc[0]
    asked = sheet.asked.set_index(["prompt_id", "i"]).loc[(row["prompt_id"], row["i"])]
    chosen = asked["one"] if row["answer"] == "first" else asked["other"]
    left = shown.split("LEFT")[1].split("RIGHT")[0].strip()
    assert left.startswith(chosen.partition("\x1b")[0])
    assert "\x1b" not in shown and "U+001B" in shown


@pytest.mark.parametrize("end", ["q", KeyboardInterrupt])
def test_undo_back_and_ending(path, end):
    left, typist, shown = ask(path, "l", "u", "r", "p", "l", "what", end)
    assert left == 4 and typist.stored == [0, 1, 0, 1, 1, 1, 1]
    assert "Taken back" in shown and "goes on here" in shown
    assert shown.count("l, r: the left") == 2, "an unknown word is answered with what there is"


def test_graded_words_are_offered_where_answers_are_graded(path, tmp_path):
    _, typist, shown = ask(path, "ll")
    assert typist.stored == [0, 0] and "much better" not in shown
