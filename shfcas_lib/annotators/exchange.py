"""Comparisons that travel as files, to people who answer in Label Studio or in a spreadsheet, and
their answers back.

    write_questions(pending(run), Path("tasks.json"))  # and tasks.xml, the labelling
                                                       # configuration; or tasks.csv
    bring_in(run, Path("answers.json"))                # Label Studio's export, the filled-in csv,
                                                       # or the folder of another run

The order in which two completions are shown is drawn per comparison from the run's seed. An
import is all or nothing, and importing the same file again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from shfcas_lib.annotators.label_studio import from_label_studio, labelling_configuration, tasks
from shfcas_lib.annotators.questions import COLUMNS, KEY, STUDIO, Answer
from shfcas_lib.annotators.spreadsheet import check_texts, csv_text, from_csv
from shfcas_lib.base.dialogues import plain
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.data.sheets import is_sheet
from shfcas_lib.storage import files, runs
from shfcas_lib.storage.labels import LabelStore, by_people, said

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
    run.require("02_conflict", "pool_feedback")
    table = _asked(run.folder, paths)
    for file, rows in table.groupby("store"):
        with LabelStore(Path(file)) as store:
            known = pd.MultiIndex.from_frame(store.labels()[KEY])
        table.loc[rows.index, "answered"] = pd.MultiIndex.from_frame(rows[KEY]).isin(known)
    return table


def _asked(folder: Path, paths: list[Path]) -> pd.DataFrame:
    """The comparisons of a run folder with their texts; nothing is answered yet."""
    pools = []
    # the proxy's own prompts may be asked about, too
    for name in ("01_proxy/pool_train", "02_conflict/pool_feedback"):
        if (folder / f"{name}.parquet").exists():
            pools.append(runs.read_table(folder / f"{name}.parquet")[_TEXTS])
    pool = pd.concat(pools)
    tables = []
    for path in paths:
        strategy = path.parent.parent
        table = _with_texts(runs.read_table(path), _texts_of(pool, strategy))
        table["store"] = str(strategy / "labels.sqlite")
        table["open"] = not (path.parent / "labels.parquet").exists()
        table["answered"] = False
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _comparison_files(run: runs.Run) -> list[Path]:
    """The comparisons of every strategy and round, rounds in order. Raises InputError."""
    stage = run.folder / "03_feedback"
    paths = _in_order(stage)
    if not run.belongs("03_feedback") or not paths:
        raise InputError(
            f"{stage} holds no comparisons yet: run notebook 03 with the same parameters first, it"
            " stops for answers"
        )
    return paths


def _in_order(stage: Path) -> list[Path]:
    paths = stage.glob("[!.]*/round_*/comparisons.parquet")
    return sorted(paths, key=_strategy_and_round)


def _strategy_and_round(path: Path) -> tuple[str, int]:
    *_, strategy, folder, _ = path.parts
    return strategy, int(folder.split("_")[1])


def _texts_of(pool: pd.DataFrame, strategy: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(prompt_id, index) -> (prompt, completion), with the completions sampled in later rounds.

    One for each strategy: two may use one index for two texts.
    """
    later = [runs.read_table(path) for path in strategy.glob("round_*/next_pool.parquet")]
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
@dataclass(frozen=True)
class Brought:
    """What a file or a folder holds. empty: annotations that were submitted without an answer;
    changed: rows in which a spreadsheet changed a text."""

    answers: list[Answer]
    empty: int = 0
    changed: int = 0


def bring_in(run: runs.Run, path: Path, annotator: str = "spreadsheet") -> dict:
    """Put answers into the run's label stores, all of them or none.

    path: a file that `write_questions` made, filled in; an export of Label Studio; or the folder
    of another run, whose people's answers count where this run asks about the same texts.
    annotator: who answered, where a row of a csv does not say. Raises InputError, and then
    nothing was stored. Returns counts:

        added
        known    the store has the same answer of the same person
        closed   the round has read its answers already
        waiting  questions that are still open

    and, where there are any:

        empty      annotations that were submitted without an answer
        changed    rows in which a spreadsheet made numbers or dates of texts; their ids count
        elsewhere  answers of another run to questions that this one does not ask, or not yet
    """
    # whatever can be wrong is found before the first answer is stored
    table = asked_comparisons(run)
    chosen = {key: rows.iloc[0] for key, rows in table.groupby([*KEY, "code"])}
    graded, whose = run.params.feedback.graded, f"run {run.params.run!r}"
    if path.is_dir():
        brought = Brought(_of_run(path, graded))
    else:
        brought = read_answers(path, chosen, whose, annotator, graded)
    here = [answer for answer in brought.answers if answer.key in chosen]
    elsewhere = len(brought.answers) - len(here)

    # one transaction a strategy; a second import adds what an interrupted one left out
    stores = [Path(file) for file in table["store"].unique()]
    here, aliases = one_name_each(here, stores)
    counts = Counter(added=0, known=0, closed=0)
    for file, rows in table.groupby("store"):
        comparisons = {tuple(row[[*KEY, "code"]]): row for _, row in rows.iterrows()}
        with LabelStore(Path(file)) as store:
            for name, others in aliases.items():
                store.same_person(name, others)
            counts.update(add_answers(store, comparisons, here))
    more = {"empty": brought.empty, "changed": brought.changed, "elsewhere": elsewhere}
    there = {name: number for name, number in more.items() if number}
    return {**counts, "waiting": len(pending(run)), **there}


def read_answers(
    path: Path,
    chosen: dict[tuple, pd.Series],
    whose: str,
    annotator: str = "spreadsheet",
    graded: bool = False,
) -> Brought:
    """The answers in a filled-in csv or in an export of Label Studio.

    chosen: (prompt_id, i, j, code) to the comparison with its texts; whose: who asked, in words.
    Raises InputError for an answer to anything else, and where texts moved away from their
    questions.
    """
    kind, written, changed, empty = kind_of(path), content(path), 0, 0
    if kind == "csv":
        answers = from_csv(written, str(path), annotator, graded)
    else:
        answers, empty = from_label_studio(_json_text(written, path), str(path), graded)
    for answer in answers:
        if answer.key not in chosen:
            raise InputError(f"{answer.where}: {whose} asks no such question")
    if kind == "csv":
        changed = check_texts(written, str(path), chosen)
    return Brought(answers, empty, changed)


def _of_run(folder: Path, graded: bool) -> list[Answer]:
    """What people answered in the run whose folder this is. Raises InputError."""
    paths = _in_order(folder / "03_feedback")
    if not paths:
        raise InputError(f"{folder} is no folder of a run that asked people: it has no comparisons")
    answers = []
    for file, rows in _asked(folder, paths).groupby("store"):
        code = {tuple(row[KEY]): row["code"] for _, row in rows.iterrows()}
        with LabelStore(Path(file)) as store:
            given = store.by_annotator()
        given = given[given["j"].notna() & ~given["repeat"] & by_people(given["annotator"])]
        for row in given.to_dict("records"):
            key = (row["prompt_id"], row["i"], int(row["j"]))
            if key in code:
                word = said(row["answer"], row.get("grade") if graded else None)
                left = row["i"] if pd.isna(row["shown_left"]) else int(row["shown_left"])
                where = f"{file}, answer {row['id']}"
                answers.append(Answer((*key, code[key]), left, word, row["annotator"], where))
    return answers


def one_name_each(
    answers: list[Answer], stores: list[Path]
) -> tuple[list[Answer], dict[str, list[str]]]:
    """The answers under one name for each person, and other names to remember, by that name.

    The name is the one that a store knows already, or else the answer's own.
    """
    known: dict[str, str] = {}
    for path in stores:
        with LabelStore(path) as store:
            known |= {_folded(alias): name for alias, name in store.people().items()}
    named: list[Answer] = []
    remembered: dict[str, list[str]] = {}
    for answer in answers:
        names = [answer.annotator, *answer.aliases]
        # a sheet's number is that of Label Studio where answers came from there before
        guess = [f"{STUDIO}{answer.annotator}"] if answer.annotator.isdigit() else []
        there = [known[_folded(name)] for name in [*names, *guess] if _folded(name) in known]
        name = there[0] if there else answer.annotator
        for alias in {*names, *there} - {name}:
            remembered.setdefault(name, [])
            if alias not in remembered[name]:
                remembered[name].append(alias)
        known |= {_folded(alias): name for alias in [*names, *there]}
        named.append(replace(answer, annotator=name))
    return named, remembered


def _folded(name: str) -> str:
    """A name to look people up by: capitals in a mail address mean nothing."""
    return name.casefold() if "@" in name else name


def content(path: Path) -> bytes:
    """The bytes of a file of answers. Raises InputError."""
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise InputError(
                f"{path} has {size / 1e6:.0f} MB, expected at most {_LARGEST / 1e6:.0f}"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _json_text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8, which JSON is") from error


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
    kind = "csv" if is_sheet(path) else path.suffix.lower().removeprefix(".")
    if kind not in ("json", "csv"):
        raise InputError(
            f"{path}: expected a name ending in .json (Label Studio) or .csv (a spreadsheet)"
        )
    return kind
