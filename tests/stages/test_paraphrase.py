"""The stage paraphrase: behind an endpoint and by a model folder, resumed, and with what must not be kept."""

import json
import re
from pathlib import Path
from typing import Any

from data_schemas.reading import read_prompts
from data_schemas.rows import Prompt
from engine.curation.paraphrasing import last_user_text
from tests.engine.endpoints.scripted_server import Action, Fail, Request, Say, ScriptedServer
from tests.stage_runs import call_stage, run_here
from tests.toy_rows import read_jsonl, write_jsonl

TEXTS = ["Which animal barks", "Which animal meows", "Which animal neighs"]


def prompts_file(folder: Path, texts: list[str] = TEXTS) -> Path:
    stored = [Prompt.model_validate({"prompt": [{"role": "user", "content": text}], "tag": "zoo"}) for text in texts]
    return write_jsonl(folder / "prompts.jsonl", [json.loads(row.to_json()) for row in stored])


def parts_of(request: Request) -> tuple[str, str]:
    """The task and the text of a question."""
    found = re.fullmatch(r"(.*)\n===\n(.*)\n===", request["messages"][-1]["content"], re.DOTALL)
    assert found, request
    return found[1], found[2]


def writer(request: Request) -> Say:
    """It says back what it was asked to do, so that a text shows its way."""
    task, text = parts_of(request)
    language = re.match(r"Translate .* into (\w+)\.", task)
    return Say(f"{text} in {language[1]}" if language else f"{text}, said otherwise {request['seed'] % 1000}")


def keys_of(server: ScriptedServer, file: Path, **keys: Any) -> dict[str, Any]:
    endpoints = {"teacher": server.endpoint(model="teacher-1")}
    return {"prompts": [file], "paraphrase_llm": "teacher", "endpoints": endpoints, **keys}


def test_paraphrases_and_back_translations_follow_their_prompts_and_are_linked(tmp_path):
    file = prompts_file(tmp_path)
    with ScriptedServer(writer) as server:
        keys = keys_of(server, file, num_paraphrases=2, back_translations=["German", "Korean"])
        record = run_here("paraphrase", tmp_path / "run" / "step", **keys)
    originals = read_prompts([file]).rows
    written = read_prompts([tmp_path / "run" / "step" / "prompts.train.jsonl"]).rows
    links = read_jsonl(tmp_path / "run" / "step" / "variants.jsonl")
    assert written[:3] == originals and len(written) == 3 + 3 * 4
    by_id = {row.prompt_id: row for row in originals}
    for new, link in zip(written[3:], links, strict=True):
        original = by_id[link["from"]]
        assert (new.prompt_id, new.group_id, new.tag) == (link["prompt_id"], original.group_id, "zoo")
        if link["operation"] == "back_translation":
            assert last_user_text(new) == f"{last_user_text(original)} in {link['language']} in English"
    assert [link["operation"] for link in links[:4]] == ["paraphrase"] * 2 + ["back_translation"] * 2
    assert [link.get("language") for link in links[:4]] == [None, None, "German", "Korean"]
    assert (record.metrics["variants"], record.metrics["prompts.train"]) == (12, 15)
    assert len(server.requests) == 3 * (2 + 2 * 2) and set(server.answered.values()) <= {1, 2}
    assert record.metrics["endpoint_teacher_model"] == "teacher-1"


def test_a_step_that_stopped_pays_for_no_text_twice_and_writes_the_same(tmp_path):
    file, allowed = prompts_file(tmp_path), 7

    def script(request: Request) -> Action:
        return writer(request) if len(server.requests) <= allowed else Fail(401)

    with ScriptedServer(script) as server:
        keys = keys_of(server, file, num_paraphrases=2, back_translations=["German"])
        keys["endpoints"]["teacher"]["concurrency"] = 1
        assert call_stage("paraphrase", tmp_path / "one" / "step", **keys) == 2
        assert sum(server.answered.values()) == 7
        allowed = 10**6
        run_here("paraphrase", tmp_path / "one" / "step", **keys)
        assert sum(server.answered.values()) == 3 * 2 + 3 * 2
    with ScriptedServer(writer) as server:
        keys["endpoints"]["teacher"] |= {"base_url": server.url}
        run_here("paraphrase", tmp_path / "other" / "step", **keys)
    written = [(tmp_path / name / "step" / "prompts.train.jsonl").read_text() for name in ("one", "other")]
    assert written[0] == written[1]


def test_texts_that_are_no_new_prompts_are_in_a_file_by_rule_and_counted(tmp_path):
    says = {
        "Which animal barks": Say("which animal barks?"),
        "Which animal meows": Say("What meo", finish="length"),
        "Which animal neighs": Say("Name the animal that gives us milk every day"),
        "Which animal flies": Say(""),
        "Which animal swims": Say("No.", finish="content_filter"),
        "Which animal sings": Fail(400),
        "Which animal digs": Say("An animal \ud800"),
        "Which animal hunts": Say("What animal goes hunting"),
    }
    file = prompts_file(tmp_path, list(says))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": "Name the animal that gives us milk every day"}])
    before = held_out.read_text()
    with ScriptedServer(lambda request: says[parts_of(request)[1]]) as server:
        keys = keys_of(server, file, held_out_prompts=[held_out])
        record = run_here("paraphrase", tmp_path / "run" / "step", **keys)
        asked = {parts_of(request)[1] for request in server.requests}
    dropped = read_jsonl(tmp_path / "run" / "step" / "dropped.jsonl")
    expected = ["unchanged", "unfinished", "llama3_exact_prompt", "empty", "refused", "rejected", "not_unicode"]
    assert [row["rule"] for row in dropped] == expected
    assert {name: record.metrics[f"dropped_{name}"] for name in expected} == dict.fromkeys(expected, 1)
    written = read_prompts([tmp_path / "run" / "step" / "prompts.train.jsonl"]).rows
    assert [last_user_text(row) for row in written[8:]] == ["What animal goes hunting"]
    assert asked == set(says) and held_out.read_text() == before  # no held-out prompt is sent to a model


def test_translations_that_cannot_be_used_are_not_translated_back(tmp_path):
    file = prompts_file(tmp_path)
    with ScriptedServer(lambda request: Say("Welches", finish="length")) as server:
        keys = keys_of(server, file, num_paraphrases=0, back_translations=["German"])
        record = run_here("paraphrase", tmp_path / "run" / "step", **keys)
        assert len(server.requests) == 3
    assert record.warnings == ["no paraphrase of 3 is kept (unfinished 3); see dropped.jsonl"]
    assert record.metrics["prompts.train"] == 3


def test_prompts_that_curate_varied_are_not_paraphrased(tmp_path):
    file = prompts_file(tmp_path)
    varied = read_prompts([file]).rows[1].prompt_id
    links = write_jsonl(tmp_path / "variants.jsonl", [{"prompt_id": varied, "from": "0", "operation": "random_swap"}])
    with ScriptedServer(writer) as server:
        run_here("paraphrase", tmp_path / "run" / "step", **keys_of(server, file, earlier_variants=[links]))
        assert {parts_of(request)[1] for request in server.requests} == {TEXTS[0], TEXTS[2]}


def test_a_model_folder_paraphrases_by_the_same_interface_and_by_its_seed(tiny_model, tmp_path):
    """A tiny random model writes noise of 12 tokens, which is unfinished unless its end token is drawn."""
    file = prompts_file(tmp_path)
    keys = {"prompts": [file], "paraphrase_llm": tiny_model, "max_new_tokens": 12, "num_paraphrases": 4}
    texts = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        record = run_here("paraphrase", tmp_path / name / "step", seed=seed, **keys)
        counted = sum(int(value) for key, value in record.metrics.items() if key.startswith("dropped_") and value)
        assert int(record.metrics["variants"] or 0) + counted == 12
        texts[name] = [(tmp_path / name / "step" / f"{of}.jsonl").read_text() for of in ("prompts.train", "dropped")]
    assert texts["a"] == texts["b"] != texts["c"]
