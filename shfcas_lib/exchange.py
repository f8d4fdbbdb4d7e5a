"""Comparisons that travel as files, to people who answer in Label Studio or in a spreadsheet, and their answers back.

    write(pending(run), Path("tasks.json"))              # and tasks.xml, the labelling configuration; or tasks.csv
    bring_in(run, Path("answers.json"), annotator)       # Label Studio's JSON export, or the filled-in csv

A question's id holds the comparison, the order in which it is shown, and a hash of its texts: `q-PROMPT_ID-4-1-HASH` shows completion
4 on the left and 1 on the right. The order is drawn per comparison from the run's seed. An import is all or nothing, and importing
the same file again changes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from shfcas_lib import runs
from shfcas_lib.dialogues import plain
from shfcas_lib.labels import ANSWERS, LabelStore
from shfcas_lib.params import InputError
from shfcas_lib.texts import neutral, restored

KEY = ["prompt_id", "i", "j"]
COLUMNS = ["question", "prompt", "left", "right", "answer", "annotator"]
_TEXTS = ["prompt_id", "index", "prompt", "completion"]
SIDES = {"left": "first", "right": "second"}  # of the two as shown; the other answers have the same name on either side
SHOWN = [*SIDES, *(answer for answer in ANSWERS if answer not in SIDES.values())]
_LONGEST_CELL = 32_000  # spreadsheets cut a cell off a little after that
_LONGEST_FIELD = 100_000_000
_LARGEST = 256_000_000  # bytes of a file of answers; it is held whole, because an import is all or nothing


@dataclass(frozen=True)
class Answer:
    """One answer in terms of the comparison. key: prompt_id, i, j, hash of the texts; left: the completion that stood on the left; where:
    its place in the file, for messages."""

    key: tuple[str, int, int, str]
    left: int
    answer: str
    annotator: str
    where: str


# what is asked


def asked(run: runs.Run) -> pd.DataFrame:
    """Every comparison that the run has chosen so far, one row per strategy that chose it: prompt_id, i, j, strategy, reason, the texts
    prompt, one (completion i) and other (completion j), their hash as code, store (the file of labels), open (its round has not read
    the answers yet) and answered (the store holds one)."""
    stage = run.folder / "03_feedback"
    paths = sorted(stage.glob("[!.]*/round_*/comparisons.parquet"), key=lambda p: (p.parts[-3], int(p.parts[-2].split("_")[1])))
    if not run.belongs("03_feedback") or not paths:
        raise InputError(f"{stage} holds no comparisons yet: run notebook 03 with the same parameters first, it stops for answers")
    pool = run.require("02_conflict", "pool_feedback")
    tables = []
    for path in paths:
        strategy = path.parent.parent
        pools = [pool, *map(pd.read_parquet, strategy.glob("round_*/next_pool.parquet"))]  # two strategies may use one index for two texts
        text = {(p, index): texts for table in pools for p, index, *texts in table[_TEXTS].itertuples(index=False, name=None)}
        tables.append(_with_texts(pd.read_parquet(path), text).assign(
            store=str(strategy / "labels.sqlite"), open=not (path.parent / "labels.parquet").exists(), answered=False))
    table = pd.concat(tables, ignore_index=True)
    for file, rows in table.groupby("store"):
        with LabelStore(Path(file)) as store:
            known = pd.MultiIndex.from_frame(store.labels()[KEY])
        table.loc[rows.index, "answered"] = pd.MultiIndex.from_frame(rows[KEY]).isin(known)
    return table


def _with_texts(comparisons: pd.DataFrame, text: dict[tuple[str, int], tuple[str, str]]) -> pd.DataFrame:
    """text: (prompt_id, index) -> (prompt, completion)."""
    one, other = ([text[key] for key in zip(comparisons["prompt_id"], comparisons[side])] for side in ("i", "j"))
    codes = [hashlib.sha256(json.dumps([*a, b[1]]).encode()).hexdigest()[:8] for a, b in zip(one, other)]
    return comparisons.assign(prompt=[plain(a[0]) for a in one], one=[a[1] for a in one], other=[b[1] for b in other], code=codes)


def pending(run: runs.Run) -> pd.DataFrame:
    """The questions that wait for an answer, most conflicted first: question, prompt, left, right. A comparison that two strategies
    chose is one question."""
    table = asked(run)
    return questions(table[table["open"] & ~table["answered"]], run.params.seed)


def questions(comparisons: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Comparisons with their texts as questions, each in an order that the seed draws for it."""
    rows = []
    for row in comparisons.drop_duplicates([*KEY, "code"]).itertuples():
        turned = runs.rng(seed, f"order/{row.prompt_id}/{row.i}/{row.j}").random() < 0.5
        (left, left_text), (right, right_text) = [(row.i, row.one), (row.j, row.other)][:: -1 if turned else 1]
        rows.append((f"q-{row.prompt_id}-{left}-{right}-{row.code}", row.prompt, left_text, right_text))
    return pd.DataFrame(rows, columns=COLUMNS[:4])


def write(questions: pd.DataFrame, path: Path) -> list[Path]:
    """Write a task file for Label Studio (.json, with the labelling configuration beside it as .xml) or a spreadsheet (.csv)."""
    kind = _kind(path)
    if not len(questions):
        raise InputError("nothing waits for an answer")
    try:
        if kind == "csv":
            contents = {path: csv_text(questions.assign(answer="", annotator=""))}
        else:
            contents = {path: json.dumps(tasks(questions), indent=1), path.with_suffix(".xml"): labelling_configuration()}
        for target, text in contents.items():
            with runs.atomic(target) as temporary:
                temporary.write_bytes(text.encode("utf-8-sig" if kind == "csv" else "utf-8"))  # the mark tells Excel that it is UTF-8
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    return list(contents)


# Label Studio


def tasks(questions: pd.DataFrame) -> list[dict]:
    """Label Studio's task list, one task a question."""
    return [{"data": row} for row in questions[COLUMNS[:4]].to_dict("records")]


def labelling_configuration() -> str:
    """The labelling configuration that belongs to `tasks`. Texts are shown as text, never as HTML."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Style").text = ".htx-text { white-space: pre-wrap; }"
    _text(view, "Request", "prompt")
    row = ElementTree.SubElement(view, "View", style="display: grid; grid-template-columns: 1fr 1fr; column-gap: 1em")
    for side in SIDES:
        _text(ElementTree.SubElement(row, "View"), side.capitalize(), side)
    choices = ElementTree.SubElement(view, "Choices", name="answer", toName="prompt", choice="single-radio", required="true",
                                     showInline="true")
    for number, value in enumerate((answer for answer in SHOWN if answer != "skip"), 1):  # Label Studio has a button to skip
        ElementTree.SubElement(choices, "Choice", value=value, hotkey=str(number))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _text(parent: ElementTree.Element, title: str, name: str) -> None:
    ElementTree.SubElement(parent, "Header", value=title, size="5")
    ElementTree.SubElement(parent, "Text", name=name, value=f"${name}", valueType="text")


def from_label_studio(text: str, origin: str) -> list[Answer]:
    """Answers in a JSON export of Label Studio, oldest first. Cancelled (skipped) annotations are left out. Raises InputError."""
    try:
        exported = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not valid JSON: {error}") from error
    if not isinstance(exported, list) or not all(isinstance(task, dict) for task in exported):
        raise InputError(f"{origin}: expected the list of tasks that Label Studio exports as JSON")
    dated = [pair for number, task in enumerate(exported, 1) for pair in _annotations(task, f"{origin}, task {number}")]
    return [answer for _, answer in sorted(dated, key=lambda pair: pair[0])]


def _annotations(task: dict, where: str) -> Iterable[tuple[tuple[str, int], Answer]]:
    """((time, id), answer) of the annotations of one task."""
    if not isinstance(task.get("annotations"), list) or not isinstance(task.get("data"), dict):
        raise InputError(f"{where}: has no 'annotations' and 'data'; export as JSON (not JSON-MIN)")
    name = task["data"].get("question")
    for annotation in task["annotations"]:
        if not isinstance(annotation, dict):
            raise InputError(f"{where}: an annotation is {type(annotation).__name__}, expected an object")
        if annotation.get("was_cancelled"):
            continue
        result = annotation.get("result") or []
        if not isinstance(result, list):
            raise InputError(f"{where} ({name}): the result of an annotation is {type(result).__name__}, expected a list")
        given = [choice for choice in map(_choice, result) if choice is not None]
        if len(given) != 1:
            raise InputError(f"{where} ({name}): annotation {annotation.get('id')} holds {len(given)} answers, expected one")
        when = (str(annotation.get("updated_at") or annotation.get("created_at") or ""), _whole(annotation.get("id")))
        yield when, _answer(name, given[0], _person(annotation.get("completed_by"), where), f"{where} ({name})")


def _choice(result) -> str | None:
    """The choice in one result of an annotation; None where the result is something else, such as a note."""
    if not isinstance(result, dict) or result.get("type") != "choices" or result.get("from_name") != "answer":
        return None
    value = result.get("value")
    choices = value.get("choices") if isinstance(value, dict) else None
    return str(choices[0]) if isinstance(choices, list) and len(choices) == 1 else ""


def _person(who, where: str) -> str:
    """The annotator's name: the e-mail address where the export has it, else Label Studio's number for the person."""
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    if isinstance(who, bool) or not isinstance(who, (int, str)) or who == "":
        raise InputError(f"{where}: an annotation does not say who made it (completed_by)")
    if any("\ud800" <= character <= "\udfff" for character in str(who)):
        raise InputError(f"{where}: the name of who made an annotation holds half a character (an unpaired surrogate)")
    return f"label-studio:{who}"


def _whole(value) -> int:
    return value if isinstance(value, int) else 0


# spreadsheets


def csv_text(table: pd.DataFrame) -> str:
    """A table of texts as csv, every cell neutral."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(table.columns)
    writer.writerows([neutral(str(cell)) for cell in row] for row in table.itertuples(index=False))
    return out.getvalue()


def csv_rows(text: str, origin: str) -> list[dict[str, str]]:
    """The rows of a csv that a spreadsheet may have saved (with commas, semicolons or tabs), cells restored. Raises InputError."""
    header = text.partition("\n")[0]
    csv.field_size_limit(_LONGEST_FIELD)
    number = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
        names = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in ("question", "answer") if name not in names]
        if missing:
            raise InputError(f"{origin} has no column {missing[0]!r} (columns found: {', '.join(names)})")
        rows = []
        for number, cells in enumerate(reader, 1):
            if len(cells) != len(names) and any(cells):
                raise InputError(f"{origin}, row {number}: {len(cells)} cells, expected {len(names)}")
            rows.append(dict(zip(names, map(restored, cells))))
    except csv.Error as error:
        raise InputError(f"{origin} cannot be read after row {number}: {error}") from error
    return rows


def from_csv(text: str, origin: str, annotator: str) -> list[Answer]:
    """Answers in a filled-in csv. Rows with an empty answer are left out; `annotator` answers where a row names nobody."""
    answers: dict[tuple, Answer] = {}
    for number, row in enumerate(csv_rows(text, origin), 1):
        given = row.get("answer", "").strip()
        if not given:
            continue
        who = row.get("annotator", "").strip() or annotator
        answer = _answer(row["question"].strip(), given, who, f"{origin}, row {number}")
        before = answers.setdefault((*answer.key, who), answer)
        if before.answer != answer.answer:
            raise InputError(f"{answer.where}: {who!r} answers this question another way than in {before.where.rpartition(', ')[2]}")
    return list(answers.values())


def _check_texts(text: str, origin: str, chosen: dict[tuple, pd.Series]) -> None:
    """Refuse a sheet in which texts moved away from their questions, as when only some of its columns were sorted."""
    for number, row in enumerate(csv_rows(text, origin), 1):
        if row.get("answer", "").strip():
            prompt, left, right, code = _parsed(row["question"].strip(), f"{origin}, row {number}")
            there = chosen[prompt, min(left, right), max(left, right), code]
            sides = (there["one"], there["other"]) if left < right else (there["other"], there["one"])
            for name, expected in zip(("prompt", "left", "right"), (there["prompt"], *sides)):
                if name in row and _plain(row[name]) != _plain(expected):
                    raise InputError(f"{origin}, row {number}: the text under {name!r} is not that of {row['question']}: "
                                     "was only a part of the sheet sorted?")


def _plain(text: str) -> str:
    """What is left of a text after a spreadsheet had it: control characters and kinds of white space may change, and a long one is cut."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_LONGEST_CELL]).split())[:_LONGEST_CELL // 2]


# back into the run


def bring_in(run: runs.Run, path: Path, annotator: str = "spreadsheet") -> dict:
    """Put the answers of a file into the run's label stores, all of them or, with an InputError, none.

    Returns counts: added; known (the store has the same answer of the same person); closed (the round has read its answers
    already); waiting (questions that are still open).
    """
    kind = _kind(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} has {path.stat().st_size / 1e6:.0f} MB, expected at most {_LARGEST / 1e6:.0f}")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: save it as 'CSV UTF-8'") from error
    answers = from_csv(text, str(path), annotator) if kind == "csv" else from_label_studio(text, str(path))
    table = asked(run)
    chosen = {key: rows.iloc[0] for key, rows in table.groupby([*KEY, "code"])}
    for answer in answers:
        if answer.key not in chosen:
            raise InputError(f"{answer.where}: run {run.params.run!r} asks no such question")
    if kind == "csv":
        _check_texts(text, str(path), chosen)
    counts = Counter(added=0, known=0, closed=0)
    # One transaction a strategy; what can be wrong was checked above, and a second import adds what an interrupted one left out.
    for file, rows in table.groupby("store"):
        with LabelStore(Path(file)) as store:
            counts.update(_add(store, {tuple(row[[*KEY, "code"]]): row for _, row in rows.iterrows()}, answers))
    return {**counts, "waiting": len(pending(run))}


def _add(store: LabelStore, comparisons: dict[tuple, pd.Series], answers: list[Answer]) -> Counter:
    """Append the answers that belong to these comparisons, all or none."""
    given = store.by_annotator()
    given = given[given["j"].notna() & ~given["repeat"]]
    latest = {(row.prompt_id, row.i, int(row.j), row.annotator): row.answer for row in given.itertuples()}
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


def _answer(name, given: str, annotator: str, where: str) -> Answer:
    """An answer about what stood left and right as one about the comparison, i < j."""
    prompt, left, right, code = _parsed(name, where)
    word = "_".join(given.lower().split())
    if word not in SHOWN:
        raise InputError(f"{where}: answer {given[:80]!r}, expected {', '.join(SHOWN)}")
    sides = {"left": "first", "right": "second"} if left < right else {"left": "second", "right": "first"}
    return Answer((prompt, min(left, right), max(left, right), code), left, sides.get(word, word), annotator, where)


def _parsed(name, where: str) -> tuple[str, int, int, str]:
    """(prompt_id, left, right, hash) of a question's id."""
    parts = re.fullmatch(r"q-(.+)-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{8})", str(name), re.DOTALL)
    if not parts or parts[2] == parts[3]:
        raise InputError(f"{where}: question {str(name)[:80]!r} is none of ours, expected one like q-0123456789abcdef-4-1-0f1e2d3c")
    return parts[1], int(parts[2]), int(parts[3]), parts[4]


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("json", "csv"):
        raise InputError(f"{path}: expected a name ending in .json (Label Studio) or .csv (a spreadsheet)")
    return kind
