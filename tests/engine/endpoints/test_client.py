"""The client of an endpoint against a real server: retries, waits, one request for each answer, the key."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_schemas.endpoints import PAID_ANSWERS, parse_endpoints
from data_schemas.errors import ConfigError, StageError
from engine.endpoints.client import ChatRequest, EndpointClient
from engine.endpoints.transport import Reply, retry_after
from engine.runtime import notices
from tests.engine.endpoints.scripted_server import (
    Action,
    CutOff,
    Drip,
    Fail,
    Hang,
    Request,
    Say,
    ScriptedServer,
    free_port,
)
from tests.patience import PATIENCE

HTML = "<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>"
KEY = "sk-proj-0123456789abcdef"


def asked(text: str, **changes: Any) -> ChatRequest:
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 5, "seed": 0}
    return ChatRequest([{"role": "user", "content": text}], **values | changes)


def client_of(server: ScriptedServer, folder: Path, **keys: Any) -> EndpointClient:
    folder.mkdir(parents=True, exist_ok=True)
    endpoint = parse_endpoints({"judge": server.endpoint(**keys)}, where="endpoints")["judge"]
    return EndpointClient("judge", endpoint, folder)


def then_says(*first: Action) -> Callable[[Request], Action]:
    """A script that does these once, in order, and answers afterwards."""
    waiting = list(first)
    return lambda request: waiting.pop(0) if waiting else Say("Paris.")


@pytest.mark.parametrize(
    "failures",
    [
        [Fail(500)],
        [Fail(503, HTML)],
        [Fail(429, headers={"Retry-After": "0"})],
        [Fail(429), Fail(408), Fail(502)],
        [CutOff()],
        [Drip()],
        [Hang()],
    ],
    ids=lambda failures: "-".join(type(one).__name__ + str(getattr(one, "status", "")) for one in failures),
)
def test_what_may_pass_is_tried_again(failures, tmp_path):
    with ScriptedServer(then_says(*failures)) as server:
        (reply,) = client_of(server, tmp_path / "step", timeout_seconds=0.5).ask([asked("Capital of France?")])
        assert reply.text == "Paris." and reply.finish == "stop"
        assert len(server.requests) == 1 + len(failures)


def test_a_server_may_ask_for_a_longer_wait_than_the_usual_one(tmp_path):
    times = []

    def script(request: Request) -> Action:
        times.append(time.monotonic())
        return Fail(429, headers={"retry-after-ms": "400"}) if len(times) == 1 else Say("yes")

    with ScriptedServer(script) as server:
        client_of(server, tmp_path / "step").ask([asked("?")])
    assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),  # in the past
    ],
)
def test_retry_after_in_its_forms(headers, seconds):
    assert retry_after(headers) == seconds


def test_as_many_requests_are_open_as_the_endpoint_allows_and_answers_keep_their_order(tmp_path):
    together = threading.Barrier(3)

    def script(request: Request) -> Action:
        together.wait(PATIENCE)
        return Say(request["messages"][0]["content"].upper())

    with ScriptedServer(script) as server:
        replies = client_of(server, tmp_path / "step", concurrency=3).ask([asked(letter) for letter in "abcdef"])
        assert [reply.text for reply in replies] == list("ABCDEF")
        assert server.most_open == 3


def test_an_answer_is_asked_for_once_in_all_steps_of_a_run(tmp_path):
    with ScriptedServer(lambda request: Say(request["messages"][0]["content"])) as server:
        first = client_of(server, tmp_path / "run" / "one").ask([asked("a"), asked("b"), asked("a")])
        assert [reply.text for reply in first] == ["a", "b", "a"] and len(server.requests) == 2
        again = client_of(server, tmp_path / "run" / "two", price={"input": 1, "output": 1}, timeout_seconds=7)
        assert [reply.text for reply in again.ask([asked("b"), asked("c")])] == ["b", "c"]
        assert len(server.requests) == 3
    with ScriptedServer(lambda request: Say("of another address")) as other:
        moved = client_of(other, tmp_path / "run" / "three")
        assert [reply.text for reply in moved.ask([asked("a"), asked("c")])] == ["a", "c"]
        assert not other.requests


@pytest.mark.parametrize(
    ("request_changes", "endpoint_changes"),
    [
        ({"temperature": 0.5}, {}),
        ({"max_tokens": 6}, {}),
        ({"top_p": 0.9}, {}),
        ({}, {"model": "scripted-2"}),
        ({}, {"request": {"reasoning_effort": "low"}}),
    ],
)
def test_other_settings_are_other_answers(request_changes, endpoint_changes, tmp_path):
    with ScriptedServer(lambda request: Say("yes")) as server:
        client_of(server, tmp_path / "run" / "one").ask([asked("a")])
        client_of(server, tmp_path / "run" / "two", **endpoint_changes).ask([asked("a", **request_changes)])
        assert len(server.requests) == 2


def test_answers_with_different_seeds_are_different_samples(tmp_path):
    with ScriptedServer(lambda request: Say("yes")) as server:
        client_of(server, tmp_path / "step").ask(
            [asked("a", seed=1, temperature=1.0), asked("a", seed=2, temperature=1.0)]
        )
        assert sorted(request["seed"] for request in server.requests) == [1, 2]
        client_of(server, tmp_path / "step").ask([asked("a", seed=1), asked("a", seed=2)])
        assert len(server.requests) == 3 and "seed" not in server.requests[2]  # greedy: one answer


def test_a_field_that_a_server_does_not_accept_is_left_out(tmp_path):
    with ScriptedServer(lambda request: Say("yes")) as server:
        fields = {"max_tokens": None, "max_completion_tokens": 99}
        client_of(server, tmp_path / "step", request=fields).ask([asked("a")])
        (sent,) = server.requests
    assert "max_tokens" not in sent and sent["max_completion_tokens"] == 99 and sent["model"] == "scripted-1"


def test_a_line_that_was_cut_off_or_changed_is_asked_for_again_and_spoils_no_other(tmp_path):
    with ScriptedServer(lambda request: Say(request["messages"][0]["content"])) as server:
        step = tmp_path / "run" / "step"
        client_of(server, step, concurrency=1).ask([asked(letter) for letter in "abc"])
        lines = (step / PAID_ANSWERS).read_text().splitlines()
        (step / PAID_ANSWERS).write_text("\n".join([lines[0].replace('"a"', '"z"'), lines[1], lines[2][:-30]]))
        replies = client_of(server, step).ask([asked(letter) for letter in "abc"])
        assert [reply.text for reply in replies] == ["a", "b", "c"] and len(server.requests) == 5
        client_of(server, step).ask([asked(letter) for letter in "abc"])
        assert len(server.requests) == 5


def test_a_budget_of_tokens_is_never_exceeded_and_a_larger_one_goes_on(tmp_path):
    with ScriptedServer(lambda request: Say("yes", usage=(10, 5))) as server:
        requests = [asked(f"question {number}") for number in range(20)]
        small = client_of(server, tmp_path / "run" / "step", budget={"tokens": 200})
        with pytest.raises(
            StageError, match=r"the budget of 200 is reached: \d+ tokens spent, about \d+ answers are left"
        ) as caught:
            small.ask(requests)
        assert "--set endpoints.judge.budget.tokens=400" in str(caught.value)
        num_before = len(server.requests)
        assert 2 < num_before < 20 and small.paid.spent.tokens == 15 * num_before <= 200
        larger = client_of(server, tmp_path / "run" / "step", budget={"tokens": 5000})
        assert len(larger.ask(requests)) == 20
        assert len(server.requests) == 20 and set(server.answered.values()) == {1}
        other_step = client_of(server, tmp_path / "run" / "other", budget={"tokens": 300})
        with pytest.raises(StageError, match="the budget of 300 is reached: 300 tokens spent"):  # it is the run's
            other_step.ask([asked("one more")])


def test_a_budget_of_money_counts_input_and_output_at_their_prices(tmp_path):
    price = {"input": 1000.0, "output": 100_000.0}  # of a million: 10 x 0.001 + 5 x 0.1 = 0.51 for an answer
    with ScriptedServer(lambda request: Say("yes", usage=(10, 5))) as server:
        client = client_of(server, tmp_path / "step", price=price, budget={"money": 3.0}, concurrency=4)
        with pytest.raises(StageError, match=r"the budget of 3 is reached: 2\.55 spent"):
            client.ask([asked(f"question {number}") for number in range(20)])
        assert len(server.requests) == 5 and client.paid.spent.money(client.endpoint) == pytest.approx(2.55)


def test_a_lost_answer_counts_with_the_most_that_it_can_have_cost(tmp_path):
    with ScriptedServer(then_says(CutOff())) as server:
        client = client_of(server, tmp_path / "step")
        client.ask([asked("a")])
        assert client.paid.spent.output_tokens == 5 + 5  # max_tokens for the lost one
        assert client.paid.spent.input_tokens == asked("a").most_input_tokens + 10


def test_a_server_that_counts_no_tokens_is_charged_an_upper_bound(tmp_path):
    with ScriptedServer(lambda request: Say("yes", usage=None)) as server:
        client = client_of(server, tmp_path / "step")
        (reply,) = client.ask([asked("a")])
        assert reply.is_estimated and reply.output_tokens == 3 and reply.input_tokens == asked("a").most_input_tokens


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Say(""), Reply("", "stop")),
        (Say(None), Reply("", "stop")),
        (Say(None, refusal="I can't help with that."), Reply("I can't help with that.", "stop", is_refusal=True)),
        (Say("", finish="content_filter"), Reply("", "content_filter", is_refusal=True)),
        (Say("half", finish="length"), Reply("half", "length")),
    ],
    ids=["empty", "null", "refusal", "filtered", "cut off by max_tokens"],
)
def test_answers_that_are_none_are_kept_as_they_are(action, expected, tmp_path):
    with ScriptedServer(lambda request: action) as server:
        (reply,) = client_of(server, tmp_path / "step").ask([asked("a")])
    assert (reply.text, reply.finish, reply.is_refusal) == (expected.text, expected.finish, expected.is_refusal)


def test_a_request_that_the_server_rejects_is_one_rows_matter(tmp_path):
    def script(request: Request) -> Action:
        is_long = request["messages"][0]["content"] == "long"
        return Fail(400, '{"error": {"message": "context length exceeded"}}') if is_long else Say("yes")

    with ScriptedServer(script) as server:
        replies = client_of(server, tmp_path / "step").ask([asked("a"), asked("long"), asked("b")])
    assert [(reply.text, reply.finish) for reply in replies] == [
        ("yes", "stop"),
        ("context length exceeded", "rejected"),
        ("yes", "stop"),
    ]


def test_another_model_behind_the_name_is_reported(tmp_path):
    notices.start(None)
    names = iter(["scripted-1-may", "scripted-1-may", "scripted-1-june"])
    with ScriptedServer(lambda request: Say("yes", model=next(names))) as server:
        client_of(server, tmp_path / "step", concurrency=1).ask([asked("a"), asked("b")])
        assert notices.kept() == []  # an alias that always means the same is no change
        client = client_of(server, tmp_path / "step")
        client.ask([asked("c")])
    assert notices.kept() == [
        "endpoint judge (scripted-1): different models have answered behind its name: scripted-1-june, scripted-1-may"
    ]
    assert client.paid.metrics("endpoint_judge")["endpoint_judge_served_as"] == "scripted-1-june, scripted-1-may"
    notices.start(None)


def test_another_fingerprint_is_reported(tmp_path):
    notices.start(None)
    marks = iter(["fp_1", "fp_2"])
    with ScriptedServer(lambda request: Say("yes", fingerprint=next(marks))) as server:
        client_of(server, tmp_path / "step").ask([asked("a")])
        client_of(server, tmp_path / "step").ask([asked("b")])
    assert [text for text in notices.kept() if "system_fingerprint" in text]
    notices.start(None)


@pytest.mark.parametrize(
    "echo",
    [
        Fail(401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})),
        Fail(418, f"no tea for {KEY}"),
        Fail(500, f"debug: Authorization: Bearer {KEY}"),
        Say(f"Your key is {KEY}."),
        Fail(200, f"<html>{KEY}</html>"),
    ],
    ids=["401", "418", "500", "answer", "html"],
)
def test_the_key_is_sent_and_shown_nowhere(echo, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SCRIPTED_KEY", KEY)
    said = ""
    with ScriptedServer(lambda request: echo) as server, caplog.at_level("DEBUG"):
        client = client_of(server, tmp_path / "step", api_key_env="SCRIPTED_KEY", num_attempts=2)
        try:
            said = client.ask([asked("a")])[0].text
        except (ConfigError, StageError) as error:
            said = str(error)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert said and KEY not in said and KEY not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]


def test_nothing_listens(tmp_path):
    endpoint = {
        "base_url": f"http://127.0.0.1:{free_port()}/v1",
        "model": "m",
        "num_attempts": 3,
        "first_wait_seconds": 0,
    }
    (tmp_path / "step").mkdir()
    client = EndpointClient("judge", parse_endpoints({"judge": endpoint}, where="")["judge"], tmp_path / "step")
    with pytest.raises(StageError, match=r"endpoint judge \(m\): 3 attempts failed, the last with: no connection to"):
        client.ask([asked("a")])
