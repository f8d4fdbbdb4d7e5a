"""The annotation screen: comparisons go to a person in JupyterLab or Colab, answers come back
into the label store.

    screen = annotate(setting, annotator, stage)      # notebook 03; None where the annotator is no person
    screen                                            # as a cell's last line: shows it

The screen answers what `loop.run` waits for. When a round is complete it lets the loop go on: the
reward is refined, the next round's comparisons are chosen and shown. All state is in the label
store, so a killed kernel or a closed laptop costs nothing.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from pathlib import Path

import anywidget
import pandas as pd
import traitlets

from shfcas_lib import loop
from shfcas_lib.analysis import agreement
from shfcas_lib.annotators import exports
from shfcas_lib.annotators.people import Person, Unanswered
from shfcas_lib.base.errors import InputError
from shfcas_lib.feedback import Annotator
from shfcas_lib.screen.session import Session, arranged
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
    Raises InputError for a share outside [0, 1].
    """
    if not isinstance(
        getattr(annotator, "person", annotator), Person
    ):  # of a mixed annotator, the one beside the judge
        return None
    return Screen(_Rounds(setting, annotator, stage, _name(name), _share(repeats)))


def rate(
    completions: pd.DataFrame,
    path: Path,
    name: str | None = None,
    scale: str = "safety",
    seed: int = 0,
    repeats: float = 0.1,
) -> Screen:
    """A screen on which single completions are rated: 'safety' (safe, unsure, unsafe) or 'five'
    (1 to 5).

    completions: prompt_id, index, prompt, completion, in the order to show them. path: the label
    store.
    """
    if scale not in SCALES:
        raise InputError(f"scale {scale!r}: expected {', '.join(SCALES)}")
    asked = (
        completions[["prompt_id", "index"]]
        .rename(columns={"index": "i"})
        .assign(strategy="rating", reason="")
    )
    person = _name(name)
    return Screen(
        _Ratings(
            Session(
                LabelStore(path),
                arranged(asked, person, seed, _share(repeats)),
                completions,
                person,
                scale,
            )
        )
    )


def _name(name: str | None) -> str:
    name = (name or os.environ.get("SHFCAS_ANNOTATOR") or "person").strip()
    if not name or len(name) > 64 or not name.isprintable():
        raise InputError(f"annotator {name!r}: expected a name of 1 to 64 printable characters")
    return name


def _share(repeats: float) -> float:
    if not 0 <= repeats <= 1:
        raise InputError(f"repeats: found {repeats}, expected a share between 0 and 1")
    return repeats


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

    def __init__(self, work: _Rounds | _Ratings):
        super().__init__()
        self._work, self._lock, self._estimated, self._thread = work, threading.RLock(), -1, None
        self.on_msg(lambda _, content, __: self.handle(content))
        with self._lock:
            self._advance()

    @property
    def outcomes(self) -> dict[str, loop.Outcome]:
        """What the finished strategies made of their labels, by name."""
        return self._work.outcomes

    def export(self, folder: Path | None = None, conversational: bool = False) -> pd.DataFrame:
        """Write labels and TRL preferences of every strategy (default: into its folder, under
        export/); returns the agreement table.
        """
        parts = [table for table in self._work.export(folder, conversational) if len(table)]
        return (
            pd.concat(parts, ignore_index=True)
            if parts
            else pd.DataFrame(columns=["measure", "who", "value", "items"])
        )

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
            self.view = {
                "state": "done",
                "turn": secrets.token_hex(8),
                "lead": "The round could not be finished.",
                "words": (
                    f"Every answer is saved. Run this cell again to see the whole error: {error}"
                ),
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
            view |= self._work.ending()
        self.view = view
        self._update_estimate()

    def _update_estimate(self) -> None:
        """Every ten labels, work out beside the screen what they have changed."""
        now = self._work.session.decided // _EVERY
        if now == self._estimated or (self._thread and self._thread.is_alive()):
            return
        self._estimated = now
        self._thread = threading.Thread(
            target=self._estimate, args=(self._work.so_far(),), daemon=True
        )
        self._thread.start()

    def _estimate(self, found) -> None:
        self.estimate = found() or ""


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
        self.setting, self.annotator, self.stage, self.name, self.repeats = (
            setting,
            annotator,
            stage,
            name,
            repeats,
        )
        self.people = getattr(annotator, "people", 1)
        self.outcomes: dict[str, loop.Outcome] = {}
        self.session: Session | None = None
        self.strategy, self.missing = setting.params.selection.strategies[0], 0

    def following(self) -> None:
        """Let the loop run until it waits for this person; `session` is then what it waits for,
        or None where it is through.
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
                asked = arranged(wanted.comparisons, self.name, self.setting.seed, self.repeats)
                self.strategy, self.missing = strategy, wanted.missing
                self.session = Session(
                    LabelStore(folder.folder / "labels.sqlite"),
                    asked,
                    wanted.completions,
                    self.name,
                    people=self.people,
                )
                return

    def facts(self) -> dict:
        """What the head of the screen says."""
        rounds = self.setting.params.selection.rounds
        return {
            "title": "Which answer is better?",
            "where": f"round {self._round()} of {rounds}" if self.session and rounds > 1 else "",
        }

    def _round(self) -> int:
        folder = self.stage.folder / self.strategy
        return 1 + sum(
            (folder / f"round_{number}" / "labels.parquet").exists()
            for number in range(1, self.setting.params.selection.rounds + 1)
        )

    def ending(self) -> dict:
        """What to say where this person has answered all."""
        done = self.session.store.answered(self.people)
        missing = len({q.key[:3] for q in self.session.asked} - done)
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

    def so_far(self):
        """A function that says what the labels so far have changed; it runs on another thread and
        touches no store.
        """
        labels, setting = self.session.store.labels(), self.setting

        def found() -> str | None:
            pool = pd.concat([setting.train, setting.feedback], ignore_index=True)
            numbers = agreement.so_far(
                setting.params.reward, pool, setting.observed, labels, setting.proxy
            )
            return numbers and (
                f"So far, on {numbers['labels']} decided labels: the biased proxy agrees with"
                f" {numbers['before']:.0%} of them, the refined reward with {numbers['after']:.0%}"
                f" ± {numbers['error']:.0%} (cross-validated)."
            )

        return found

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
        return {
            "title": (
                "Is this answer safe?"
                if self.session.scale == "safety"
                else "How good is this answer?"
            ),
            "where": "",
        }

    def ending(self) -> dict:
        """What to say where all is rated."""
        return {
            "lead": self.thanks,
            "words": "You can go back (p) and change a rating; nothing else needs to be done.",
        }

    def so_far(self):
        """Ratings train no reward."""
        return lambda: None

    def export(self, folder: Path | None, conversational: bool) -> list[pd.DataFrame]:
        """Write ratings.parquet into `folder`; returns the agreement table."""
        if folder is None:
            raise InputError("export of ratings: name the folder to write to")
        with files.atomic(folder / "ratings.parquet") as target:
            self.session.store.ratings().to_parquet(target, index=False)
        return [exports.agreement(self.session.store)]
