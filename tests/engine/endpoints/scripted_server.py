"""A real HTTP server on loopback with an OpenAI-compatible chat interface, whose answers a test scripts.

    with ScriptedServer(lambda request: Say("Paris.")) as server:
        ... server.url, server.requests

A script gets the JSON of a request and returns what the server does: a `Say`, or one of the failures below it.
"""

import collections
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Request = Mapping[str, Any]


@dataclass(frozen=True)
class Say:
    """A complete answer."""

    text: str | None
    finish: str = "stop"
    model: str | None = None  # None: that of the request
    fingerprint: str | None = None
    usage: tuple[int, int] | None = (10, 5)
    refusal: str | None = None
    after: float = 0.0  # seconds


@dataclass(frozen=True)
class Fail:
    """An HTTP status with a body."""

    status: int
    body: str = '{"error": {"message": "no luck"}}'
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CutOff:
    """Half of an answer, and then the connection is closed."""


@dataclass(frozen=True)
class Drip:
    """A byte of an answer at a time, for ever."""


@dataclass(frozen=True)
class Hang:
    """Nothing, until the server stops."""


Action = Say | Fail | CutOff | Drip | Hang


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no error of the server's."""


class ScriptedServer:
    def __init__(self, script: Callable[[Request], Action], *, port: int = 0) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []  # every request, in order
        self.headers: list[dict[str, str]] = []
        self.answered: collections.Counter[str] = collections.Counter()  # messages -> complete answers to them
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.num_open = self.most_open = 0
        self.server = _Server(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def endpoint(self, **keys: Any) -> dict[str, Any]:
        """The endpoint's keys; it retries at once."""
        return {"base_url": self.url, "model": "scripted-1", "first_wait_seconds": 0.0, **keys}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.num_open += 1
                    outer.most_open = max(outer.most_open, outer.num_open)
                try:
                    outer._act(self, body, outer.script(body) if self.path == "/v1/chat/completions" else Fail(404))
                except OSError:
                    pass  # the client has gone
                finally:
                    with outer.lock:
                        outer.num_open -= 1

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _act(self, handler: BaseHTTPRequestHandler, request: Request, action: Action) -> None:
        match action:
            case Say():
                self.stopped.wait(action.after)
                _send(handler, 200, json.dumps(completion(request, action)))
                with self.lock:
                    self.answered[json.dumps(request["messages"])] += 1
            case Fail(status, body, headers):
                _send(handler, status, body, headers)
            case CutOff():
                _head(handler, 200, 1000, {})
                handler.wfile.write(b'{"choices": [{"message": {"content": "half of')
                handler.wfile.flush()
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)
            case Drip():
                _head(handler, 200, 10**6, {})
                while not self.stopped.wait(0.05):
                    handler.wfile.write(b" ")
                    handler.wfile.flush()
            case Hang():
                self.stopped.wait()
                handler.close_connection = True


def completion(request: Request, said: Say) -> dict[str, Any]:
    """The JSON of an answer."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.refusal is not None:
        message["refusal"] = said.refusal
    content: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": said.model or request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": said.finish}],
    }
    if said.fingerprint is not None:
        content["system_fingerprint"] = said.fingerprint
    if said.usage is not None:
        content["usage"] = {"prompt_tokens": said.usage[0], "completion_tokens": said.usage[1]}
    return content


def _head(handler: BaseHTTPRequestHandler, status: int, length: int, headers: Mapping[str, str]) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(length))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def _send(handler: BaseHTTPRequestHandler, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
    content = body.encode()
    _head(handler, status, len(content), headers or {})
    handler.wfile.write(content)
    handler.wfile.flush()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
