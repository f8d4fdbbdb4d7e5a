"""What a spreadsheet makes of a text that it takes for a number, a date or a truth value.

    may_have_become("50%", "0.5")               # True
    may_have_become("2024-01-02", "2024/01/02")  # True
    may_have_become("Paris", "London")          # False

An answer sheet's question tells which comparison a row is about; its texts are there to be read.
So a changed text does not matter, where it can be told from one that belongs to another row.
"""

from __future__ import annotations

import datetime
import math
import re

from shfcas_lib.base.texts import canonical

_LONGEST = 40  # characters of the longest text that anybody would take for a number or a date
_TRUE = "true wahr vrai verdadero verdadeiro vero waar sant sand tosi prawda pravda igaz".split()
_FALSE = "false falsch faux falso onwaar falskt usand falsk epätosi fałsz nepravda hamis".split()
_FAULTS = re.compile(r"#(NAME\?|VALUE!|REF!|DIV/0!|NUM!|N/A|NULL!|ERROR!|#+)|Err:5\d\d")
_SIGNS = re.compile(r"[\s$€£¥'’_]")
_NUMBER = re.compile(r"[+-]?(\d[\d.,]*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_DATE_LIKE = re.compile(
    r"[\d\s/.,:\-]*([A-Za-zä]{1,9}\.?)?[\d\s/.,:\-]*([AaPp]\.?[Mm]\.?|[TZ])?[\d:]*Z?"
)
Date = tuple[int | None, int, int] | None
Time = tuple[int, int, int]
_FIRST_DAY = datetime.datetime(1899, 12, 30)  # day 0 of spreadsheets


def may_have_become(text: str, cell: str) -> bool:
    """Could a spreadsheet have made this cell of this text?"""
    text, cell = canonical(text), canonical(cell)
    if text == cell or _lost_letters(text, cell):
        return True
    if len(text) > _LONGEST:
        return False
    if _FAULTS.fullmatch(cell):
        return text[:1] in tuple("=+-@#") or bool(_numbers(text))
    return _same_number(text, cell) or _same_truth(text, cell) or _same_moment(text, cell)


def _lost_letters(text: str, cell: str) -> bool:
    """Letters that a code page lacks become question marks."""
    if text.isascii():
        return False
    letters = [re.escape(c) if c.isascii() else f"(?:{re.escape(c)}|\\?{{1,2}})" for c in text]
    return re.fullmatch("".join(letters), cell) is not None


def _same_number(text: str, cell: str) -> bool:
    """Is there a number that both can be read as? Spreadsheets show about six digits of one."""
    for one in _numbers(text):
        for other in _numbers(cell):
            if math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-12):
                return True
    return False


def _numbers(text: str) -> list[float]:
    """What a text may be as a number: points and commas group digits in one place and end the
    whole number in another."""
    text = _SIGNS.sub("", text)
    negative = re.fullmatch(r"\((.*)\)", text)
    share = text.endswith("%")
    text = (f"-{negative[1]}" if negative else text).removesuffix("%")
    if not _NUMBER.fullmatch(text):
        return []
    found: set[float] = set()
    for group, point in ((",", "."), (".", ",")):
        plain = text.replace(group, "")
        if plain.count(point) < 2:
            found.add(float(plain.replace(point, ".")))
        elif group not in text:
            found.add(float(plain.replace(point, "")))
    return [number / 100 for number in found] if share else list(found)


def _same_truth(text: str, cell: str) -> bool:
    one, other = text.casefold(), cell.casefold()
    return any(one in words and other in words for words in (_TRUE, _FALSE))


def _same_moment(text: str, cell: str) -> bool:
    """Is there a date or a time of day that both can be read as?"""
    written, shown = _moments(text), _moments(cell) | _serial(cell)
    if not written:
        return False
    for date, time in written:
        for other_date, other_time in shown:
            if _same_date(date, other_date) and time == other_time:
                return True
    return False


def _same_date(one: Date, other: Date) -> bool:
    """Days are the same where one of them does not say its year."""
    if one is None or other is None:
        return one is other
    return one[1:] == other[1:] and (one[0] == other[0] or None in (one[0], other[0]))


def _moments(text: str) -> set[tuple[Date, Time]]:
    """The dates and times that a text may be; day and month in either order."""
    from dateutil import parser

    if not any(map(str.isdigit, text)) or not _DATE_LIKE.fullmatch(text):
        return set()
    if not re.search(r"[/.:\-]|[A-Za-z]", text):
        return set()
    found: set[tuple[Date, Time]] = set()
    for day_first in (False, True):
        moments = []
        # what the text does not say is what the two defaults differ in
        for default in (datetime.datetime(2004, 1, 1), datetime.datetime(2008, 2, 2)):
            try:
                moments.append(parser.parse(text, dayfirst=day_first, default=default))
            except (ValueError, OverflowError, TypeError):
                return found
        one, other = moments
        time = (one.hour, one.minute, one.second)
        if one.date() == other.date():
            found.add(((one.year, one.month, one.day), time))
        elif (one.month, one.day) == (other.month, other.day):
            found.add(((None, one.month, one.day), time))
        elif one.month == other.month and one.year == other.year:
            found.add(((one.year, one.month, 1), time))  # 3/2024 becomes its first day
        elif one.day != other.day and one.month != other.month:
            found.add((None, time))
    return found


def _serial(cell: str) -> set[tuple[Date, Time]]:
    """The moment that a number of days stands for, and the time of day that a part of one does."""
    if not re.fullmatch(r"\d{1,6}([.,]\d+)?", cell):
        return set()
    days = float(cell.replace(",", "."))
    moment = _FIRST_DAY + datetime.timedelta(seconds=round(days * 86400))
    time = (moment.hour, moment.minute, moment.second)
    return {(None, time)} if days < 1 else {((moment.year, moment.month, moment.day), time)}
