"""Is a model hub within reach? Asked once and briefly, before a library tries five times.

if not within_reach(): ...      # the cache, or nothing
"""

from __future__ import annotations

import functools
import threading
import time

PATIENCE = 2.5  # seconds for one answer, whatever it is
_REMEMBERED = 60.0  # seconds that an answer holds


def within_reach() -> bool:
    """Does the hub answer? False where the environment says to stay offline (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    return _answers(constants.ENDPOINT, int(time.monotonic() // _REMEMBERED))


@functools.lru_cache(maxsize=4)
def _answers(address: str, minute: int) -> bool:
    """Does an address answer a request? minute: a later one asks again."""
    answered = threading.Event()
    # looking up a name knows no time limit of its own
    asking = threading.Thread(target=_ask, args=(address, answered), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()


def _ask(address: str, answered: threading.Event) -> None:
    import httpx

    try:
        httpx.head(address, timeout=PATIENCE)
    except httpx.HTTPError:
        return
    answered.set()
