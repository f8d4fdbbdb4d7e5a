"""Files of completions as other programs write them, row by row in this library's own columns.

    layout = recognised(block, first_row)
    adapt = adapter(layout, block)
    adapt(row, where)["completion"]

trl          TRL's completion logs (GRPO, RLOO): step, prompt, completion, one column for each
             reward function, advantage
openai       chat or text completions with `choices`, alone, beside their request, or as a batch
             wrote them
lm_eval      samples of lm-evaluation-harness: doc, arguments, resps
alpaca_eval  instruction, output, generator

A row of several completions has lists in its columns, as a row per prompt has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shfcas_lib.base.alignment import columns_found
from shfcas_lib.base.errors import InputError
from shfcas_lib.data import formats
from shfcas_lib.params.schema import Completions, Place

Cells = dict[str, Any]
Adapter = Callable[[Cells, str], Cells | None]  # None: the row says nothing new

_TRL = {"step", "prompt", "completion", "advantage"}
_OWN = ("completion", "logp", "token_logps", "reward", "index")


def recognised(block: Completions, row: Cells) -> str:
    """The layout of a file by its first row, where the parameters do not say it."""
    if block.layout != "auto":
        return block.layout
    if _TRL <= set(row):
        return "trl"
    if "choices" in row or _reply(row):
        return "openai"
    if {"arguments", "resps"} <= set(row):
        return "lm_eval"
    named = {block.columns.prompt, block.columns.completion} & set(row)
    return "alpaca_eval" if {"instruction", "output"} <= set(row) and not named else "table"


def adapter(layout: str, block: Completions) -> Adapter:
    """What turns a row of that layout into one with the columns that `block.columns` names."""
    if layout == "openai":
        return _OpenAI(block).adapt
    if layout == "lm_eval":
        return _LmEval().adapt
    return {"trl": _trl, "alpaca_eval": _alpaca_eval}.get(layout, _as_it_is)


def reward_columns(names: list[str], block: Completions, where: str) -> list[str]:
    """The columns of TRL's log that hold rewards: those that the parameters name, or the one
    between completion and advantage. Raises InputError where several are there."""
    named = block.columns.reward
    if isinstance(named, list) or (named is not None and named in names):
        return [named] if isinstance(named, str) else named
    between = names[names.index("completion") + 1 : names.index("advantage")]
    if len(between) > 1:
        raise InputError(
            f"{where}: rewards {', '.join(between)} stand side by side: say which columns.reward"
            " is, or name several, which are added up"
        )
    return between


def _as_it_is(row: Cells, where: str) -> Cells:
    return row


def _trl(row: Cells, where: str) -> Cells:
    """The policy changes from step to step: each step is a model of its own."""
    return row | {"model": f"step {row.get('step')}"}


def _alpaca_eval(row: Cells, where: str) -> Cells:
    """An `input`, where there is one, stands after the instruction."""
    prompt = row.get("instruction")
    if isinstance(prompt, str) and isinstance(row.get("input"), str) and row["input"].strip():
        prompt = f"{prompt}\n\n{row['input']}"
    return row | {
        "prompt": prompt,
        "completion": row.get("output"),
        "model": row.get("generator"),
        # what an older tool calls so is the prompt's place in the file
        "index": None,
    }


class _LmEval:
    """Samples of the harness. A file has each document once for every filter of its task: the
    first filter counts."""

    def __init__(self) -> None:
        self._filters: dict[str, Any] = {}

    def adapt(self, row: Cells, where: str) -> Cells | None:
        """What the model generated for one document; or, of a multiple-choice task, the choices
        with the model's log-likelihoods."""
        file = where.rpartition(", ")[0]
        if row.get("filter") != self._filters.setdefault(file, row.get("filter")):
            return None
        arguments, responses = _arguments(row.get("arguments")), row.get("resps")
        if not arguments or not isinstance(responses, list):
            raise InputError(
                f"{where}: 'arguments' or 'resps' are not as lm-evaluation-harness logs them"
            )
        prompts = [argument[0] for argument in arguments]
        if any(prompt != prompts[0] for prompt in prompts):
            raise InputError(
                f"{where}: its requests have {len(prompts)} contexts, expected one prompt and its"
                " completions"
            )
        # one request that was answered several times, or several requests answered once
        given = [reply for replies in responses for reply in _listed(replies)]
        cells = {name: value for name, value in row.items() if name not in _OWN}
        cells["prompt"] = _turns(prompts[0])
        if all(map(_is_likelihood, given)) and len(given) == len(arguments):
            texts = [argument[1] for argument in arguments]
            return cells | {"completion": texts, "logp": [float(reply[0]) for reply in given]}
        return cells | {"completion": given}


def _arguments(value: Any) -> list[list]:
    """The arguments of each request: {"gen_args_0": {"arg_0": ...}}, or lists in older files."""
    if isinstance(value, dict):
        requests = [request for request in value.values() if isinstance(request, dict)]
        return [list(request.values()) for request in requests if request]
    if isinstance(value, list):
        return [request for request in value if isinstance(request, list) and request]
    return []


def _is_likelihood(reply: Any) -> bool:
    """Is it (log-likelihood, is it the likeliest?), which the log writes as texts?"""
    if not isinstance(reply, list) or len(reply) != 2 or str(reply[1]) not in ("True", "False"):
        return False
    try:
        float(reply[0])
    except (TypeError, ValueError):
        return False
    return True


def _listed(value: Any) -> list:
    """The replies to one request. A likelihood is one reply, though it is a list."""
    return value if isinstance(value, list) and not _is_likelihood(value) else [value]


def _turns(prompt: Any) -> Any:
    """A prompt that is JSON of messages, as the harness logs those of a chat model."""
    if not isinstance(prompt, str) or not prompt.startswith('[{"role"'):
        return prompt
    try:
        return json.loads(prompt)
    except (ValueError, RecursionError):
        return prompt


class _OpenAI:
    """Responses of the chat or the text completions API, and of whatever imitates it."""

    def __init__(self, block: Completions):
        self._asked = _requests(block)

    def adapt(self, row: Cells, where: str) -> Cells:
        """A response with its request, as a row of one prompt."""
        reply = _reply(row) or row
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{where}: holds no 'choices'{columns_found('choices', row)}")
        prompt = _prompt(row) or self._asked.get(str(row.get("custom_id")))
        if prompt is None:
            raise InputError(
                f"{where}: does not say what was asked: expected 'messages', 'prompt' or 'request'"
                " beside the response, or the requests of a batch (completions.requests)"
            )
        found = [_choice(choice, where) for choice in choices]
        cells = {name: value for name, value in row.items() if name not in ("choices", *_OWN)}
        return cells | {
            "prompt": prompt,
            "completion": [text for text, _ in found],
            "token_logps": [logps for _, logps in found],
            "model": row.get("model") or reply.get("model"),
        }


def _reply(row: Cells) -> Cells | None:
    """The body of the response in a row that holds a request too, or in a batch's."""
    for name in ("response", "body", "completion"):
        inner = row.get(name)
        if isinstance(inner, dict) and isinstance(inner.get("body"), dict):
            inner = inner["body"]
        if isinstance(inner, dict) and "choices" in inner:
            return inner
    return None


def _prompt(row: Cells) -> Any:
    """What was asked: messages or text, in the row or in the request beside it."""
    for place in (row, row.get("request"), row.get("body")):
        if isinstance(place, dict) and isinstance(place.get("body"), dict):
            place = place["body"]
        found = isinstance(place, dict) and (place.get("messages") or place.get("prompt"))
        if found:
            return found
    return None


def _requests(block: Completions) -> dict[str, Any]:
    """custom_id to prompt, of the file of requests that a batch answered."""
    if block.requests is None:
        return {}
    asked = {}
    for where, row in formats.read_rows(Place(file=block.requests)):
        prompt = _prompt(row)
        if row.get("custom_id") is None or prompt is None:
            raise InputError(
                f"{where}: expected a request of a batch, with custom_id and body"
                f"{columns_found('custom_id', row)}"
            )
        asked[str(row["custom_id"])] = prompt
    return asked


def _choice(choice: Any, where: str) -> tuple[Any, list[float] | None]:
    """The text of one choice, and its tokens' log-probabilities, where they are logged."""
    if not isinstance(choice, dict):
        raise InputError(f"{where}: a choice is {type(choice).__name__}, expected an object")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    logged = choice.get("logprobs")
    if not isinstance(logged, dict):
        return text, None
    if isinstance(logged.get("content"), list):
        return text, [token.get("logprob") for token in logged["content"]]
    return text, logged.get("token_logprobs")
