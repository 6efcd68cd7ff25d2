"""Bad endpoints in recipes, and servers that fail while a stage asks them."""

import json
from collections.abc import Callable
from typing import Any

from tests.bad_inputs.bad_models import annotate, model
from tests.bad_inputs.cases import Call, Case, Place
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
from tests.engine.judging.scripted_judges import by_coin, judge

KEY = "sk-proj-0123456789abcdef"
HTML = "<!DOCTYPE html><html><body>Welcome to nginx</body></html>"


def by_server(
    script: Callable[[Request], Action] | Action, *, key: str = "", prompts: int = 2, **given: Any
) -> Callable[[Place], Call]:
    """annotate with a judge behind a server that does this. Keys of the stage begin with `stage_`."""

    def make(place: Place) -> Call:
        model(place)
        server = ScriptedServer(script if callable(script) else lambda request: script)
        keys = {"num_attempts": 2, "timeout_seconds": 0.4} | {
            k: v for k, v in given.items() if not k.startswith("stage_")
        }
        if key:
            place.patch.setenv("SCRIPTED_KEY", key)
            keys["api_key_env"] = "SCRIPTED_KEY"
        of_stage = {k.removeprefix("stage_"): v for k, v in given.items() if k.startswith("stage_")}
        rows = place.write("many.jsonl", [{"prompt": f"question {number}"} for number in range(prompts)])
        values = annotate(
            place, annotator_function=None, annotator_llm="judge", endpoints={"judge": server.endpoint(**keys)}
        )
        run = place.stage("annotate", **values | {"prompts": [rows]} | of_stage)

        def call() -> int:
            with server:
                return run()

        return call

    return make


def of_recipe(endpoint: Any, *settings: str, command: str = "plan", name: str = "big") -> Callable[[Place], Call]:
    text = json.dumps({name: endpoint}) if name else json.dumps(endpoint)
    return lambda place: place.alignloop(command, *place.recipe(f"endpoints={text}", *settings))


def without_key(place: Place) -> Call:
    place.patch.delenv("NO_SUCH_KEY", raising=False)
    return of_recipe(
        GOOD | {"api_key_env": "NO_SUCH_KEY"},
        "annotate.annotator_function=null",
        "annotate.annotator_llm=big",
        "launch.device=cpu",
        command="run",
    )(place)


def with_folder_of_its_name(place: Place) -> Call:
    words = place.recipe(f"endpoints={json.dumps({'big': GOOD})}")
    (place.folder / "big").mkdir()
    return place.alignloop("plan", *words)


GOOD = {"base_url": "http://127.0.0.1:9/v1", "model": "large"}
CASES = [
    Case(
        "endpoints that are a list",
        of_recipe([1], name=""),
        "--set endpoints=…: endpoints: expected a mapping of names, as in {judge:",
    ),
    Case(
        "an endpoint that is an address",
        of_recipe("http://a/v1"),
        "endpoints.big: expected a mapping, as in {base_url:",
    ),
    Case("an endpoint without a model", of_recipe({"base_url": "http://a/v1"}), "endpoints.big.model is missing"),
    Case(
        "an endpoint with a misspelt key",
        of_recipe(GOOD | {"modle": 1}),
        "endpoints.big: unknown key 'modle'; did you mean 'model'?",
    ),
    Case(
        "a key in the file",
        of_recipe(GOOD | {"api_key": KEY}),
        "endpoints.big: unknown key 'api_key': a key must not be in a file; give api_key_env, the name of a variable",
    ),
    Case(
        "a key in place of the name of its variable",
        of_recipe(GOOD | {"api_key_env": KEY}),
        "endpoints.big.api_key_env is not the name of an environment variable; expected one in capital letters",
    ),
    Case(
        "no concurrency",
        of_recipe(GOOD | {"concurrency": 0}),
        "endpoints.big.concurrency=0: expected 1 or more",
    ),
    Case(
        "a budget of money without a price",
        of_recipe(GOOD | {"budget": {"money": 3}}),
        "--set endpoints=…: endpoints.big.budget.money needs a price beside it, as in price: {input:",
    ),
    Case(
        "a price with a misspelt key",
        of_recipe(GOOD | {"price": {"in": 1, "output": 2}}),
        "endpoints.big: unknown key 'price.in'; expected input, output",
    ),
    Case(
        "a request with its own messages",
        of_recipe(GOOD | {"request": {"messages": []}}),
        "endpoints.big.request.messages is set by",
    ),
    Case(
        "a price that is a number",
        of_recipe(GOOD | {"price": 5}),
        "endpoints.big.price=5: expected a mapping",
    ),
    Case(
        "a request with a secret",
        of_recipe(GOOD | {"request": {"extra_body": [{"api_key": KEY}]}}),
        "endpoints.big.request has the field 'api_key': a key must not be in a file; give api_key_env",
    ),
    Case(
        "a request that is no JSON",
        lambda place: place.alignloop(
            "plan", *place.recipe("endpoints.big={base_url: 'http://a/v1', model: a, request: {temperature: .nan}}")
        ),
        "endpoints.big.request holds what JSON cannot, as .nan or a date; expected text, numbers",
    ),
    Case(
        "a request of no tokens",
        of_recipe(GOOD | {"request": {"max_tokens": -5}}),
        "endpoints.big.request.max_tokens=-5: expected a number 1 or more, or -1",
    ),
    Case(
        "a request with text for a number",
        of_recipe(GOOD | {"request": {"temperature": "high"}}),
        "endpoints.big.request.temperature='high' is text, expected a number",
    ),
    Case(
        "an endpoint without a name",
        lambda place: place.alignloop("plan", *place.recipe(f"endpoints={json.dumps({'': GOOD})}")),
        "endpoints: an endpoint has the name ''; expected one of letters and digits, as in judge",
    ),
    Case(
        "an endpoint with a name that is a path",
        of_recipe(GOOD, name="a/b"),
        "endpoints: an endpoint has the name 'a/b'; expected one of letters and digits, as in judge",
    ),
    Case(
        "the address of the operation",
        of_recipe(GOOD | {"base_url": "https://a/v1/chat/completions/"}),
        "endpoints.big.base_url='https://a/v1/chat/completions/' is the address of /chat/completions; give the one "
        "before it, https://a/v1",
    ),
    Case(
        "no address",
        of_recipe(GOOD | {"base_url": "localhost:8000"}),
        "endpoints.big.base_url='localhost:8000' is no address",
    ),
    Case(
        "an address with a bad port",
        of_recipe(GOOD | {"base_url": "http://a:port/v1"}),
        "endpoints.big.base_url is no address",
    ),
    Case(
        "an address with a password",
        of_recipe(GOOD | {"base_url": "https://me:secret@a/v1"}),
        "endpoints.big.base_url contains a user name, a password or a query, which are secret",
    ),
    Case(
        "an endpoint with the name of a folder",
        with_folder_of_its_name,
        "endpoints.big: HERE/big has this name too",
    ),
    Case(
        "an endpoint that is not there",
        of_recipe(GOOD, "annotate.annotator_function=null", "annotate.annotator_llm=bog"),
        "annotate.annotator_llm='bog' does not exist, neither in HERE nor beside the recipe; no endpoint of the recipe",
    ),
    Case(
        "endpoints in a section",
        of_recipe(GOOD, f"annotate.endpoints={json.dumps({'big': GOOD})}"),
        "annotate.endpoints is set by the plan; write `endpoints` beside the sections",
    ),
    Case(
        "a key that is not set",
        without_key,
        "endpoints.big.api_key_env: the environment variable NO_SUCH_KEY is not set",
    ),
    Case(
        "a key that is not set, by hand",
        by_server(Say("[[tie]]"), api_key_env="NO_SUCH_KEY"),
        "endpoint judge (scripted-1): the environment variable NO_SUCH_KEY is not set; export the key",
    ),
    Case(
        "a key of two lines", by_server(Say("[[tie]]"), key="sk\nsk"), "SCRIPTED_KEY holds characters that no key has"
    ),
    Case(
        "a wrong key",
        by_server(Fail(401, json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}})), key=KEY),
        "endpoint judge (scripted-1) does not accept the request's key (HTTP 401); check the key in SCRIPTED_KEY",
    ),
    Case(
        "no key", by_server(Fail(403)), "does not accept the request's key (HTTP 403); it needs a key: set api_key_env"
    ),
    Case(
        "another path",
        by_server(Say("[[tie]]"), base_url=f"http://127.0.0.1:{free_port()}", num_attempts=1),
        "endpoint judge (scripted-1): 1 attempts failed, the last with: no connection to http://127.0.0.1:",
        1,
    ),
    Case(
        "no such model",
        by_server(Fail(404, '{"error": "model not found"}')),
        "(scripted-1): HTTP 404 from http://127.0.0.1:",
    ),
    Case(
        "a redirection",
        by_server(Fail(308, "", {"Location": "https://elsewhere/v1?token=secret"})),
        "/v1; it points to https://elsewhere/v1; check base_url",
    ),
    Case(
        "a server that is down",
        by_server(Fail(503)),
        "2 attempts failed, the last with: HTTP 503: no luck; 0 answers are kept",
        1,
    ),
    Case(
        "a server that is too slow", by_server(Hang()), "the last with: no complete answer in timeout_seconds=0.4;", 1
    ),
    Case(
        "a server that sends a byte at a time",
        by_server(Drip()),
        "the last with: no complete answer in timeout_seconds=0.4;",
        1,
    ),
    Case(
        "an answer that is cut off",
        by_server(CutOff()),
        "2 attempts failed, the last with: the answer was cut off (",
        1,
    ),
    Case(
        "a rate limit for hours",
        by_server(Fail(429, headers={"Retry-After": "7200"})),
        "HTTP 429: no luck; it asks to wait 120 minutes; 0 answers are kept; run again then",
        1,
    ),
    Case(
        "no quota",
        by_server(Fail(429, '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}')),
        "the account has no quota left: You exceeded your quota; what was paid for is kept",
        1,
    ),
    Case(
        "HTML in place of JSON",
        by_server(Fail(200, HTML)),
        "it answered HTML in place of JSON: <!DOCTYPE html><html><body>Welcome to nginx</body></html>; 0 answers are "
        "kept; check base_url",
        1,
    ),
    Case(
        "an empty body",
        by_server(Fail(200, "")),
        "(scripted-1): its answer is empty; 0 answers are kept; check base_url",
        1,
    ),
    Case(
        "JSON of another kind",
        by_server(Fail(200, '{"error": "overloaded"}')),
        "its JSON is no chat completion: overloaded;",
        1,
    ),
    Case(
        "JSON without text",
        by_server(Fail(200, '{"choices": [{"message": {"content": 3}}]}')),
        "its JSON is no chat completion:",
        1,
    ),
    Case(
        "a damaged compression",
        by_server(Fail(200, "no gzip at all", {"Content-Encoding": "gzip"})),
        "its compressed answer is damaged;",
        1,
    ),
    Case(
        "a body without an end",
        by_server(Fail(200, " " * (2**25 + 2**20)), timeout_seconds=60),
        "answered more than 32 MiB to one",
        1,
    ),
    Case(
        "a server that accepts no request",
        by_server(Fail(422, '{"detail": "unknown field max_tokens"}')),
        "it accepts no request: unknown field max_tokens; 0 answers are kept; see the endpoint's request",
        1,
    ),
    Case(
        "a budget that is too small",
        by_server(Say("[[tie]]"), budget={"tokens": 100}),
        "the budget of 100 is reached: 0 tokens spent, about 4 answers are left; what was paid for is kept; raise it, "
        "as by --set endpoints.judge.budget.tokens=200, and run again",
        1,
    ),
    Case(
        "a judge that is a coin",
        by_server(judge(by_coin), prompts=40, stage_min_consistency=0.95, timeout_seconds=60),
        "pairs when the answers change places, fewer than min_consistency=0.95, and prefers the first answer in",
    ),
    Case(
        "endpoints that are no mapping, by hand",
        by_server(Say("x"), stage_endpoints={"judge": 3}),
        "endpoints.judge: expected a mapping",
    ),
]
