"""One OpenAI-compatible chat endpoint: messages go in, the reply as it came goes out.

    endpoint = Endpoint.from_environment(settings)
    reply = endpoint.ask(messages, stop)

Address, model and key come from the environment alone (SHFCAS_JUDGE_URL, SHFCAS_JUDGE_MODEL,
SHFCAS_JUDGE_KEY): parameters are written into run folders and executed notebooks, and a key does
not belong there. The usual proxy variables are honoured.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, SecretStr, ValidationError

from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Judge

# seconds; a server that asks for more (a spent quota) ends the run, which can be resumed
LONGEST_WAIT = 600.0
_PASSING = {408, 409, 425, 429}  # and every 5xx


@dataclass(frozen=True)
class Reply:
    """What came back from the server.

    body: as received; text: that of its first choice, '' where there is none; prompt_tokens,
    completion_tokens: what it says it took, None where it does not say; refused: the server
    refused this one request (HTTP 400) for what it holds.
    """

    body: str
    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refused: bool = False


def judge_environment() -> tuple[str, str, SecretStr]:
    """(base address, model, key) out of the environment.

    A server of one's own may do without a key. Raises InputError.
    """
    for name in ("SHFCAS_JUDGE_URL", "SHFCAS_JUDGE_MODEL"):
        if not os.environ.get(name, "").strip():
            raise InputError(
                f"feedback.kind judge needs the environment variable {name} (see"
                " docs/others_who_answer.md)"
            )
    url, model = os.environ["SHFCAS_JUDGE_URL"], os.environ["SHFCAS_JUDGE_MODEL"]
    key = SecretStr(os.environ.get("SHFCAS_JUDGE_KEY", "").strip())
    if not all("!" <= character <= "~" for character in key.get_secret_value()):
        raise InputError(
            "SHFCAS_JUDGE_KEY holds a space, a line break or a character beyond ASCII, which no key"
            " does"
        )
    return _checked(url.strip()), model.strip(), key


class Endpoint:
    """A chat endpoint with its key, safe to use from several threads.

    Its repr and its errors never show the key.
    """

    def __init__(self, url: str, model: str, key: SecretStr, settings: Judge, schema: dict):
        self.model, self.settings, self._key = model, settings, key
        self._url = url + "/chat/completions"
        # from what holds the model tightest to what every server takes
        strict = {"name": "verdict", "strict": True, "schema": schema}
        self._formats: list[dict | None] = [
            {"type": "json_schema", "json_schema": strict},
            {"type": "json_object"},
            None,
        ]
        self._shape, self._accepted = _Shape(), False
        patience = httpx.Timeout(settings.timeout, connect=min(10.0, settings.timeout), pool=None)
        limits = httpx.Limits(max_connections=settings.concurrency)
        try:
            self._client = httpx.Client(timeout=patience, limits=limits)
        except (ValueError, ImportError, httpx.InvalidURL):
            # their messages would show the proxy's password
            raise InputError(
                "the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot"
                " be used"
            ) from None
        if key.get_secret_value():
            self._client.headers["Authorization"] = f"Bearer {key.get_secret_value()}"

    @classmethod
    def from_environment(cls, settings: Judge, schema: dict) -> Endpoint:
        """The endpoint that the SHFCAS_JUDGE_* variables name. Raises InputError."""
        url, model, key = judge_environment()
        return cls(url, model, key, settings, schema)

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, messages: list[dict], stop: threading.Event) -> Reply:
        """One reply at temperature 0, after as many attempts as the settings allow.

        An attempt waits longer than the one before, and as long as the server's Retry-After says;
        `stop` ends the waiting early. Raises InputError, in one sentence.
        """
        attempt = 0
        while True:
            shape = self._shape
            response, trouble = self._post(messages, shape)
            if response is not None and not _passing(response.status_code):
                if response.status_code in (400, 422) and self._relax(shape, response):
                    continue
                return self._last_word(response)

            # no answer, or one that says: later
            backoff = self.settings.backoff * 2**attempt * random.uniform(0.5, 1.0)
            wait = max(backoff, _retry_after(response))
            if wait > LONGEST_WAIT:
                trouble += f", which asks to wait {wait:.0f} seconds"
            attempt += 1
            if attempt > self.settings.retries or wait > LONGEST_WAIT:
                raise InputError(
                    f"the judge gave no answer in {attempt} attempts (the last one: {trouble})"
                )
            if stop.wait(wait):
                raise InputError(f"the judge was stopped while it waited ({trouble})")

    def _last_word(self, response: httpx.Response) -> Reply:
        """The reply in a response that no further attempt would change. Raises InputError."""
        if response.status_code == 200:
            self._accepted = True
            return self._reply(response)
        if response.status_code in (400, 422):
            return Reply(self._shown(response.text), refused=True)
        raise InputError(self._refusal(response))

    def _post(self, messages: list[dict], shape: _Shape) -> tuple[httpx.Response | None, str]:
        """The response, or None, and what went wrong in a few words."""
        values = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            shape.limit: self.settings.answer_tokens,
        }
        answer_format = self._formats[shape.format]
        if answer_format is not None:
            values["response_format"] = answer_format
        try:  # ASCII JSON, so that half a character in a completion cannot break the encoding
            response = self._client.post(
                self._url, content=json.dumps(values), headers={"Content-Type": "application/json"}
            )
        except httpx.TimeoutException:
            return None, f"no reply within {self.settings.timeout:g} seconds"
        except (httpx.TransportError, httpx.DecodingError) as error:
            return None, self._shown(f"{type(error).__name__}: {error}")
        return response, f"HTTP {response.status_code}"

    def _relax(self, shape: _Shape, response: httpx.Response) -> bool:
        """After a 400: ask for less from now on.

        False where nothing is left to ask less of, or where the server took this shape before, so
        that it is the request itself that it refuses (too long, or filtered).
        """
        if self._shape != shape:
            return True  # another thread did
        if self._accepted:
            return False
        if shape.limit == "max_tokens" and "max_completion_tokens" in response.text:
            self._shape = _Shape(shape.format, "max_completion_tokens")
        elif shape.format + 1 < len(self._formats):
            self._shape = _Shape(shape.format + 1, shape.limit)
        else:
            return False
        return True

    def _reply(self, response: httpx.Response) -> Reply:
        try:
            values = _ChatCompletion.model_validate_json(response.content)
        except ValidationError:
            return Reply(self._redacted(response.text))
        usage = values.usage or _Usage()
        text = ""
        if values.choices:
            text = values.choices[0].message.content or ""
        return Reply(
            self._redacted(response.text),
            self._redacted(text),
            usage.prompt_tokens,
            usage.completion_tokens,
        )

    def _refusal(self, response: httpx.Response) -> str:
        words = self._shown(response.text)
        if response.status_code in (401, 403):
            return (
                f"the judge refused the key in SHFCAS_JUDGE_KEY (HTTP {response.status_code}:"
                f" {words})"
            )
        if response.status_code == 404:
            return (
                f"the judge found no chat endpoint at SHFCAS_JUDGE_URL, or no model {self.model!r}"
                f" (HTTP 404: {words})"
            )
        return f"the judge refused the request (HTTP {response.status_code}: {words})"

    def _redacted(self, text: str) -> str:
        """Some servers quote the key that they refuse."""
        key = self._key.get_secret_value()
        return text.replace(key, "[key]") if key else text

    def _shown(self, text: str) -> str:
        """A server's words in an error of ours: one line, not long, without the key, and
        printable.
        """
        line = "".join(c if c.isprintable() else " " for c in self._redacted(text))
        line = " ".join(line.split())
        return line if len(line) <= 200 else line[:197] + "..."


@dataclass(frozen=True)
class _Shape:
    """What a request asks of the server beside the messages: which of the formats, and the name
    of the limit.
    """

    format: int = 0
    limit: str = "max_tokens"


class _Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)] | None = None
    completion_tokens: Annotated[int, Field(ge=0)] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _ChatCompletion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


def _passing(status: int) -> bool:
    """Is another attempt worth it?"""
    return status >= 500 or status in _PASSING


def _checked(url: str) -> str:
    """The base address without a last slash.

    Raises InputError, which does not repeat it: it may hold what is not for the eye.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        fine = False
    if not fine or not url.isprintable() or " " in url:
        raise InputError(
            "SHFCAS_JUDGE_URL is no address: expected one like http://localhost:8080/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "SHFCAS_JUDGE_URL holds a user, a query or a fragment: expected a plain address, with"
            " the key in SHFCAS_JUDGE_KEY"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _retry_after(response: httpx.Response | None) -> float:
    """Seconds that the server asks to wait: a number or a date; 0 where it does not say."""
    value = ""
    if response is not None:
        value = (response.headers.get("retry-after") or "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
