"""Progress of a long step: a bar in a terminal, and one in a notebook's cell.

    for batch in progress.over(batches, "scoring", "batch"):
    with progress.bar(1000, "sampling", "completion") as bar:
        bar.update(8)

It appears once a step has taken seconds. Off a terminal (a kernel, a log) it is drawn anew every
few seconds only, so that an executed notebook holds no pages of bars.
`TQDM_DISABLE=1` keeps all of them quiet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from shfcas_lib.base import processes

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
_SHORT, _PAUSE = 3.0, 5.0  # seconds without a bar, and between two looks off a terminal


def bar(total: int | None, title: str, unit: str, quiet: bool = False) -> tqdm:
    """A progress bar, shown by the main process alone; `update(n)` moves it.

    total: what there is to do, None where that is not known. quiet: show nothing.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    # tqdm reads these variables itself only where nothing else is given
    pause = float(os.environ.get("TQDM_MININTERVAL", 1.0 if terminal else _PAUSE))
    delay = float(os.environ.get("TQDM_DELAY", _SHORT))
    silent = quiet or not processes.is_main() or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, desc=title, unit=unit, mininterval=pause, delay=delay, disable=silent)


def over(
    items: Iterable[Item], title: str, unit: str, total: int | None = None, quiet: bool = False
) -> Iterator[Item]:
    """The items, with a bar. total: how many, where they do not say so themselves."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(total, title, unit, quiet) as shown:
        for item in items:
            yield item
            shown.update()
