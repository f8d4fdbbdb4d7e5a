"""Comparisons that travel as files, to people who answer in Label Studio or in a spreadsheet, and
their answers back.

    write(pending(run), Path("tasks.json"))              # and tasks.xml, the labelling configuration; or tasks.csv
    bring_in(run, Path("answers.json"), annotator)       # Label Studio's JSON export, or the filled-in csv

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
from shfcas_lib.storage.labels import LabelStore

_TEXTS = ["prompt_id", "index", "prompt", "completion"]
_LARGEST = (
    256_000_000  # bytes of a file of answers; it is held whole, because an import is all or nothing
)


# what is asked
def asked_comparisons(run: runs.Run) -> pd.DataFrame:
    """Every comparison that the run has chosen so far, one row per strategy that chose it:
    prompt_id, i, j, strategy, reason, the texts prompt, one (completion i) and other (completion
    j), their hash as code, store (the file of labels), open (its round has not read the answers
    yet) and answered (the store holds one).
    """
    stage = run.folder / "03_feedback"
    paths = sorted(
        stage.glob("[!.]*/round_*/comparisons.parquet"),
        key=lambda p: (p.parts[-3], int(p.parts[-2].split("_")[1])),
    )
    if not run.belongs("03_feedback") or not paths:
        raise InputError(
            f"{stage} holds no comparisons yet: run notebook 03 with the same parameters first, it"
            " stops for answers"
        )
    pool = run.require("02_conflict", "pool_feedback")
    tables = []
    for path in paths:
        strategy = path.parent.parent
        # two strategies may use one index for two texts
        pools = [
            pool,
            *map(pd.read_parquet, strategy.glob("round_*/next_pool.parquet")),
        ]
        text = {
            (p, index): texts
            for table in pools
            for p, index, *texts in table[_TEXTS].itertuples(index=False, name=None)
        }
        tables.append(
            _with_texts(pd.read_parquet(path), text).assign(
                store=str(strategy / "labels.sqlite"),
                open=not (path.parent / "labels.parquet").exists(),
                answered=False,
            )
        )
    table = pd.concat(tables, ignore_index=True)
    for file, rows in table.groupby("store"):
        with LabelStore(Path(file)) as store:
            known = pd.MultiIndex.from_frame(store.labels()[KEY])
        table.loc[rows.index, "answered"] = pd.MultiIndex.from_frame(rows[KEY]).isin(known)
    return table


def _with_texts(
    comparisons: pd.DataFrame, text: dict[tuple[str, int], tuple[str, str]]
) -> pd.DataFrame:
    """text: (prompt_id, index) -> (prompt, completion)."""
    one, other = (
        [text[key] for key in zip(comparisons["prompt_id"], comparisons[side])]
        for side in ("i", "j")
    )
    codes = [
        hashlib.sha256(json.dumps([*a, b[1]]).encode()).hexdigest()[:8] for a, b in zip(one, other)
    ]
    return comparisons.assign(
        prompt=[plain(a[0]) for a in one],
        one=[a[1] for a in one],
        other=[b[1] for b in other],
        code=codes,
    )


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
        (left, left_text), (right, right_text) = [(row.i, row.one), (row.j, row.other)][
            :: -1 if turned else 1
        ]
        rows.append(
            (f"q-{row.prompt_id}-{left}-{right}-{row.code}", row.prompt, left_text, right_text)
        )
    return pd.DataFrame(rows, columns=COLUMNS[:4])


def write_questions(questions: pd.DataFrame, path: Path) -> list[Path]:
    """Write a task file for Label Studio (.json, with the labelling configuration beside it as
    .xml) or a spreadsheet (.csv).
    """
    kind = _kind(path)
    if not len(questions):
        raise InputError("nothing waits for an answer")
    try:
        if kind == "csv":
            contents = {path: csv_text(questions.assign(answer="", annotator=""))}
        else:
            contents = {
                path: json.dumps(tasks(questions), indent=1),
                path.with_suffix(".xml"): labelling_configuration(),
            }
        for target, text in contents.items():
            with files.atomic(target) as temporary:
                # the mark tells Excel that it is UTF-8
                temporary.write_bytes(text.encode("utf-8-sig" if kind == "csv" else "utf-8"))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    return list(contents)


# back into the run
def bring_in(run: runs.Run, path: Path, annotator: str = "spreadsheet") -> dict:
    """Put the answers of a file into the run's label stores, all of them or, with an InputError,
    none.

    Returns counts: added; known (the store has the same answer of the same person); closed (the
    round has read its answers already); waiting (questions that are still open).
    """
    kind = _kind(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(
                f"{path} has {path.stat().st_size / 1e6:.0f} MB, expected at most"
                f" {_LARGEST / 1e6:.0f}"
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: save it as 'CSV UTF-8'") from error
    answers = (
        from_csv(text, str(path), annotator)
        if kind == "csv"
        else from_label_studio(text, str(path))
    )
    table = asked_comparisons(run)
    chosen = {key: rows.iloc[0] for key, rows in table.groupby([*KEY, "code"])}
    for answer in answers:
        if answer.key not in chosen:
            raise InputError(f"{answer.where}: run {run.params.run!r} asks no such question")
    if kind == "csv":
        check_texts(text, str(path), chosen)
    counts = Counter(added=0, known=0, closed=0)
    # One transaction a strategy; what can be wrong was checked above, and a second import adds
    # what an interrupted one left out.
    for file, rows in table.groupby("store"):
        with LabelStore(Path(file)) as store:
            counts.update(
                _add(
                    store, {tuple(row[[*KEY, "code"]]): row for _, row in rows.iterrows()}, answers
                )
            )
    return {**counts, "waiting": len(pending(run))}


def _add(store: LabelStore, comparisons: dict[tuple, pd.Series], answers: list[Answer]) -> Counter:
    """Append the answers that belong to these comparisons, all or none."""
    given = store.by_annotator()
    given = given[given["j"].notna() & ~given["repeat"]]
    latest = {
        (row.prompt_id, row.i, int(row.j), row.annotator): row.answer for row in given.itertuples()
    }
    final = {}  # of several by one person the last, at its place
    for answer in answers:
        if answer.key in comparisons:
            final.pop((*answer.key[:3], answer.annotator), None)
            final[*answer.key[:3], answer.annotator] = answer
    counts, new = Counter(), []
    for who, answer in final.items():
        if latest.get(who) == answer.answer:
            counts["known"] += 1
        elif not comparisons[answer.key]["open"]:
            counts["closed"] += 1
        else:
            new.append((comparisons[answer.key], answer.answer, answer.annotator, answer.left))
    store.add_all(new)
    return counts + Counter(added=len(new))


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("json", "csv"):
        raise InputError(
            f"{path}: expected a name ending in .json (Label Studio) or .csv (a spreadsheet)"
        )
    return kind
