"""The annotation screen in a terminal: one question after another, each answer on disk before the
next.

    answered = ask(session_of(open_sheet(path), "anna"))

What is shown is what `session.Session` shows anywhere: sides by chance, repeats unannounced, and
everything invisible made visible. Ending it costs nothing: the next start is at the same place.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shfcas_lib.screen.session import Session

# what a person types, and what it means
_WORDS = {
    "l": "left",
    "r": "right",
    "ll": "much_left",
    "rr": "much_right",
    "=": "tie",
    "t": "tie",
    "b": "both_bad",
    "s": "skip",
}
_MOVES = {"u": "undo", "p": "back", "c": "resume"}
_QUIT = ("q", "quit", "exit")
_RULE = "-" * 72


def ask(
    session: Session, read: Callable[[str], str] = input, write: Callable[[str], None] = print
) -> int:
    """Put the open questions until all are answered or the person ends it; returns how many are
    still open.

    read: asks for a line with a prompt, and raises EOFError where there is no more. write: shows
    a text.
    """
    write(_help(session.scale))
    while not session.complete or session.shown is not None:
        view = session.view()
        write(_page(view))
        start = time.monotonic()
        try:
            word = read(f"{_keys(session.scale)} > ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            break
        if word in _QUIT:
            break
        _handle(session, view["turn"], word, time.monotonic() - start, write)
    left = len(session.open)
    write(
        f"\n{view_of(session)}; every answer is on disk."
        + ("" if left == 0 else " The same command goes on here.")
    )
    return left


def _handle(
    session: Session, turn: str, word: str, seconds: float, write: Callable[[str], None]
) -> None:
    """Do what a line says, and say what became of it."""
    offered = [answer for answer, _, _ in session.view()["choices"]]
    if word in _MOVES:
        session.handle({"do": _MOVES[word], "turn": turn})
    elif _WORDS.get(word) in offered:
        answer = {"do": "answer", "turn": turn, "answer": _WORDS[word], "seconds": seconds}
        session.handle(answer)
    else:
        write(_help(session.scale))
        return
    if session.message:
        write(session.message)


def view_of(session: Session) -> str:
    """How far a person is, in words."""
    total = len(session.asked)
    return f"{total - len(session.open)} of {total} questions answered"


def _page(view: dict) -> str:
    """A question with its two answers."""
    left, right = (_text(text) for text in view["texts"])
    head = f"Question {min(view['done'] + 1, view['total'])} of {view['total']}"
    if view["given"]:
        head += f" (answered: {view['given'].replace('_', ' ')})"
    parts = (head, "REQUEST", _text(view["prompt"]), "LEFT", left, "RIGHT", right)
    return f"\n{_RULE}\n" + "\n\n".join(parts) + "\n"


def _text(segments: list[list]) -> str:
    return "".join(part for part, _ in segments)


def _keys(scale: str) -> str:
    sides = "ll l r rr" if scale == "graded" else "l r"
    return f"{sides} = b s, u p c q"


def _help(scale: str) -> str:
    """What can be typed."""
    much = "ll, rr: that side is much better; " if scale == "graded" else ""
    return (
        f"l, r: the left, the right answer is better; {much}=: a tie; b: both bad; s: skip;"
        " u: undo the last; p: back to an earlier one; c: continue; q: end"
    )
