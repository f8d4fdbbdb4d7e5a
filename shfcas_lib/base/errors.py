"""Bad input in one sentence: the one error that this library raises for what its users can mend.
And one that is none: a run that waits for people."""

from __future__ import annotations

from shfcas_lib.base.texts import one_line

_LONGEST_MESSAGE = 2000


class InputError(Exception):
    """Bad input from outside: a parameter, a file, a table.

    The message is one sentence a user can act on, on one line and printable whatever the input
    held.
    """

    def __init__(self, message: object = ""):
        text = one_line(str(message))
        if len(text) > _LONGEST_MESSAGE:
            text = text[: _LONGEST_MESSAGE - 3] + "..."
        super().__init__(text)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of this: the sentence. A traceback would hide it."""
        return [f"{type(self).__name__}: {self}"]


class Waiting(InputError):
    """A run goes no further before people have answered. Nothing went wrong; the message says how
    they answer, and how to go on."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]
