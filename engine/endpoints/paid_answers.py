"""The answers that a run has paid for, and the budget that they are paid from.

Each answer is a line of `paid_answers.jsonl` in its step's folder, written before anything is done with it, under a key
of everything that determines it: the model, the messages (a judge's rubric is in them), and the sampling settings. A
step that was killed, and any other step of the run, takes it from there. The address and the price are no part of the
key. An attempt whose answer was lost counts with the most that it can have cost.
"""

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from data_schemas.endpoints import PAID_ANSWERS, Endpoint, parse_endpoints
from data_schemas.files import verified_text, with_digest
from data_schemas.stage_keys import Values
from engine.endpoints.transport import Reply


@dataclass
class Spending:
    """Tokens that were paid for, or are reserved for requests that are under way."""

    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, input_tokens: int, output_tokens: int, *, sign: int = 1) -> None:
        self.input_tokens += sign * input_tokens
        self.output_tokens += sign * output_tokens

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def money(self, endpoint: Endpoint) -> float:
        """At the present price, in its currency; 0 without a price."""
        if endpoint.price is None:
            return 0.0
        return (self.input_tokens * endpoint.price.input + self.output_tokens * endpoint.price.output) / 1e6


class PaidAnswers:
    """The answers of one model that the steps of a run have paid for. Threads may share it."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        """`folder` is the step's; the other steps' folders are beside it."""
        self.file, self.endpoint = folder / PAID_ANSWERS, endpoint
        self.replies: dict[str, Reply] = {}
        self.spent = Spending()
        self.models: dict[tuple[str, str], int] = {}  # (the server's name of the model, fingerprint) -> answers
        self._lock = threading.Lock()
        for path in sorted({*folder.parent.glob(f"*/{PAID_ANSWERS}"), self.file}):
            self._read(path)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            text = verified_text(line)  # the last line is cut off where the process was killed
            content = json.loads(text) if text is not None else {}
            if content.get("model") == self.endpoint.model:
                self._count(content["key"], Reply(**content["reply"]))

    def _count(self, key: str, reply: Reply) -> None:
        self.spent.add(reply.input_tokens, reply.output_tokens)
        if key:
            self.replies[key] = reply
            served = reply.model, reply.fingerprint
            self.models[served] = self.models.get(served, 0) + 1

    def add(self, key: str, reply: Reply) -> None:
        """Keeps an answer on the disk. A lost one has no key: only its tokens count."""
        content = {"model": self.endpoint.model, "key": key, "reply": asdict(reply)}
        line = with_digest(json.dumps(content)).encode() + b"\n"
        with self._lock:
            self._append(line)
            self._count(key, reply)

    def metrics(self, prefix: str) -> dict[str, float | int | str | None]:
        """What a step's record says of the model, and of what the run has spent on it so far."""
        served = ", ".join(sorted({model for model, _ in self.models if model}))
        fingerprints = ", ".join(sorted({mark for _, mark in self.models if mark}))
        return {
            f"{prefix}_model": self.endpoint.model,
            **({f"{prefix}_served_as": served} if served else {}),
            **({f"{prefix}_fingerprints": fingerprints} if fingerprints else {}),
            f"{prefix}_input_tokens": self.spent.input_tokens,
            f"{prefix}_output_tokens": self.spent.output_tokens,
            **({f"{prefix}_money": self.spent.money(self.endpoint)} if self.endpoint.price else {}),
        }

    def _append(self, line: bytes) -> None:
        with self.file.open("ab") as file:
            if file.tell() and not self._ends_in_newline():  # cut off by a kill
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _ends_in_newline(self) -> bool:
        with self.file.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


class Purse:
    """Lets a request be sent only where the budget covers the most that it can cost."""

    def __init__(self, paid: PaidAnswers) -> None:
        self.paid, self.endpoint = paid, paid.endpoint
        self.reserved = Spending()
        self.num_open = 0
        self.changed = threading.Condition()

    def reserve(self, input_tokens: int, output_tokens: int, is_stopped: threading.Event) -> bool:
        """Reserves the most that a request can cost. Waits for open requests where they hold what is left of the
        budget; False where it does not suffice, or the client stops."""
        with self.changed:
            while not is_stopped.is_set():
                if self._covers(input_tokens, output_tokens):
                    self.reserved.add(input_tokens, output_tokens)
                    self.num_open += 1
                    return True
                if not self.num_open:
                    return False
                self.changed.wait(0.2)
        return False

    def release(self, input_tokens: int, output_tokens: int) -> None:
        """Ends a reservation, after what was spent of it is among the paid answers."""
        with self.changed:
            self.reserved.add(input_tokens, output_tokens, sign=-1)
            self.num_open -= 1
            self.changed.notify_all()

    def _covers(self, input_tokens: int, output_tokens: int) -> bool:
        budget = self.endpoint.budget
        total = Spending(
            self.paid.spent.input_tokens + self.reserved.input_tokens + input_tokens,
            self.paid.spent.output_tokens + self.reserved.output_tokens + output_tokens,
        )
        if budget.tokens is not None and total.tokens > budget.tokens:
            return False
        return budget.money is None or total.money(self.endpoint) <= budget.money


def endpoint_metrics(folder: Path, endpoints: Values | None) -> dict[str, float | int | str | None]:
    """The metrics of all endpoints of a step, as in `endpoint_judge_model`. `folder` is the step's."""
    metrics: dict[str, float | int | str | None] = {}
    for name, endpoint in parse_endpoints(endpoints or {}, where="endpoints").items():
        metrics |= PaidAnswers(folder, endpoint).metrics(f"endpoint_{name}")
    return metrics
