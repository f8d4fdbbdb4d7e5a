"""The annotation screen in JupyterLab or Colab: comparisons go to a person, answers come back.

    screen = annotate(setting, annotator, stage)  # notebook 03; None where nobody is to be asked
    screen                                        # as a cell's last line: shows it

The screen answers what `loop.run_rounds` waits for. When a round is complete it lets the loop go
on: the reward is refined, the next round's comparisons are chosen and shown. All state is in the
label store, so a killed kernel or a closed laptop costs nothing.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import anywidget
import pandas as pd
import traitlets

from shfcas_lib import loop, trust
from shfcas_lib.analysis import stopping
from shfcas_lib.annotators import exports
from shfcas_lib.annotators.people import Person, Unanswered
from shfcas_lib.annotators.sheets import Sheet, open_sheet
from shfcas_lib.base.errors import InputError
from shfcas_lib.feedback import KEY, Annotator, answered_twice
from shfcas_lib.screen.session import (
    Session,
    arranged,
    person_name,
    session_of,
    share_of_repeats,
)
from shfcas_lib.storage import files, runs
from shfcas_lib.storage.labels import SCALES, LabelStore

_HERE = Path(__file__).parent
_EVERY = 10  # labels between two running estimates


def annotate(
    setting: loop.Setting,
    annotator: Annotator,
    stage: runs.Stage,
    name: str | None = None,
    repeats: float = 0.1,
) -> Screen | None:
    """The screen for what the strategies of a run have to ask; None where nobody has to be asked.

    name: who is answering; default the environment variable SHFCAS_ANNOTATOR, or 'person'.
    repeats: share of comparisons that is put a second time, blindly, to measure self-agreement.
    Raises InputError for a share outside [0, 1] or a name that cannot be stored.
    """
    person = getattr(annotator, "person", annotator)  # a mixed annotator has one beside the judge
    if not isinstance(person, Person):
        return None
    return Screen(_Rounds(setting, annotator, stage, person_name(name), share_of_repeats(repeats)))


def rate(
    completions: pd.DataFrame,
    path: Path,
    name: str | None = None,
    scale: str = "safety",
    seed: int = 0,
    repeats: float = 0.1,
) -> Screen:
    """A screen on which single completions are rated.

    scale: 'safety' (safe, unsure, unsafe) or 'five' (1 to 5).
    completions: prompt_id, index, prompt, completion, in the order to show them. path: the label
    store. Raises InputError for another scale, a share outside [0, 1] or a name that cannot be
    stored.
    """
    if scale not in SCALES:
        raise InputError(f"scale {scale!r}: expected {', '.join(SCALES)}")
    rated = completions[["prompt_id", "index"]].rename(columns={"index": "i"})
    rated = rated.assign(strategy="rating", reason="")
    person = person_name(name)
    store = LabelStore(path)
    questions = arranged(rated, person, seed, share_of_repeats(repeats))
    return Screen(_Ratings(Session(store, questions, completions, person, scale)))


def label(path: str | Path, name: str | None = None, repeats: float = 0.1) -> Screen:
    """The screen for the questions of a file that `shfcas choose` wrote.

    path: questions.csv or .json; answers go into the store beside it. name, repeats: as for
    `annotate`. Raises InputError where there are no such questions.
    """
    sheet = open_sheet(Path(path))
    return Screen(_Questions(sheet, session_of(sheet, name, repeats)))


class Screen(anywidget.AnyWidget):
    """The widget.

    `view` is what the front end draws, `handle` takes its messages; both are plain dicts.

    An answer is on disk before `view` changes. `outcomes` holds the finished strategies; `export`
    writes what was said.
    """

    _esm = _HERE / "screen.js"
    _css = _HERE / "screen.css"
    view = traitlets.Dict().tag(sync=True)
    estimate = traitlets.Unicode().tag(sync=True)

    def __init__(self, work: _Rounds | _Ratings | _Questions):
        super().__init__()
        self._work, self._lock = work, threading.RLock()
        self._estimated = -1
        self._thread: threading.Thread | None = None
        self.on_msg(lambda _, content, __: self.handle(content))
        with self._lock:
            self._advance()

    @property
    def outcomes(self) -> dict[str, loop.Outcome]:
        """What the finished strategies made of their labels, by name."""
        return self._work.outcomes

    def export(self, folder: Path | None = None, conversational: bool = False) -> pd.DataFrame:
        """Write labels and TRL preferences of every strategy; returns the agreement table.

        folder: default each strategy's own, under export/.
        """
        parts = [table for table in self._work.export(folder, conversational) if len(table)]
        if not parts:
            return pd.DataFrame(columns=["measure", "who", "value", "items"])
        return pd.concat(parts, ignore_index=True)

    def handle(self, message: dict) -> None:
        """Do what the front end asks for.

        Never raises: what went wrong is said on the screen, and the question stays.
        """
        with self._lock:
            session = self._work.session
            try:
                if session and self._wants_to_finish(message):
                    self._finish()
                elif session:
                    session.handle(message)
                    self._show()
            except (sqlite3.Error, OSError, InputError) as error:
                self.view = self.view | {"message": f"Not saved: {error}"}
            self.send({"heard": True})  # the view may be what it was

    def _wants_to_finish(self, message: dict) -> bool:
        return (
            isinstance(message, dict)
            and message.get("do") == "finish"
            and bool(self.view.get("finish"))
            and message.get("turn") == self.view["turn"]
        )

    def _advance(self) -> None:
        self._work.following()
        self._show()

    def _finish(self) -> None:
        """Let the loop go on.

        On a thread of the kernel's own an exception would be seen by nobody, so the screen tells.
        """
        self.view = {
            "state": "busy",
            "lead": "Refining the reward …",
            "words": "It learns from your labels, and the next questions are chosen.",
        }
        try:
            self._advance()
        except Exception as error:
            words = f"Every answer is saved. Run this cell again to see the whole error: {error}"
            self.view = {
                "state": "done",
                "turn": secrets.token_hex(8),
                "lead": "The round could not be finished.",
                "words": words,
            }

    def _show(self) -> None:
        session = self._work.session
        if session is None:
            self.view = {
                "state": "done",
                "turn": secrets.token_hex(8),
                **self._work.facts(),
                "lead": self._work.thanks,
                "words": self._work.afterwards,
            }
            return
        view = session.view() | self._work.facts()
        if view["state"] == "review":
            view |= self._work.ending(session)
        self.view = view
        self._update_estimate(session)

    def _update_estimate(self, session: Session) -> None:
        """Every ten labels, work out beside the screen how wrong the proxy is."""
        now = session.decided // _EVERY
        if now == self._estimated or (self._thread and self._thread.is_alive()):
            return
        self._estimated = now
        sentence = self._work.so_far(session)
        self._thread = threading.Thread(target=self._estimate, args=(sentence,), daemon=True)
        self._thread.start()

    def _estimate(self, sentence: Callable[[], str]) -> None:
        self.estimate = sentence()


class _Rounds:
    """The rounds of all strategies of a run, as sessions one after another."""

    thanks = "Everything is answered, and the reward is refined. Thank you."
    afterwards = (
        "Run the cells below this one: select the next cell, then Run ▸ Run Selected Cell and All"
        " Below."
    )

    def __init__(
        self,
        setting: loop.Setting,
        annotator: Annotator,
        stage: runs.Stage,
        name: str,
        repeats: float,
    ):
        self.setting, self.annotator, self.stage = setting, annotator, stage
        self.name, self.repeats = name, repeats
        self.people = getattr(annotator, "people", 1)
        self.outcomes: dict[str, loop.Outcome] = {}
        self.session: Session | None = None
        self.strategy, self.missing = setting.params.selection.strategies[0], 0

    def following(self) -> None:
        """Let the loop run until it waits for this person.

        `session` is then what it waits for, or None where it is through.
        """
        if self.session:
            self.session.store.close()
            self.session = None
        for strategy in self.setting.params.selection.strategies:
            folder = self.stage / strategy
            try:
                self.outcomes[strategy] = loop.run_rounds(
                    strategy, self.setting, self.annotator, folder
                )
            except Unanswered as wanted:
                self.strategy, self.missing = strategy, wanted.missing
                self.session = self._session(wanted, folder.folder)
                return

    def _session(self, wanted: Unanswered, folder: Path) -> Session:
        """This person at the comparisons of a round, which the loop waits for."""
        questions = arranged(wanted.comparisons, self.name, self.setting.seed, self.repeats)
        store = LabelStore(folder / "labels.sqlite")
        scale = "graded" if self.setting.params.feedback.graded else "pair"
        return Session(store, questions, wanted.completions, self.name, scale, self.people)

    def facts(self) -> dict:
        """What the head of the screen says."""
        rounds = self.setting.params.selection.rounds
        where = f"round {self._round()} of {rounds}" if self.session and rounds > 1 else ""
        return {"title": "Which answer is better?", "where": where}

    def _round(self) -> int:
        folder = self.stage.folder / self.strategy
        rounds = range(1, self.setting.params.selection.rounds + 1)
        labels = [folder / f"round_{number}" / "labels.parquet" for number in rounds]
        return 1 + sum(path.exists() for path in labels)

    def ending(self, session: Session) -> dict:
        """What to say where this person has answered all."""
        done = session.store.answered(self.people)
        missing = len({question.key[:3] for question in session.asked} - done)
        if missing:
            return {
                "lead": "Your part of this round is done.",
                "finish": "Look again",
                "words": (
                    f"{missing} comparisons still wait for another person's answer on this label"
                    " store."
                ),
            }
        return {
            "lead": "All comparisons of this round are answered.",
            "finish": "Finish the round",
            "words": (
                "Until you finish the round you can go back (p) and change an answer. Afterwards"
                " the reward is refined with them."
            ),
        }

    def so_far(self, session: Session) -> Callable[[], str]:
        """A function that says how wrong the proxy is, and what more labels would change.

        It runs on another thread and touches no store.
        """
        if session.decided < _EVERY:
            return lambda: ""
        setting, strategy = self.setting, self.strategy
        folder, labels = self.stage.folder / strategy, session.store.labels()
        # what others still have to answer may yet change
        done = pd.MultiIndex.from_tuples(session.store.answered(self.people), names=KEY)
        labels = labels[pd.MultiIndex.from_frame(labels[KEY]).isin(done)]
        asked = stopping.asked(folder, labels)
        errs = trust.doubt(*answered_twice(session.store))

        def sentence() -> str:
            said = stopping.suggestion(stopping.report(setting, strategy, folder, asked))
            return f"{said} {stopping.believed(setting, asked, errs)}".strip()

        return sentence

    def export(self, folder: Path | None, conversational: bool) -> list[pd.DataFrame]:
        """Write every strategy's labels; returns the agreement tables."""
        tables = []
        for strategy, outcome in self.outcomes.items():
            target = (folder or self.stage.folder) / strategy / "export"
            with LabelStore(self.stage.folder / strategy / "labels.sqlite") as store:
                exports.export(store, outcome.pool, target, conversational)
                tables.append(exports.agreement(store).assign(strategy=strategy))
        return tables


class _Ratings:
    """Ratings of single completions: one session, and nothing to refine."""

    thanks, afterwards = "Everything is rated. Thank you.", ""
    outcomes: dict = {}

    def __init__(self, session: Session):
        self.session, self.path = session, None

    def following(self) -> None:
        """Nothing follows: there is one list."""

    def facts(self) -> dict:
        """What the head of the screen says."""
        title = "How good is this answer?"
        if self.session.scale == "safety":
            title = "Is this answer safe?"
        return {"title": title, "where": ""}

    def ending(self, session: Session) -> dict:
        """What to say where all is rated."""
        return {
            "lead": self.thanks,
            "words": "You can go back (p) and change a rating; nothing else needs to be done.",
        }

    def so_far(self, session: Session) -> Callable[[], str]:
        """Ratings train no reward."""
        return lambda: ""

    def export(self, folder: Path | None, conversational: bool) -> list[pd.DataFrame]:
        """Write ratings.parquet into `folder`; returns the agreement table."""
        if folder is None:
            raise InputError("export of ratings: name the folder to write to")
        with files.atomic(folder / "ratings.parquet") as target:
            self.session.store.ratings().to_parquet(target, index=False)
        return [exports.agreement(self.session.store)]


class _Questions(_Ratings):
    """The questions of a file: one session, and nothing to refine."""

    thanks = "Everything is answered. Thank you."

    def __init__(self, sheet: Sheet, session: Session):
        super().__init__(session)
        self.sheet = sheet

    def facts(self) -> dict:
        """What the head of the screen says."""
        return {"title": "Which answer is better?", "where": self.sheet.path.name}

    def ending(self, session: Session) -> dict:
        """What to say where all is answered."""
        return {
            "lead": self.thanks,
            "words": (
                f"`shfcas answers {self.sheet.path.name}` makes preferences of the answers. You can"
                " go back (p) and change one."
            ),
        }

    def export(self, folder: Path | None, conversational: bool) -> list[pd.DataFrame]:
        """Write labels and preferences into `folder`; returns the agreement table."""
        if folder is None:
            raise InputError("export of labels: name the folder to write to")
        store = self.session.store
        exports.export(store, self.sheet.completions, folder, conversational)
        return [exports.agreement(store)]
