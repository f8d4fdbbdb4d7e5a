"""Comparisons that travel as files, to people who answer in Label Studio or in a spreadsheet, and
their answers back.

    write_questions(pending(run), Path("tasks.json"))  # and tasks.xml, the labelling
                                                       # configuration; or tasks.csv
    bring_in(run, Path("answers.json"))                # Label Studio's JSON export, or the
                                                       # filled-in csv

The order in which two completions are shown is drawn per comparison from the run's seed. An
import is all or nothing, and importing the same file again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pandas as pd

from shfcas_lib.annotators.label_studio import from_label_studio, labelling_configuration, tasks
from shfcas_lib.annotators.questions import COLUMNS, KEY, Answer
from shfcas_lib.annotators.spreadsheet import check_texts, csv_text, from_csv
from shfcas_lib.base.dialogues import plain
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.storage import files, runs
from shfcas_lib.storage.labels import LabelStore, said

_TEXTS = ["prompt_id", "index", "prompt", "completion"]
# bytes of a file of answers; it is read whole, because an import is all or nothing
_LARGEST = 256_000_000


# --- what is asked
def asked_comparisons(run: runs.Run) -> pd.DataFrame:
    """Every comparison that the run has chosen so far, one row per strategy that chose it.

    Columns:

        prompt_id, i, j   the comparison
        strategy, reason  who chose it, and why
        prompt            its text
        one, other        the texts of completions i and j
        code              a hash of the texts
        store             the file of labels
        open              its round has not read the answers yet
        answered          the store holds an answer
    """
    paths = _comparison_files(run)
    pool = run.require("02_conflict", "pool_feedback")
    tables = []
    for path in paths:
        strategy = path.parent.parent
        table = _with_texts(pd.read_parquet(path), _texts_of(pool, strategy))
        table["store"] = str(strategy / "labels.sqlite")
        table["open"] = not (path.parent / "labels.parquet").exists()
        table["answered"] = False
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    for file, rows in table.groupby("store"):
        with LabelStore(Path(file)) as store:
            known = pd.MultiIndex.from_frame(store.labels()[KEY])
        table.loc[rows.index, "answered"] = pd.MultiIndex.from_frame(rows[KEY]).isin(known)
    return table


def _comparison_files(run: runs.Run) -> list[Path]:
    """The comparisons of every strategy and round, rounds in order. Raises InputError."""
    stage = run.folder / "03_feedback"
    paths = list(stage.glob("[!.]*/round_*/comparisons.parquet"))
    if not run.belongs("03_feedback") or not paths:
        raise InputError(
            f"{stage} holds no comparisons yet: run notebook 03 with the same parameters first, it"
            " stops for answers"
        )
    return sorted(paths, key=_strategy_and_round)


def _strategy_and_round(path: Path) -> tuple[str, int]:
    *_, strategy, folder, _ = path.parts
    return strategy, int(folder.split("_")[1])


def _texts_of(pool: pd.DataFrame, strategy: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(prompt_id, index) -> (prompt, completion), with the completions sampled in later rounds.

    One for each strategy: two may use one index for two texts.
    """
    later = [pd.read_parquet(path) for path in strategy.glob("round_*/next_pool.parquet")]
    texts = {}
    for table in [pool, *later]:
        for prompt_id, index, prompt, completion in table[_TEXTS].itertuples(index=False):
            texts[prompt_id, index] = prompt, completion
    return texts


def _with_texts(
    comparisons: pd.DataFrame, texts: dict[tuple[str, int], tuple[str, str]]
) -> pd.DataFrame:
    """Comparisons with the columns prompt, one, other and code."""
    one = _side(comparisons, "i", texts)
    other = _side(comparisons, "j", texts)
    return comparisons.assign(
        prompt=[plain(prompt) for prompt, _ in one],
        one=[completion for _, completion in one],
        other=[completion for _, completion in other],
        code=[code_of(*a, b) for a, (_, b) in zip(one, other, strict=True)],
    )


def _side(
    comparisons: pd.DataFrame, side: str, texts: dict[tuple[str, int], tuple[str, str]]
) -> list[tuple[str, str]]:
    keys = zip(comparisons["prompt_id"], comparisons[side], strict=True)
    return [texts[key] for key in keys]


def code_of(*parts: str) -> str:
    """Eight hex digits that stand for the texts of a question."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def pending(run: runs.Run) -> pd.DataFrame:
    """The questions that wait for an answer, most conflicted first: question, prompt, left, right.

    A comparison that two strategies chose is one question.
    """
    table = asked_comparisons(run)
    return as_questions(table[table["open"] & ~table["answered"]], run.params.seed)


def as_questions(comparisons: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Comparisons with their texts as questions, each in an order that the seed draws for it."""
    rows = []
    for row in comparisons.drop_duplicates([*KEY, "code"]).itertuples():
        turned = rng(seed, f"order/{row.prompt_id}/{row.i}/{row.j}").random() < 0.5
        left, right, left_text, right_text = row.i, row.j, row.one, row.other
        if turned:
            left, right, left_text, right_text = row.j, row.i, row.other, row.one
        question = f"q-{row.prompt_id}-{left}-{right}-{row.code}"
        rows.append((question, row.prompt, left_text, right_text))
    return pd.DataFrame(rows, columns=COLUMNS[:4])


def write_questions(questions: pd.DataFrame, path: Path, graded: bool = False) -> list[Path]:
    """Write a task file for Label Studio (.json) or a spreadsheet (.csv); returns what was written.

    Beside a .json stands the labelling configuration, as .xml. graded: may an answer be much
    better? Raises InputError.
    """
    kind = kind_of(path)
    if not len(questions):
        raise InputError("nothing waits for an answer")
    try:
        if kind == "csv":
            contents = {path: csv_text(questions.assign(answer="", annotator=""))}
        else:
            contents = {
                path: json.dumps(tasks(questions), indent=1),
                path.with_suffix(".xml"): labelling_configuration(graded),
            }
        for target, text in contents.items():
            with files.atomic(target) as temporary:
                # the mark tells Excel that it is UTF-8
                temporary.write_bytes(text.encode("utf-8-sig" if kind == "csv" else "utf-8"))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    return list(contents)


# --- back into the run
def bring_in(run: runs.Run, path: Path, annotator: str = "spreadsheet") -> dict:
    """Put the answers of a file into the run's label stores, all of them or none.

    annotator: who answered, where a row of a csv does not say. Raises InputError, and then
    nothing was stored. Returns counts:

        added
        known    the store has the same answer of the same person
        closed   the round has read its answers already
        waiting  questions that are still open
    """
    # whatever can be wrong is found before the first answer is stored
    table = asked_comparisons(run)
    chosen = {key: rows.iloc[0] for key, rows in table.groupby([*KEY, "code"])}
    graded, whose = run.params.feedback.graded, f"run {run.params.run!r}"
    answers = read_answers(path, chosen, whose, annotator, graded)

    # one transaction a strategy; a second import adds what an interrupted one left out
    counts = Counter(added=0, known=0, closed=0)
    for file, rows in table.groupby("store"):
        comparisons = {tuple(row[[*KEY, "code"]]): row for _, row in rows.iterrows()}
        with LabelStore(Path(file)) as store:
            counts.update(add_answers(store, comparisons, answers))
    return {**counts, "waiting": len(pending(run))}


def read_answers(
    path: Path,
    chosen: dict[tuple, pd.Series],
    whose: str,
    annotator: str = "spreadsheet",
    graded: bool = False,
) -> list[Answer]:
    """The answers in a filled-in csv or in an export of Label Studio.

    chosen: (prompt_id, i, j, code) to the comparison with its texts; whose: who asked, in words.
    Raises InputError for an answer to anything else, and where texts moved away from their
    questions.
    """
    text = content(path)
    if kind_of(path) == "csv":
        answers = from_csv(text, str(path), annotator, graded)
    else:
        answers = from_label_studio(text, str(path), graded)
    for answer in answers:
        if answer.key not in chosen:
            raise InputError(f"{answer.where}: {whose} asks no such question")
    if kind_of(path) == "csv":
        check_texts(text, str(path), chosen)
    return answers


def content(path: Path) -> str:
    """The text of a file of answers. Raises InputError."""
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise InputError(
                f"{path} has {size / 1e6:.0f} MB, expected at most {_LARGEST / 1e6:.0f}"
            )
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: save it as 'CSV UTF-8'") from error


def add_answers(
    store: LabelStore, comparisons: dict[tuple, pd.Series], answers: list[Answer]
) -> Counter:
    """Append the answers that belong to these comparisons, all or none. comparisons: as `chosen` of
    `read_answers`, with `open`: may they be answered still? Counts added, known and closed."""
    stored = store.by_annotator()
    stored = stored[stored["j"].notna() & ~stored["repeat"]]
    latest = {}
    for row in stored.to_dict("records"):
        word = said(row["answer"], row.get("grade"))
        latest[row["prompt_id"], row["i"], int(row["j"]), row["annotator"]] = word
    final: dict[tuple, Answer] = {}  # of several by one person the last, at its place
    for answer in answers:
        if answer.key in comparisons:
            who = (*answer.key[:3], answer.annotator)
            final.pop(who, None)
            final[who] = answer
    counts: Counter[str] = Counter()
    new = []
    for who, answer in final.items():
        comparison = comparisons[answer.key]
        if latest.get(who) == answer.answer:
            counts["known"] += 1
        elif not comparison["open"]:
            counts["closed"] += 1
        else:
            new.append((comparison, answer.answer, answer.annotator, answer.left))
    store.add_all(new)
    return counts + Counter(added=len(new))


def kind_of(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("json", "csv"):
        raise InputError(
            f"{path}: expected a name ending in .json (Label Studio) or .csv (a spreadsheet)"
        )
    return kind
