"""The vLLM engine: the requests to vLLM, and the answers from its tokens. With a fake vLLM."""

import json

import pytest

from data_schemas.reading import read_rows
from data_schemas.rows import Candidates
from engine.models.loading import load_causal, load_tokenizer, read_config
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Policy, SamplingSettings, end_tokens, end_tokens_of
from engine.sampling.sampler import sample_in_turn
from engine.sampling.vllm_copies import seed_of
from engine.sampling.vllm_engine import generation_config_of
from engine.tokens.template import encode_prompt
from tests.engine.sampling.fake_vllm import token_of
from tests.engine.sampling.vllm_prompts import PROMPTS
from tests.stage_runs import run_here
from tests.toy_rows import write_jsonl


def test_tokens_of_seed_prompt_and_k_become_answers_with_text_and_end(draw, tokenizer):
    end = tokenizer.eos_token_id
    answers = draw("a")
    assert [len(own) for own in answers] == [3] * len(PROMPTS)
    for prompt, own in zip(PROMPTS, answers, strict=True):
        ids = encode_prompt(tokenizer, prompt.prompt)
        for k, answer in enumerate(own):
            seed = seed_of("5/p", prompt.prompt_id, k)
            tokens = [token_of(ids, seed, position, [end]) for position in range(12)]
            wanted = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            assert answer.ids == wanted and answer.ended == (end in tokens)
            assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)
    ended = [answer.ended for own in answers for answer in own]
    assert True in ended and False in ended, "both must be there for this to show something"


def test_seeds_differ_by_seed_prompt_and_k_and_fit_in_63_bits():
    seeds = [seed_of(seed, prompt, k) for seed in ("1/a", "1/b") for prompt in "xyz" for k in range(50)]
    assert len(set(seeds)) == 300 and max(seeds) < 2**62 and max(seeds) > 2**61
    assert seed_of("1/a", "x", 0) == 0xDA36B88880A350DD // 4, "the first 8 bytes of sha256('1/a/x/0')"


def test_answers_do_not_depend_on_group_order_batch_or_number_of_copies(draw):
    answers = draw("a")
    assert draw("groups", generation_batch_size=7) == answers
    assert draw("company", [(PROMPTS[3], None), (PROMPTS[1], None)]) == [answers[3], answers[1]]
    assert draw("copies", vllm={"data_parallel_size": 2}) == answers
    assert draw("seed", seed=6) != answers


def test_vllm_is_asked_for_one_answer_per_seed_with_our_tokens_and_without_the_models_settings(draw, fake, tokenizer):
    draw("a", [(PROMPTS[0], 0.25), (PROMPTS[1], None)], num_answers=2, top_p=0.9, temperature=0.7, dtype="bfloat16")
    (load,) = fake.notes("load")
    longest = len(encode_prompt(tokenizer, PROMPTS[1].prompt))
    wanted = {
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": longest + 12,
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.4,
    }
    assert {name: load.get(name) for name in wanted} == wanted
    (group,) = fake.notes("generate")
    for (prompt, parameters), (own, temperature, k) in zip(
        group["asked"],
        [(PROMPTS[0], 0.25, 0), (PROMPTS[0], 0.25, 1), (PROMPTS[1], 0.7, 0), (PROMPTS[1], 0.7, 1)],
        strict=True,
    ):
        assert prompt == encode_prompt(tokenizer, own.prompt)
        assert parameters == {
            "temperature": temperature,
            "top_p": 0.9,
            "max_tokens": 12,
            "detokenize": False,
            "logprobs": None,
            "seed": seed_of("5/p", own.prompt_id, k),
            "stop_token_ids": [tokenizer.eos_token_id],
        }


def test_two_policies_answer_in_turn_each_with_its_own_vllm(fake, tiny_model, tied_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = GenerationArguments(seed=5, max_new_tokens=3, engine="vllm", vllm={"python": fake.python})
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    policies = [Policy(str(tiny_model), "tiny"), Policy(str(tied_model), "tied")]
    settings = SamplingSettings.of(arguments, purpose="p")
    (answers,) = sample_in_turn(stage, policies, [(PROMPTS[0], None)], settings, num_answers=3)
    assert [(answer.policy, answer.k, answer.prompt) for answer in answers] == [
        (name, k, PROMPTS[0]) for k, name in enumerate(("tiny", "tied", "tiny"))
    ]
    assert [note["model"] for note in fake.notes("load")] == [policy.path for policy in policies]
    assert [len(note["asked"]) for note in fake.notes("generate")] == [2, 1]
    assert len({note["pid"] for note in fake.notes("load")}) == 2


@pytest.mark.parametrize("file", [True, False])
def test_end_tokens_are_those_of_the_loaded_model(file, tiny_model, tokenizer, tmp_path):
    for path in tiny_model.iterdir():
        if file or path.name != "generation_config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if file:
        content = json.loads((tmp_path / "generation_config.json").read_text())
        (tmp_path / "generation_config.json").write_text(json.dumps(content | {"eos_token_id": [7, 9]}))
    found = end_tokens_of(generation_config_of(str(tmp_path), read_config(str(tmp_path))), tokenizer)
    assert found == end_tokens(load_causal(str(tmp_path)), load_tokenizer(str(tmp_path)))
    assert found == ({7, 9, tokenizer.eos_token_id} if file else {tokenizer.eos_token_id})


def test_auto_is_the_precision_of_the_saved_model(draw, fake):
    draw("a", [(PROMPTS[0], None)])
    assert [note["dtype"] for note in fake.notes("load")] == ["float32"]


def test_stages_write_the_same_rows_and_record_with_vllm(fake, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "scores.py").write_text("def score(prompt, answer, ended):\n    return len(answer) % 7\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {number}"} for number in range(6)])
    common = {"prompts": [prompts], "max_new_tokens": 8, "engine": "vllm", "vllm": {"python": fake.python}}
    record = run_here(
        "annotate",
        tmp_path / "annotate",
        policies=[tiny_model],
        annotator_function="scores:score",
        keep_unfinished=True,
        **common,
    )
    assert record.keys["engine"] == "vllm" and "vllm" not in record.keys
    assert record.metrics["prompts"] == 6
    run_here(
        "evaluate_policy",
        tmp_path / "evaluate",
        model_name_or_path=tiny_model,
        judge_function="scores:score",
        num_answers=2,
        **common,
    )
    groups = read_rows(tmp_path / "evaluate" / "answers.jsonl", Candidates)
    assert [len(group.candidates) for group in groups] == [2] * 6
    assert all(answer.num_tokens == 8 or answer.ended for group in groups for answer in group.candidates)
    assert (tmp_path / "evaluate" / "vllm.log").exists() and not (tmp_path / "evaluate" / "checkpoints").exists()
