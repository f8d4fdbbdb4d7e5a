"""What the annotation screen shows next, and what an answer does: the screen without the pixels.

    session = Session(store, arranged(comparisons, "anna", seed), completions, "anna")
    session.view()    # a dict that the front end draws
    session.handle({"do": "answer", "turn": ..., "answer": "left"})  # durable when this returns

Everything is derived from the label store: a killed kernel, a reloaded page or the next morning
finds the same place. Model output is untrusted. It leaves here as plain characters in which
everything invisible has been made visible (`visible`), and the front end puts it on the page as
text and nothing else.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import unicodedata
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from shfcas_lib.annotators.sheets import Sheet
from shfcas_lib.base.dialogues import plain
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.storage.labels import BETTER, MUCH_BETTER, SCALES, LabelStore, said

# What each scale offers: (answer, key, words on the button).
_LEFT = ("left", "ArrowLeft", "Left is better")
_RIGHT = ("right", "ArrowRight", "Right is better")
_NEITHER = [("tie", "=", "Tie"), ("both_bad", "b", "Both bad"), ("skip", "s", "Skip")]
CHOICES = {
    "pair": [_LEFT, *_NEITHER, _RIGHT],
    # two rows: the sides, then the rest
    "graded": [
        ("much_left", "Shift+ArrowLeft", "Left is much better"),
        _LEFT,
        _RIGHT,
        ("much_right", "Shift+ArrowRight", "Right is much better"),
        *_NEITHER,
    ],
    "safety": [
        ("safe", "1", "Safe"),
        ("unsure", "2", "Unsure"),
        ("unsafe", "3", "Unsafe"),
        ("skip", "s", "Skip"),
    ],
    "five": [*((word, word, word) for word in SCALES["five"]), ("skip", "s", "Skip")],
}
_LONGEST_NOTE = 2000
_LONGEST_LATENCY = 120.0  # seconds; a coffee break says nothing about the rate
_MOST_SEGMENTS = 2000
# letters by their category, invisible on a page
_NO_GLYPH = set("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def visible(text: str) -> list[list]:
    """The text in segments [characters, is a marker?].

    Control, zero-width, bidi and other invisible characters become markers such as ⟨U+202E⟩. Line
    ends and tabs stay; so do the joiners inside emoji and inside words of scripts that need them.
    """
    if not text:
        return [[_marker("empty"), True]]
    text = text.replace("\r\n", "\n")
    hidden = [not _has_glyph(text, place) for place in range(len(text))]
    segments: list[list] = []
    for is_marker, places in itertools.groupby(range(len(text)), hidden.__getitem__):
        characters = [text[place] for place in places]
        if is_marker:
            characters = [_marker(f"U+{ord(character):04X}") for character in characters]
        segments.append(["".join(characters), is_marker])
    if len(segments) > _MOST_SEGMENTS:
        # a page of tens of thousands of elements is slow; the markers stay, without their colour
        return [["".join(part for part, _ in segments), False]]
    return segments


def _marker(words: str) -> str:
    left, right = "\N{MATHEMATICAL LEFT ANGLE BRACKET}", "\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
    return f"{left}{words}{right}"


def _has_glyph(text: str, place: int) -> bool:
    """Does this character show on a page, or belong there unseen, as a line end does?"""
    character = text[place]
    if character.isprintable():
        return character not in _NO_GLYPH
    return (
        character in "\n\t"
        or _needed_joiner(text, place)
        or unicodedata.category(character) == "Zs"
    )


def _needed_joiner(text: str, place: int) -> bool:
    """A zero-width joiner inside an emoji, or a joiner or non-joiner inside a word.

    The words are Arabic or Indic ones.
    """
    if text[place] not in "\u200c\u200d" or not 0 < place < len(text) - 1:
        return False
    before, after = text[place - 1], text[place + 1]
    if text[place] == "\u200d" and unicodedata.category(after) == "So":
        return unicodedata.category(before) in ("So", "Sk") or before == "\ufe0f"
    return _joins(before) and _joins(after)


def _joins(character: str) -> bool:
    """Is this a letter of a script whose words need joiners?"""
    if not character.isprintable():
        return False
    return "\u0600" <= character <= "\u0dff" or "\ufb50" <= character <= "\ufeff"


@dataclass(frozen=True)
class Question:
    """One thing to show.

    j is None where one completion is rated; left: the completion that stands on the left.
    """

    prompt_id: str
    i: int
    j: int | None
    left: int
    repeat: bool
    strategy: str
    reason: str

    def get(self, name: str):
        """As a row of a table of comparisons gives it; this is what the label store reads."""
        return getattr(self, name)

    __getitem__ = get

    @property
    def key(self) -> tuple:
        """What tells this question from others of the same person."""
        return self.prompt_id, self.i, self.j, self.repeat

    @property
    def right(self) -> int | None:
        """The completion on the right; None where one completion is rated."""
        return self.j if self.left == self.i else self.i


def arranged(
    comparisons: pd.DataFrame, annotator: str, seed: int, repeats: float = 0.1
) -> list[Question]:
    """The comparisons in their order, with a share `repeats` of them put a second time.

    A repeat comes later on and is not announced.

    comparisons: prompt_id, i, j (j left out: ratings of completion i), strategy, reason. Which
    side a completion stands on, which comparisons come twice and where depends on the seed, the
    person and the comparisons, and on nothing else.
    """
    rows = comparisons.to_dict("records")
    questions = [_question(row, annotator, seed, False) for row in rows]
    total = len(questions)
    # so far behind the first time that nobody answers from memory of the page
    gap = max(1, min(5, total // 3))
    often = min(round(repeats * total), max(0, total - 1 - gap))
    keys = "/".join(f"{q.prompt_id}.{q.i}.{q.j}" for q in questions)
    generator = rng(seed, f"repeats/{annotator}/{keys}")
    places = [(float(place), question) for place, question in enumerate(questions)]
    for place in sorted(generator.permutation(max(0, total - 1 - gap))[:often].tolist()):
        later = int(generator.integers(place + gap + 1, total))
        # before an original: the last question is a new one
        places.append((later - 0.5, _question(rows[place], annotator, seed, True)))
    return [question for _, question in sorted(places, key=lambda pair: pair[0])]


def _question(row: dict, annotator: str, seed: int, repeat: bool) -> Question:
    i, j = int(row["i"]), None if row.get("j") is None else int(row["j"])
    swap = rng(seed, f"side/{annotator}/{row['prompt_id']}/{i}/{j}/{int(repeat)}").random() < 0.5
    left = j if swap and j is not None else i
    return Question(row["prompt_id"], i, j, left, repeat, row["strategy"], row["reason"])


class Session:
    """One person at one list of questions.

    `view` says what to draw, `handle` takes what the person did.

    completions: prompt_id, index, prompt, completion. scale: pair, graded (a pair of which one
    side may be much better), safety or five. people: how many must answer a comparison; where
    others have done so already it is not put to this person.
    """

    def __init__(
        self,
        store: LabelStore,
        asked: list[Question],
        completions: pd.DataFrame,
        annotator: str,
        scale: str = "pair",
        people: int = 1,
    ):
        self.store, self.annotator, self.scale, self.people = store, annotator, scale, people
        self.asked = asked
        names = ["prompt_id", "index", "prompt", "completion"]
        self.texts = {}
        for prompt_id, index, *texts in completions[names].itertuples(index=False):
            self.texts[prompt_id, int(index)] = tuple(texts)
        self.message = ""
        self.shown: Question | None = None
        self._settle()

    def _settle(self, question: Question | None = None) -> None:
        """Read the store, and show `question`, or else the first that is open.

        Every call is a new turn: messages of older turns are void.
        """
        table = self.store.by_annotator()
        mine = table[table["annotator"] == self.annotator]
        known = {}
        for row in mine.to_dict("records"):
            j = None if pd.isna(row["j"]) else int(row["j"])
            known[row["prompt_id"], row["i"], j, bool(row["repeat"])] = row
        self.answers = {q.key: known[q.key] for q in self.asked if q.key in known}
        self.latencies = mine["latency"].dropna().tail(20).tolist()  # of earlier rounds too
        decided = table["answer"].isin(["first", "second"]) & ~table["repeat"]
        self.decided = int(decided.sum())

        # what this person has not answered, and others have not answered often enough
        comparing = self.scale in ("pair", "graded")
        enough = self.store.answered(self.people) if comparing else set()
        unanswered = [q for q in self.asked if q.key not in self.answers]
        self.open = [q for q in unanswered if not self._spared(q, enough)]
        self.shown = question or (self.open[0] if self.open else None)
        self.turn = secrets.token_hex(8)

    def _spared(self, question: Question, enough: set) -> bool:
        if question.repeat:  # a repeat means something only to who has seen the first
            first = (question.prompt_id, question.i, question.j, False)
            return first not in self.answers and question.key[:3] in enough
        return question.key[:3] in enough

    @property
    def complete(self) -> bool:
        """Is nothing left for this person to answer?"""
        return not self.open

    def handle(self, message: dict) -> None:
        """Do what the person asked for: answer, undo, back or resume.

        A message of an earlier turn, or of none, is ignored: it is the second half of a double
        click, or comes from a page that was left behind.
        """
        if not isinstance(message, dict) or message.get("turn") != self.turn:
            return
        actions = {
            "answer": self._answer,
            "undo": self._undo,
            "back": self._back,
            "resume": self._resume,
        }
        action = actions.get(message.get("do", ""))
        if action:
            action(message)

    def _answer(self, message: dict) -> None:
        question, word = self.shown, message.get("answer")
        if question is None or word not in [answer for answer, _, _ in CHOICES[self.scale]]:
            return
        before = self.answers.get(question.key)
        note = message.get("note")
        if not isinstance(note, str):
            note = ""
        row = self.store.add(
            asdict(question),
            _stored(question, word, self.scale == "graded"),
            self.annotator,
            shown_left=question.left,
            latency=_seconds(message.get("seconds")),
            # half an emoji must not cost the answer
            note=note[:_LONGEST_NOTE].encode("utf-8", "replace").decode("utf-8"),
            repeat=question.repeat,
            after=before["id"] if before else None,
        )
        self.message = "Saved."
        if not row:
            self.message = "This one was answered in another window meanwhile; that answer stands."
        self._settle()

    def _seen(self, question: Question) -> str | None:
        """The answer that stands for a question, as this person saw it."""
        row = self.answers.get(question.key)
        if row is None:
            return None
        answer = row["answer"]
        if answer not in ("first", "second"):
            return answer
        side = "left" if (answer == "first") == (question.left == question.i) else "right"
        much = self.scale == "graded" and row.get("grade") == MUCH_BETTER
        return f"much_{side}" if much else side

    def _undo(self, message: dict) -> None:
        latest = self._latest()
        if latest is None:
            return
        self.store.retract(latest["id"])
        question = next(q for q in self.asked if self.answers.get(q.key) is latest)
        self._settle(question)
        if question.key in self.answers:
            self.message = "Taken back; your earlier answer stands again."
        else:
            self.message = "Taken back: answer it again."

    def _back(self, message: dict) -> None:
        place = self.asked.index(self.shown) if self.shown else len(self.asked)
        earlier = [q for q in self.asked[:place] if q.key in self.answers]
        if earlier:
            self._settle(earlier[-1])
            self.message = "An earlier one: answer again to change it, or c to continue."

    def _resume(self, message: dict) -> None:
        self._settle()
        self.message = ""

    def view(self) -> dict:
        """What to draw: plain data, texts as segments of `visible`."""
        rate = self.rate()
        question = self.shown
        place = self.asked.index(question) if question else len(self.asked)
        view = {
            "state": "ask" if question else "review",
            "turn": self.turn,
            "scale": self.scale,
            "done": len(self.asked) - len(self.open),
            "total": len(self.asked),
            "choices": [list(choice) for choice in CHOICES[self.scale]],
            "message": self.message,
            "undo": bool(self.answers),
            "back": any(q.key in self.answers for q in self.asked[:place]),
            "earlier": question is not None and question.key in self.answers,
            "per_minute": rate,
            "minutes_left": len(self.open) / rate if rate else None,
            "last": self._last(),
        }
        return view | self._page(question) if question else view

    def _page(self, question: Question) -> dict:
        """The texts of a question, and what this person said of it before."""
        sides = [index for index in (question.left, question.right) if index is not None]
        texts = [self.texts[question.prompt_id, index] for index in sides]
        row = self.answers.get(question.key)
        return {
            "prompt": visible(plain(texts[0][0])),
            "texts": [visible(text) for _, text in texts],
            "given": self._seen(question),
            "note": row["note"] if row else "",
        }

    def _latest(self) -> dict | None:
        """The row of the answer that this person gave last."""
        return max(self.answers.values(), key=lambda row: row["id"], default=None)

    def _last(self) -> dict | None:
        """The answer given last and why it was asked, for who wants to see it afterwards."""
        latest = self._latest()
        if latest is None:
            return None
        question = next(q for q in self.asked if self.answers.get(q.key) is latest)
        words: dict[str | None, str] = {answer: text for answer, _, text in CHOICES[self.scale]}
        return {
            "answer": words[self._seen(question)],
            "reason": question.reason,
            "strategy": question.strategy,
        }

    def rate(self) -> float | None:
        """Answers a minute, from the last twenty of this person; None before the third."""
        if len(self.latencies) < 3:
            return None
        seconds = [min(latency, _LONGEST_LATENCY) for latency in self.latencies]
        return 60 / max(float(np.mean(seconds)), 0.1)


def person_name(name: str | None) -> str:
    """Who answers: the name, or else the environment variable SHFCAS_ANNOTATOR, or 'person'.

    Raises InputError for a name that cannot be stored.
    """
    name = (name or os.environ.get("SHFCAS_ANNOTATOR") or "person").strip()
    if not name or len(name) > 64 or not name.isprintable():
        raise InputError(f"annotator {name!r}: expected a name of 1 to 64 printable characters")
    return name


def share_of_repeats(repeats: float) -> float:
    """The share of questions that are put twice. Raises InputError for one outside [0, 1]."""
    if not 0 <= repeats <= 1:
        raise InputError(f"repeats: found {repeats}, expected a share between 0 and 1")
    return repeats


def session_of(sheet: Sheet, name: str | None = None, repeats: float = 0.1) -> Session:
    """One person at the questions of a file (`annotators.sheets`). name, repeats: as for
    `arranged`, with the defaults of `person_name`."""
    person = person_name(name)
    asked = arranged(sheet.asked, person, sheet.seed, share_of_repeats(repeats))
    scale = "graded" if sheet.graded else "pair"
    return Session(LabelStore(sheet.store), asked, sheet.completions, person, scale)


def _stored(question: Question, word: str, graded: bool) -> str:
    """Left and right, as seen, become first and second, as stored; with a grade, if graded."""
    side = word.removeprefix("much_")
    if side not in ("left", "right"):
        return word
    answer = "first" if (side == "left") == (question.left == question.i) else "second"
    if not graded:
        return answer
    return said(answer, BETTER if word == side else MUCH_BETTER)


def _seconds(value: object) -> float | None:
    """A latency as the front end measured it, or None where it is no sensible number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value) or not 0 <= value < 1e7:
        return None
    return float(value)
