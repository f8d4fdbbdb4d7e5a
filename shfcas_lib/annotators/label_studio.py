"""Questions as tasks of Label Studio, and answers out of its JSON export."""

from __future__ import annotations

import json
from collections.abc import Iterable
from xml.etree import ElementTree

import pandas as pd

from shfcas_lib.annotators.questions import (
    COLUMNS,
    SIDES,
    Answer,
    answer_of,
    offered,
    studio_names,
)
from shfcas_lib.base.errors import InputError
from shfcas_lib.data.formats import once_each


def tasks(questions: pd.DataFrame) -> list[dict]:
    """Label Studio's task list, one task a question."""
    return [{"data": row} for row in questions[COLUMNS[:4]].to_dict("records")]


def labelling_configuration(graded: bool = False) -> str:
    """The labelling configuration that belongs to `tasks`.

    graded: may an answer be much better? Texts are shown as text, never as HTML.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Style").text = ".htx-text { white-space: pre-wrap; }"
    _text(view, "Request", "prompt")
    row = ElementTree.SubElement(
        view, "View", style="display: grid; grid-template-columns: 1fr 1fr; column-gap: 1em"
    )
    for side in SIDES:
        _text(ElementTree.SubElement(row, "View"), side.capitalize(), side)
    choices = ElementTree.SubElement(
        view,
        "Choices",
        name="answer",
        toName="prompt",
        choice="single-radio",
        required="true",
        showInline="true",
    )
    answers = [answer for answer in offered(graded) if answer != "skip"]  # it has a button to skip
    for number, value in enumerate(answers, 1):
        ElementTree.SubElement(choices, "Choice", value=value, hotkey=str(number))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _text(parent: ElementTree.Element, title: str, name: str) -> None:
    ElementTree.SubElement(parent, "Header", value=title, size="5")
    ElementTree.SubElement(parent, "Text", name=name, value=f"${name}", valueType="text")


def from_label_studio(text: str, origin: str, graded: bool = False) -> tuple[list[Answer], int]:
    """Answers in a JSON export of Label Studio, oldest first, and how many annotations were
    submitted without an answer.

    Those and cancelled (skipped) ones are left out. Raises InputError.
    """
    try:
        exported = json.loads(text, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not valid JSON: {error}") from error
    if not isinstance(exported, list) or not all(isinstance(task, dict) for task in exported):
        raise InputError(f"{origin}: expected the list of tasks that Label Studio exports as JSON")
    dated: list[tuple[tuple[str, int], Answer | None]] = []
    for number, task in enumerate(exported, 1):
        dated += _annotations(task, f"{origin}, task {number}", graded)
    found = [answer for _, answer in sorted(dated, key=lambda pair: pair[0])]
    answers = [answer for answer in found if answer is not None]
    return answers, len(found) - len(answers)


def _annotations(
    task: dict, where: str, graded: bool
) -> Iterable[tuple[tuple[str, int], Answer | None]]:
    """((time, id), answer) of the annotations of one task; None for one without an answer."""
    if not isinstance(task.get("annotations"), list) or not isinstance(task.get("data"), dict):
        raise InputError(f"{where}: has no 'annotations' and 'data'; export as JSON (not JSON-MIN)")
    name = task["data"].get("question")
    for annotation in task["annotations"]:
        if not isinstance(annotation, dict):
            raise InputError(
                f"{where}: an annotation is {type(annotation).__name__}, expected an object"
            )
        if annotation.get("was_cancelled"):
            continue

        # one choice a person, beside notes and whatever else the project asks for
        result = annotation.get("result") or []
        if not isinstance(result, list):
            raise InputError(
                f"{where} ({name}): the result of an annotation is {type(result).__name__},"
                " expected a list"
            )
        choices = [choice for choice in map(_choice, result) if choice is not None]
        # the latest one counts, so time and id come first
        time = str(annotation.get("updated_at") or annotation.get("created_at") or "")
        place = (time, _whole(annotation.get("id")))
        if not any(choices):
            yield place, None
            continue
        given = [word for choice in choices for word in choice]
        if len(given) != 1:
            raise InputError(
                f"{where} ({name}): annotation {annotation.get('id')} holds {len(given)} answers,"
                " expected one"
            )
        who, *aliases = _person(annotation.get("completed_by"), where)
        place_text = f"{where} ({name})"
        word = str(given[0])
        yield place, answer_of(name, word, who, place_text, graded, tuple(aliases))


def _choice(result) -> list | None:
    """The choices in one result of an annotation; None where the result is something else, such as
    a note.
    """
    if not isinstance(result, dict):
        return None
    if result.get("type") != "choices" or result.get("from_name") != "answer":
        return None
    value = result.get("value")
    choices = value.get("choices") if isinstance(value, dict) else None
    return choices if isinstance(choices, list) else []


def _person(who, where: str) -> list[str]:
    """The annotator's name, then others of the same person: the e-mail address, or else Label
    Studio's number for the person."""
    number = None
    if isinstance(who, dict):
        number = who.get("id") if who.get("email") else None
        who = who.get("email") or who.get("id")
    if isinstance(who, bool) or not isinstance(who, (int, str)) or who == "":
        raise InputError(f"{where}: an annotation does not say who made it (completed_by)")
    if any("\ud800" <= character <= "\udfff" for character in str(who)):
        raise InputError(
            f"{where}: the name of who made an annotation holds half a character (an unpaired"
            " surrogate)"
        )
    return studio_names(who, number)


def _whole(value) -> int:
    return value if isinstance(value, int) else 0
