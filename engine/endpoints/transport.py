"""One attempt at one request of an OpenAI-compatible chat endpoint, and what its result means.

The key is read from the environment by name. It is written nowhere: a server that repeats it in an error is not quoted.
"""

import contextlib
import email.utils
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from data_schemas.endpoints import Endpoint
from data_schemas.errors import ConfigError, StageError
from data_schemas.text import printable

LONGEST_BODY = 2**25  # bytes of an answer
LONGEST_QUOTE = 200  # characters of a server's own message
SECONDS_TO_CONNECT = 20.0
HIDDEN = "***"  # in place of the key
RETRIED = (408, 409, 425, 429)  # and 500 and above
ROW_REFUSED = (400, 413, 422)  # this request, as for its length: another one may be accepted


@dataclass(frozen=True)
class Reply:
    """An answer, as the server gave it."""

    text: str  # of a refusal, its reason
    finish: str  # stop, length, content_filter, …; "rejected": the server did not accept the request
    model: str = ""  # the server's own name of the model that answered
    fingerprint: str = ""  # of its configuration, where the server gives one
    input_tokens: int = 0
    output_tokens: int = 0
    is_refusal: bool = False
    is_estimated: bool = False  # the server counted no tokens: these are an upper bound


class TryAgain(Exception):
    """The attempt failed in a way that may pass."""

    def __init__(self, cause: str, *, wait: float | None = None, may_be_billed: bool = False) -> None:
        super().__init__(cause)
        self.wait = wait  # seconds that the server asks for
        self.may_be_billed = may_be_billed  # the server may have computed the answer that was lost


class MalformedReply(TryAgain):
    """The server answered, but not in the chat interface's form: it may be another server altogether."""


class Transport:
    """Sends requests to an endpoint. Threads may share it."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        """Raises ConfigError where the environment lacks the key."""
        self.endpoint = endpoint
        self.title = f"endpoint {name} ({endpoint.model})"
        self.key = os.environ.get(endpoint.api_key_env, "").strip() if endpoint.api_key_env else ""
        if endpoint.api_key_env and not self.key:
            raise ConfigError(
                f"{self.title}: the environment variable {endpoint.api_key_env} is not set; export the key"
            )
        if not self.key.isascii() or not self.key.isprintable():
            raise ConfigError(f"{self.title}: {endpoint.api_key_env} holds characters that no key has; export the key")
        self.client = httpx2.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx2.Timeout(endpoint.timeout_seconds, connect=min(SECONDS_TO_CONNECT, endpoint.timeout_seconds)),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
        )

    def close(self) -> None:
        self.client.close()

    def post(self, payload: Mapping[str, Any]) -> Reply:
        """One attempt. Raises TryAgain; ConfigError where key, address or model are wrong; StageError for the rest."""
        url = self.endpoint.base_url.rstrip("/") + "/chat/completions"
        deadline = time.monotonic() + self.endpoint.timeout_seconds
        has_answered, body = False, bytearray()
        try:
            with self.client.stream("POST", url, json=payload) as response:
                has_answered = True
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout("")
                    if len(body) > LONGEST_BODY:
                        raise StageError(f"{self.title} answered more than {LONGEST_BODY >> 20} MiB to one request")
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise TryAgain(f"no connection to {self.endpoint.base_url} ({self._quote(str(error))})") from None
        except httpx2.TimeoutException:
            cause = f"no complete answer in timeout_seconds={self.endpoint.timeout_seconds:g}"
            raise TryAgain(cause, may_be_billed=True) from None
        except httpx2.TransportError as error:
            cut = "the answer was cut off" if has_answered else "the connection was closed before an answer"
            raise TryAgain(f"{cut} ({self._quote(str(error))})", may_be_billed=True) from None
        except httpx2.DecodingError:
            raise MalformedReply("its compressed answer is damaged") from None
        return self._read(response, bytes(body))

    def _read(self, response: httpx2.Response, body: bytes) -> Reply:
        status, text, content = response.status_code, body.decode(errors="replace"), None
        if self.key:
            text = text.replace(self.key, HIDDEN)
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(text)
        said = self._message(content, text)
        if status == 200:
            return self._reply(content, text)
        if status in (401, 403):
            name = self.endpoint.api_key_env
            remedy = f"check the key in {name}" if name else "it needs a key: set api_key_env"
            raise ConfigError(f"{self.title} does not accept the request's key (HTTP {status}); {remedy}")
        if status == 429 and _code(content) == "insufficient_quota":
            raise StageError(f"{self.title}: the account has no quota left: {said}; what was paid for is kept")
        if status in RETRIED or status >= 500:
            raise TryAgain(f"HTTP {status}: {said}", wait=retry_after(response.headers))
        if status in ROW_REFUSED:
            return Reply(said, "rejected")
        where = f"; it points to {_address(response.headers.get('location', ''))}" if status < 400 else f": {said}"
        raise ConfigError(
            f"{self.title}: HTTP {status} from {self.endpoint.base_url}{where}; check base_url, as in "
            "https://api.example.com/v1, and model"
        )

    def _reply(self, content: Any, text: str) -> Reply:
        try:
            choice = content["choices"][0]
            message, usage = choice["message"], content.get("usage") or {}
            refusal, answer = message.get("refusal"), message.get("content")
            finish, model = choice.get("finish_reason") or "", content.get("model") or ""
            fingerprint = content.get("system_fingerprint") or ""
            inputs, outputs = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
            if isinstance(answer, list):  # parts of text
                answer = "".join(part.get("text") or "" for part in answer)
        except (TypeError, KeyError, IndexError, AttributeError):
            raise MalformedReply(self._unexpected(content, text)) from None
        if not isinstance(answer, str | None) or not isinstance(refusal, str | None):
            raise MalformedReply(self._unexpected(content, text))
        return Reply(
            text=refusal or answer or "",
            finish=str(finish),
            model=str(model),
            fingerprint=str(fingerprint),
            input_tokens=inputs or 0,
            output_tokens=outputs or 0,
            is_refusal=bool(refusal) or finish == "content_filter",
            is_estimated=inputs is None or outputs is None,
        )

    def _unexpected(self, content: Any, text: str) -> str:
        if content is not None:
            return f"its JSON is no chat completion: {self._message(content, text)}"
        kind = "HTML" if re.match(r"\s*<(!doctype|html|\?xml|head|body)", text, re.IGNORECASE) else "text"
        return f"it answered {kind} in place of JSON: {self._quote(text)}" if text.strip() else "its answer is empty"

    def _message(self, content: Any, text: str) -> str:
        """What a server says of an error: the message of its JSON, else the first words."""
        if isinstance(content, dict):
            error = content.get("error") or content.get("detail") or content.get("message") or content
            error = error.get("message") or error if isinstance(error, dict) else error
            return self._quote(error if isinstance(error, str) else json.dumps(error))
        return self._quote(re.sub("<[^>]*>", " ", text) if text.lstrip().startswith("<") else text)

    def _quote(self, text: str) -> str:
        """A server's words in one line, shortened, without the key."""
        line = printable(" ".join((text.replace(self.key, HIDDEN) if self.key else text).split()))
        return (line if len(line) <= LONGEST_QUOTE else f"{line[:LONGEST_QUOTE]}…") or "without a message"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); None if none.

    OpenAI's servers also send `retry-after-ms`.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
            return float(value) / unit
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _code(content: Any) -> object:
    error = content.get("error") if isinstance(content, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _address(location: str) -> str:
    """An address without its query, which may hold a secret."""
    return printable(location.partition("?")[0])[:LONGEST_QUOTE] or "no other address"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
