"""Asks an endpoint for many answers: at the same time, with retries, within a budget, and never twice for one.

Waits between attempts double, with full jitter (Brooker, "Exponential backoff and jitter", 2015), or are as long as the
server asks for by Retry-After. A request that the server does not accept, as for its length, is one row's matter; what
would be the same for every request stops the step with one line. What was paid for is kept in either case.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_schemas.endpoints import Endpoint
from data_schemas.errors import AlignloopError, StageError
from data_schemas.files import digest
from engine.endpoints.paid_answers import PaidAnswers, Purse
from engine.endpoints.transport import MalformedReply, Reply, Transport, TryAgain
from engine.runtime import notices, preemption, progress

LONGEST_WAIT = 60.0  # seconds between attempts, where the server asks for no other time
LONGEST_ASKED = 900.0  # seconds that a server may ask to wait; beyond it the step stops
NUM_REJECTED = 5  # requests that may be rejected before the first is accepted
SECONDS_TO_FINISH = 20.0  # for open requests, when the step stops
TOKENS_OF_FORMAT = 16  # of a message, at most: its role and separators
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatRequest:
    """A request for one answer."""

    messages: Sequence[Mapping[str, Any]]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int  # which of the possible answers; without effect at temperature 0
    tools: Sequence[Mapping[str, Any]] | None = None

    def payload(self, endpoint: Endpoint) -> dict[str, Any]:
        """The body of the request. A field that the endpoint's `request` sets to null is left out."""
        fields: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [dict(message) for message in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.top_p < 1:
            fields["top_p"] = self.top_p
        if self.temperature > 0:
            fields["seed"] = self.seed
        if self.tools:
            fields["tools"] = [dict(tool) for tool in self.tools]
        return {name: value for name, value in (fields | endpoint.request).items() if value is not None}

    def key(self, endpoint: Endpoint) -> str:
        """The name of the answer among the paid ones."""
        return digest({"payload": self.payload(endpoint), "seed": self.seed if self.temperature > 0 else None})

    @property
    def most_input_tokens(self) -> int:
        """An upper bound: a token of the common tokenizers has one byte of UTF-8 at least."""
        texts = [str(message) for message in self.messages] + [str(tool) for tool in self.tools or ()]
        return sum(len(text.encode(errors="replace")) + TOKENS_OF_FORMAT for text in texts)


class EndpointClient:
    """Asks one endpoint, for one step."""

    def __init__(self, name: str, endpoint: Endpoint, folder: Path) -> None:
        """`folder` is the step's. Raises ConfigError where the environment lacks the key."""
        self.name, self.endpoint = name, endpoint
        self.transport = Transport(name, endpoint)
        self.paid = PaidAnswers(folder, endpoint)
        self.purse = Purse(self.paid)

    def ask(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """The answers in order; one that the server rejected has `finish` "rejected" and its message as the text.

        Raises ConfigError for a wrong key, address or model, StageError where the endpoint fails for good or the budget
        is reached, Preempted at SIGTERM. All answers up to then are kept.
        """
        keys = [request.key(self.endpoint) for request in requests]
        before = dict(self.paid.models)
        replies = {key: self.paid.replies[key] for key in keys if key in self.paid.replies}
        waiting = {key: one for key, one in zip(keys, requests, strict=True) if key not in replies}
        progress.advance(sum(key in replies for key in keys))
        if replies:
            log.info("%s: %d of %d answers were paid for before", self.transport.title, len(replies), len(set(keys)))
        if waiting:
            replies |= _Exchange(self, waiting, {key: keys.count(key) for key in waiting}).run()
        self._report(before)
        return [replies[key] for key in keys]

    def _report(self, before: Mapping[tuple[str, str], int]) -> None:
        """Logs what was spent, and warns where another model than before answers behind the name."""
        spent, title = self.paid.spent, self.transport.title
        price = f", {spent.money(self.endpoint):.4g} in money" if self.endpoint.price else ""
        log.info("%s: %d input and %d output tokens%s so far", title, spent.input_tokens, spent.output_tokens, price)
        served = sorted({model for model, _ in self.paid.models})
        if len(served) > 1:
            names = ", ".join(served)
            notices.warn(log, "%s: different models have answered behind its name: %s", title, names)
        elif before and self.paid.models.keys() - before.keys():
            notices.warn(log, "%s: the server's configuration has changed (system_fingerprint) during the run", title)


class _Exchange:
    """The requests of one call, which threads take in order."""

    def __init__(self, client: EndpointClient, waiting: Mapping[str, ChatRequest], rows: Mapping[str, int]) -> None:
        self.client, self.rows = client, rows
        self.waiting = list(reversed(list(waiting.items())))
        self.results: queue.Queue[tuple[str, Reply] | BaseException] = queue.Queue()
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.has_answered = bool(client.paid.replies)
        self.num_rejected = 0
        self.not_before = 0.0  # on the monotonic clock: the server asked all to wait until then

    def run(self) -> dict[str, Reply]:
        """All replies by key."""
        replies: dict[str, Reply] = {}
        total = len(self.waiting)
        # Daemons: a process that ends does not wait for a server that does not answer.
        threads = [
            threading.Thread(target=self._work, name=f"endpoint-{number}", daemon=True)
            for number in range(min(self.client.endpoint.concurrency, total))
        ]
        for thread in threads:
            thread.start()
        try:
            while len(replies) < total:
                if preemption.is_requested():
                    raise preemption.Preempted("the answers that were paid for are kept")
                try:
                    result = self.results.get(timeout=0.2)
                except queue.Empty:
                    continue
                if isinstance(result, BaseException):
                    raise result
                key, replies[key] = result[0], result[1]
                progress.advance(self.rows[key])
        finally:
            self.stopped.set()
            deadline = time.monotonic() + SECONDS_TO_FINISH
            for thread in threads:  # what they wait for is paid already
                thread.join(max(0.0, deadline - time.monotonic()))
        return replies

    def _work(self) -> None:
        try:
            while not self.stopped.is_set():
                with self.lock:
                    if not self.waiting:
                        return
                    key, request = self.waiting.pop()
                reply = self._answer(key, request)
                if reply is not None:
                    self.results.put((key, reply))
        except BaseException as error:  # raised again in the main thread
            self.stopped.set()
            self.results.put(error)

    def _answer(self, key: str, request: ChatRequest) -> Reply | None:
        """The reply, kept on the disk; None where the client stops before."""
        payload = request.payload(self.client.endpoint)
        most = request.most_input_tokens, request.max_tokens
        endpoint, cause = self.client.endpoint, ""
        for attempt in range(endpoint.num_attempts):
            if attempt:
                log.info("%s: attempt %d of %d failed: %s", self.client.name, attempt, endpoint.num_attempts, cause)
            if not self._wait_for_turn():
                return None
            if not self.client.purse.reserve(*most, self.stopped):
                if self.stopped.is_set():
                    return None
                raise self._budget_reached()
            try:
                return self._attempt(key, payload, most)
            except MalformedReply as error:
                if not self.has_answered:
                    raise self._failed(str(error), remedy="check base_url, as in https://api.example.com/v1") from None
                cause = self._postpone(error, attempt)
            except TryAgain as error:
                cause = self._postpone(error, attempt)
            finally:
                self.client.purse.release(*most)
        raise self._failed(f"{endpoint.num_attempts} attempts failed, the last with: {cause}")

    def _attempt(self, key: str, payload: Mapping[str, Any], most: tuple[int, int]) -> Reply:
        try:
            reply = self.client.transport.post(payload)
        except TryAgain as error:
            if error.may_be_billed:
                self.client.paid.add("", Reply("", "lost", input_tokens=most[0], output_tokens=most[1]))
            raise
        if reply.finish == "rejected":
            self._check_rejected(reply)
            return reply
        if reply.is_estimated:
            reply = replace(reply, input_tokens=most[0], output_tokens=min(most[1], len(reply.text.encode())))
        self.client.paid.add(key, reply)
        self.has_answered = True
        return reply

    def _check_rejected(self, reply: Reply) -> None:
        """Raises StageError where the server accepts no request: then the cause is no single row."""
        with self.lock:
            self.num_rejected += 1
        is_all = self.num_rejected >= min(NUM_REJECTED, len(self.rows))
        if is_all and not self.has_answered:
            raise self._failed(
                f"it accepts no request: {reply.text}", remedy="see the endpoint's request, which can leave a field out"
            )

    def _wait_for_turn(self) -> bool:
        """Waits as long as the server asked for; False where the client stops before."""
        while (seconds := self.not_before - time.monotonic()) > 0:
            if self.stopped.wait(min(seconds, 1.0)):
                return False
        return not self.stopped.is_set()

    def _postpone(self, error: TryAgain, attempt: int) -> str:
        """Waits before the next attempt; returns why the last failed. Raises StageError where that takes too long."""
        if attempt + 1 == self.client.endpoint.num_attempts:
            return str(error)
        if error.wait is not None and error.wait > LONGEST_ASKED:
            raise self._failed(f"{error}; it asks to wait {error.wait / 60:.0f} minutes", remedy="run again then")
        if error.wait is not None:
            with self.lock:
                self.not_before = max(self.not_before, time.monotonic() + error.wait)
        else:
            longest = min(LONGEST_WAIT, self.client.endpoint.first_wait_seconds * 2**attempt)
            self.stopped.wait(random.uniform(0, longest))
        return str(error)

    def _failed(self, cause: str, *, remedy: str = "run again when it answers") -> AlignloopError:
        kept = len(self.client.paid.replies)
        return StageError(f"{self.client.transport.title}: {cause}; {kept} answers are kept; {remedy}")

    def _budget_reached(self) -> AlignloopError:
        endpoint, spent = self.client.endpoint, self.client.paid.spent
        by_money = endpoint.budget.money is not None
        budget, used = (
            (endpoint.budget.money, f"{spent.money(endpoint):.4g}")
            if by_money
            else (endpoint.budget.tokens, f"{spent.tokens} tokens")
        )
        key = f"endpoints.{self.client.name}.budget.{'money' if by_money else 'tokens'}"
        left = sum(self.rows[key] for key, _ in self.waiting) + 1
        return StageError(
            f"{self.client.transport.title}: the budget of {budget:g} is reached: {used} spent, about {left} answers "
            f"are left; what was paid for is kept; raise it, as by --set {key}={2 * (budget or 0):g}, and run again"
        )
