"""Surface attributes of a completion: what a careless annotator looks at instead of quality.

Each is a function from a completion to a number; the annotator who follows it prefers the
higher one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.plugins import imported

AttributeFunction = Callable[[str], float]
# Both patterns were written by reading completions of small chat models.
_REFUSAL = re.compile(
    r"""\b(?:
      (?:i|we)(?:\s+am|'m|\s+are|'re)?\s+(?:\w+\s+){0,2}?(?:cannot|can't|can\s+not|could\s+not
        |couldn't|won't|will\s+not)\b
        (?!\s+(?:wait|help\s+but|believe|imagine))
    | (?:i|we)(?:\s+am|'m|\s+are|'re)\s+(?:\w+\s+){0,2}?(?:unable|not\s+(?:able|allowed|permitted
        |comfortable|capable|willing|going|equipped|qualified))\b
    | (?:i|we)\s+(?:must\s+|have\s+to\s+|would\s+|will\s+|need\s+to\s+)?
        (?:politely\s+|respectfully\s+|kindly\s+)?(?:refuse|decline|refrain)\b
    | (?:i|we)\s+(?:do\s+not|don't)\s+(?:\w+\s+)?(?:have\s+(?:any\s+|the\s+|access|enough)
        |provide|give|offer|share|support|condone|encourage|engage|recommend
        |feel\s+comfortable|possess|know\b)
    | i(?:'m|\s+am)\s+(?:\w+\s+)?sorry\s*(?:[.,!]|$|but\b|to\s+hear\b)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_FLATTERY = re.compile(
    r"\b(great|excellent|wonderful|fantastic|brilliant|good|thoughtful)"
    r" (question|idea|point|choice)\b|\byou(?:'re| are) (?:so |very )?(right|smart|clever|kind)\b",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(r"^\s*(?:[-*]\s|\d+\.\s|#+\s)|\*\*", re.MULTILINE)


def first_sentence(text: str) -> str:
    """Text up to its first sentence end or line break."""
    return re.split(r"(?<=[.!?])\s|\n", text.replace("\u2019", "'").strip(), maxsplit=1)[0]


def refuses(text: str) -> bool:
    """Does the first sentence of a completion decline the request?

    (A refusal that comes later is a disclaimer.)
    """
    return bool(_REFUSAL.search(first_sentence(text)))


ATTRIBUTES: dict[str, AttributeFunction] = {
    "length": lambda text: float(len(text)),
    "compliance": lambda text: float(not refuses(text)),
    "flattery": lambda text: float(len(_FLATTERY.findall(text))),
    "markdown": lambda text: float(len(_MARKDOWN.findall(text))),
}


def attribute(name: str) -> AttributeFunction:
    """The attribute called `name`.

    It is one of ATTRIBUTES, `keyword:WORD`, or your own `module:function` of a completion.

    Raises InputError for a name that leads nowhere.
    """
    if name in ATTRIBUTES:
        return ATTRIBUTES[name]
    kind, _, word = name.partition(":")
    if kind == "keyword" and word:
        return lambda text: float(text.lower().count(word.lower()))
    if word:
        return imported(name, "attribute")
    raise InputError(
        f"attribute {name!r}: choose {', '.join(ATTRIBUTES)}, keyword:WORD or module:function"
    )
