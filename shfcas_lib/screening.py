"""Which prompts can the models of a run not read? Asked of their tokenizers alone, before anything is sampled.

    screen = Screen(params)
    prompts = data.check(params, screen)        # what cannot be read stops the run in one sentence, or is dropped and counted
    dropped = data.dropped(params, screen)

The backbone, a published gold and a published proxy each read every prompt, each through its own template.
"""

from __future__ import annotations

from collections.abc import Callable

from shfcas_lib import models, published
from shfcas_lib.params import Params
from shfcas_lib.templates import Refusal


class Screen:
    """Says of a prompt why the run cannot use it. Tokenizers are loaded at the first question; answers are kept."""

    def __init__(self, params: Params):
        self.params = params
        self._readers: list[Callable[[str, int], Refusal | None]] | None = None
        self._known: dict[tuple[str, int], Refusal | None] = {}

    def __call__(self, prompt: str, room: int) -> Refusal | None:
        """Why no answer of `room` tokens can be asked of this prompt, by the first model that cannot read it; None where all can."""
        if self._readers is None:
            self._readers = [models.load_reader(self.params.model).refusal, *published.readers(self.params)]
        if (prompt, room) not in self._known:
            refusals = (refusal(prompt, room) for refusal in self._readers)
            self._known[prompt, room] = next((found for found in refusals if found), None)
        return self._known[prompt, room]
