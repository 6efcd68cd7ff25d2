"""The vLLM engine: what vLLM is asked, what becomes of its tokens, restarts, and every way in which it fails.

By default with a fake vLLM in an environment of its own. The last part is for a real one: it runs where
ALIGNLOOP_TEST_VLLM names the interpreter of an environment with vLLM.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import run_here, tiny_llama, write_jsonl
from fake_vllm import FakeVLLM, token_of

from data_schemas.errors import ConfigError, StageError
from data_schemas.key_rules import check_values
from data_schemas.reading import read_rows
from data_schemas.rows import Candidates, Message, Prompt
from data_schemas.stage_keys import parse_command_line, stages
from engine.models.loading import load_causal, load_tokenizer, read_config
from engine.runtime import preemption
from engine.runtime.arguments import GenerationArguments
from engine.runtime.outcome import hint_for
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer, end_tokens, ends_of
from engine.sampling.sampler import sample_in_turn
from engine.sampling.vllm_engine import _copies, _generation_config, seed_of
from engine.tokens.template import encode_prompt
from pipeline.launch.checks import check_machine
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from pipeline.state.fingerprint import FileHashes, identities

ROOT = Path(__file__).parent.parent
PROMPTS = [
    Prompt(prompt=[Message(role="user", content=f"Capital of {name}?" + " Please." * (number % 3))])
    for number, name in enumerate("ABCDE")
]


@pytest.fixture
def fake(tmp_path) -> FakeVLLM:
    return FakeVLLM(tmp_path / "env")


@pytest.fixture
def draw(fake, tiny_model, tmp_path, monkeypatch) -> Callable[..., list[list[Answer]]]:
    """draw("folder", key=value): three answers to each prompt by the fake, in groups of 4."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(name: str, prompts: Any = None, num_answers: int = 3, **keys: Any) -> list[list[Answer]]:
        folder = tmp_path / name / "step"  # with nothing beside it to take over
        folder.mkdir(parents=True, exist_ok=True)
        vllm = {"python": fake.python, **keys.pop("vllm", {})}
        given = {"seed": 5, "max_new_tokens": 12, "generation_batch_size": 4, "engine": "vllm", "vllm": vllm, **keys}
        stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
        asked = [(prompt, None) for prompt in PROMPTS] if prompts is None else prompts
        return sample_in_turn(
            stage, [str(tiny_model)], asked, GenerationArguments(**given), num_answers=num_answers, purpose="p"
        )

    return run


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, holds: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds())


# -- answers ----------------------------------------------------------------------------------------------------------


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


def test_answers_do_not_hang_on_group_order_company_or_number_of_copies(draw):
    answers = draw("a")
    assert draw("groups", generation_batch_size=7) == answers
    assert draw("company", [(PROMPTS[3], None), (PROMPTS[1], None)]) == [answers[3], answers[1]]
    assert draw("copies", vllm={"data_parallel_size": 2}) == answers
    assert draw("seed", seed=6) != answers


def test_vllm_is_asked_for_one_answer_a_seed_with_our_tokens_and_no_settings_of_the_models(draw, fake, tokenizer):
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
            "seed": seed_of("5/p", own.prompt_id, k),
            "stop_token_ids": [tokenizer.eos_token_id],
        }


def test_two_policies_answer_in_turn_each_with_its_own_vllm(fake, tiny_model, tied_model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = GenerationArguments(seed=5, max_new_tokens=3, engine="vllm", vllm={"python": fake.python})
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    policies = [str(tiny_model), str(tied_model)]
    sample_in_turn(stage, policies, [(PROMPTS[0], None)], arguments, num_answers=3, purpose="p")
    assert [note["model"] for note in fake.notes("load")] == policies
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
    found = ends_of(_generation_config(str(tmp_path), read_config(str(tmp_path))), tokenizer)
    assert found == end_tokens(load_causal(str(tmp_path)), load_tokenizer(str(tmp_path)))
    assert found == ({7, 9, tokenizer.eos_token_id} if file else {tokenizer.eos_token_id})


def test_auto_is_the_precision_of_the_saved_model(draw, fake):
    draw("a", [(PROMPTS[0], None)])
    assert [note["dtype"] for note in fake.notes("load")] == ["float32"]


# -- the process ------------------------------------------------------------------------------------------------------


def test_one_vllm_serves_all_groups_each_from_an_empty_cache_and_ends(draw, fake):
    draw("a")
    pids = {note["pid"] for note in fake.notes("generate")}
    assert len(pids) == len(fake.notes("load")) == 1
    assert [len(note["asked"]) for note in fake.notes("generate")] == [4, 4, 4, 3]
    assert len(fake.notes("reset")) == 4
    assert not is_alive(pids.pop())


def test_its_environment_is_not_ours(draw, fake, monkeypatch, tmp_path):
    ours = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "VIRTUAL_ENV": "x",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "here",
        "ACCELERATE_USE_CPU": "true",
        "TORCHELASTIC_RUN_ID": "1",
        "HF_HUB_OFFLINE": "0",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin")
    draw("a", [(PROMPTS[0], None)])
    (note,) = fake.notes("import")
    environment, path = note["environment"], note["path"]
    left = {name: environment[name] for name in ours if name in environment}
    assert left == {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    assert environment["PATH"] == f"{tmp_path / 'env' / 'bin'}:/usr/bin:/bin"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert not [entry for entry in path if str(ROOT) in entry or entry in ("", str(Path.cwd()))]
    assert "words of a library on stdout" in (tmp_path / "a" / "step" / "vllm.log").read_text()


@pytest.mark.parametrize(
    ("ranks", "options", "visible", "cards"),
    [
        # LOCAL_WORLD_SIZE, LOCAL_RANK; what each vLLM of this process sees
        ((1, 0), {}, "0,1", ["0"]),
        ((2, 1), {}, "4,6", ["6"]),
        ((1, 0), {"tensor_parallel_size": 2}, "4,5,6", ["4,5"]),
        ((1, 0), {"data_parallel_size": 3}, "4,5,6", ["4", "5", "6"]),
        ((2, 1), {"data_parallel_size": 2, "tensor_parallel_size": 2}, "0,1,2,3,4,5,6,7", ["4,5", "6,7"]),
    ],
)
def test_each_copy_has_gpus_of_its_own(ranks, options, visible, cards, tmp_path, monkeypatch):
    for name, value in zip(("LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK"), (*ranks, ranks[1]), strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    copies = _copies(options, str(tmp_path), use_cpu=False)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env, _ in copies] == cards
    assert all(own == {"tensor_parallel_size": options.get("tensor_parallel_size", 1)} for own, _, _ in copies)
    assert len({log for _, _, log in copies}) == len(copies)


def test_more_gpus_than_there_are_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as error:
        _copies({"tensor_parallel_size": 2}, str(tmp_path), use_cpu=False)
    assert str(error.value) == (
        "vllm needs 2 processes x data_parallel_size 1 x tensor_parallel_size 2 = 4 GPUs, there are 3"
    )


def test_on_a_cpu_the_cores_and_the_memory_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7})
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    copies = _copies({"data_parallel_size": 2}, str(tmp_path), use_cpu=True)
    assert [env["VLLM_CPU_OMP_THREADS_BIND"] for _, env, _ in copies] == ["2,3", "5,7"]
    assert [env["OMP_NUM_THREADS"] for _, env, _ in copies] == ["2", "2"]
    assert [own["gpu_memory_utilization"] for own, _, _ in copies] == [0.2, 0.2]
    (sharded,) = _copies({"tensor_parallel_size": 2, "gpu_memory_utilization": 0.3}, str(tmp_path), use_cpu=True)
    assert sharded[1]["VLLM_CPU_OMP_THREADS_BIND"] == "2,3|5,7" and sharded[0]["gpu_memory_utilization"] == 0.3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4})
    copies = _copies({"data_parallel_size": 2}, str(tmp_path), use_cpu=True)
    assert [env["VLLM_CPU_OMP_THREADS_BIND"] for _, env, _ in copies] == ["4", "4"]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "1-3")
    ((_, env, _),) = _copies({}, str(tmp_path), use_cpu=True)
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "1-3"


def test_on_a_cpu_what_was_compiled_is_looked_for_where_it_can_be_loaded(tmp_path, monkeypatch):
    def option(*, use_cpu):
        ((_, env, _),) = _copies({}, str(tmp_path), use_cpu=use_cpu)
        return env.get("VLLM_USE_AOT_COMPILE")

    monkeypatch.delenv("VLLM_USE_AOT_COMPILE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert (option(use_cpu=True), option(use_cpu=False)) == ("0", None)
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")  # a user's word
    assert option(use_cpu=True) == "1"


# Draws by the fake; SIGKILL ends it without a word.
DRAWS = """
import sys
from pathlib import Path
from data_schemas.rows import Message, Prompt
from engine.runtime.arguments import GenerationArguments
from engine.sampling.sampler import sample_in_turn
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker

folder, model, python = sys.argv[1:]
stage = Stage("test", Path(folder), {}, Tracker(Path(folder), active=False), is_main=True)
prompts = [(Prompt(prompt=[Message(role="user", content=f"q{number}")]), None) for number in range(8)]
arguments = GenerationArguments(max_new_tokens=3, generation_batch_size=2, engine="vllm", vllm={"python": python},
                                use_cpu=True)
sample_in_turn(stage, [model], prompts, arguments, num_answers=2, purpose="p")
"""


@pytest.mark.parametrize("behaviour", [{"group_seconds": 60}, {"load_seconds": 60}])
def test_vllm_ends_when_the_stage_is_killed(behaviour, fake, tiny_model, tmp_path):
    fake.behave(**behaviour)
    command = [sys.executable, "-c", DRAWS, str(tmp_path), str(tiny_model), fake.python]
    stage = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    event = "generate" if "group_seconds" in behaviour else "load"
    try:
        assert within(120, lambda: fake.notes(event) or stage.poll() is not None)
        pid = fake.notes(event)[0]["pid"]
        assert is_alive(pid)
    finally:
        stage.kill()
        stage.wait()
    assert within(5, lambda: not is_alive(pid))


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_after_vllm_died_the_finished_groups_are_kept_and_the_rows_are_the_same(draw, fake, tmp_path):
    undisturbed = draw("a")
    fake.forget()
    fake.behave(die_at=2)
    with pytest.raises(StageError) as error:
        draw("b")
    log = tmp_path / "b" / "step" / "vllm.log"
    assert str(error.value) == (
        "vLLM's process ended (killed by signal 9); its last lines: one line | cudaErrorMemory: out of memory | "
        f"last words; its log: {log}"
    )
    assert hint_for(error.value).startswith("what is finished is kept, run the same command again; where memory was")
    assert "last words" in log.read_text()
    fake.behave()
    fake.forget()
    assert draw("b") == undisturbed
    assert [len(note["asked"]) for note in fake.notes("generate")] == [4, 3]
    fake.forget()
    assert draw("b") == undisturbed
    assert not fake.notes("import"), "with all groups done no vLLM is started"


def test_another_version_has_groups_of_its_own_and_is_warned_of(draw, fake, tmp_path, caplog):
    draw("a")
    assert "was tried here" not in caplog.text
    (packaged,) = fake.folder.parent.glob("*.dist-info")
    (packaged / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.40.1\n")
    fake.forget()
    with caplog.at_level(logging.INFO):
        draw("a")
    assert len(fake.notes("generate")) == 4
    assert f"vLLM 0.40.1 of {fake.python}" in caplog.text
    assert "vLLM 0.40.1 is not a version that was tried here (0.32.0)" in caplog.text


def test_groups_are_divided_among_processes(draw, fake, monkeypatch, tmp_path):
    undisturbed = draw("a")
    fake.forget()
    found: dict[int, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    thread = threading.Thread(target=lambda: found.update({1: draw("b")}))
    thread.start()
    assert within(60, lambda: len(fake.notes("generate")) == 2)  # of four: it has read its rank
    monkeypatch.setenv("RANK", "0")
    found[0] = draw("b")
    thread.join(60)
    assert found == {0: undisturbed, 1: undisturbed}
    by_process = {note["pid"]: 0 for note in fake.notes("generate")}
    assert len(by_process) == 2 and len(fake.notes("generate")) == 4
    assert {path.name for path in (tmp_path / "b" / "step").glob("*.log")} == {"vllm.log", "vllm-1.log"}


@pytest.mark.parametrize(
    ("behaviour", "event", "done"), [({"load_seconds": 60}, "load", 0), ({"group_seconds": 1}, "generate", 1)]
)
def test_sigterm_waits_for_a_group_but_not_for_the_model(behaviour, event, done, draw, fake, tmp_path):
    fake.behave(**behaviour)

    def ask() -> None:
        within(60, lambda: fake.notes(event))
        # To all processes of the job, as a cluster does.
        os.kill(fake.notes(event)[0]["pid"], signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    started = time.monotonic()
    with preemption.listen_for_signals(), pytest.raises(preemption.Preempted):
        threading.Thread(target=ask).start()
        draw("a")
    assert time.monotonic() - started < 30
    assert len(list((tmp_path / "a" / "step" / "checkpoints").glob("answers-0-*/*.json"))) == done
    assert not is_alive(fake.notes(event)[0]["pid"])


# -- stages and recipes -----------------------------------------------------------------------------------------------


def test_stages_write_the_same_rows_and_record_by_it(fake, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "scores.py").write_text("def score(prompt, answer, ended):\n    return len(answer) % 7\n")
    monkeypatch.setenv("ALIGNLOOP_FUNCTION_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {number}"} for number in range(6)])
    common = {"prompts": [prompts], "max_new_tokens": 8, "engine": "vllm", "vllm": {"python": fake.python}}
    made = run_here(
        "annotate",
        tmp_path / "annotate",
        policies=[tiny_model],
        annotator_function="scores:score",
        keep_unfinished=True,
        **common,
    )
    assert made.keys["engine"] == "vllm" and "vllm" not in made.keys
    assert made.metrics["prompts"] == 6
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


REFUSED = [
    ({}, "vllm.python is missing: the interpreter of vLLM's own environment, as in vllm: {python: /opt/vllm/bin/"),
    ({"pyton": "x"}, "vllm: unknown key 'pyton'; did you mean 'python'?"),
    ({"python": "p", "tensor_parallel_size": 0}, "vllm.tensor_parallel_size=0: expected a number 1 or more"),
    ({"python": "p", "data_parallel_size": 1.5}, "vllm.data_parallel_size=1.5 is a number, expected int"),
    ({"python": "p", "gpu_memory_utilization": 1.1}, "vllm.gpu_memory_utilization=1.1: expected a number above 0, at"),
    ({"python": "p", "max_model_len": "long"}, "vllm.max_model_len='long' is text, expected int"),
    ({"python": None}, "vllm.python=None is nothing, expected str"),
]


@pytest.mark.parametrize(("vllm", "message"), REFUSED)
def test_what_vllm_cannot_hold_is_refused_without_torch(vllm, message):
    values = {"engine": "vllm", "vllm": vllm, "judge_model": "m"}
    with pytest.raises(ConfigError) as error:
        check_values("evaluate_policy", values, where="here")
    assert str(error.value).startswith(f"here: {message}")


def test_vllm_may_be_named_where_another_engine_generates():
    check_values("evaluate_policy", {"judge_model": "m", "vllm": {"python": "p", "max_model_len": 9}}, where="here")
    with pytest.raises(ConfigError, match=r"here: vllm: unknown key 'x'"):
        check_values("evaluate_policy", {"judge_model": "m", "vllm": {"x": 1}}, where="here")


def test_a_stage_by_hand_is_given_it_as_a_mapping():
    words = ["--engine", "vllm", "--vllm", "{python: /x/python, data_parallel_size: 2}"]
    vllm = {"python": "/x/python", "data_parallel_size": 2}
    assert parse_command_line("annotate", words) == {"engine": "vllm", "vllm": vllm}


def test_the_engine_is_identity_and_where_vllm_is_found_is_not():
    generating = {name for name, stage in stages().items() if "engine" in stage.keys}
    assert generating == {"annotate", "rejection_sampling", "evaluate_policy"}
    for name in generating:
        keys = stages()[name].keys
        assert (keys["engine"].role, keys["engine"].default) == ("identity", "transformers")
        assert keys["vllm"].role == "runtime"


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Callable[..., Any]:
    """recipe("key=value"): a recipe beside an environment, and its steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.touch(0o755)
    (tmp_path / "scores.py").write_text("def score(prompt, answer, ended):\n    return 0\n")
    write_jsonl(tmp_path / "chats.jsonl", [{"prompt": "q", "completion": "a"}])
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nrounds: 1\nbase_model: acme/base\nlaunch: {device: cpu}\ndata: {instructions: chats.jsonl}\n"
        "annotate: {annotator_function: 'scores:score'}\nevaluate_policy: {judge_function: 'scores:score'}\n"
        "defaults: {vllm: {python: venv/bin/python}}\nrejection_sampling: {engine: vllm}\n"
    )

    def load(*settings: str) -> Any:
        loaded = load_recipe(tmp_path / "mine.yaml", settings)
        return loaded, {step.name: step for step in make_plan(loaded)}

    return load


def test_a_recipe_says_it_by_section_and_finds_the_interpreter_beside_itself(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    _, steps = recipe()
    sampling, annotate = steps["round-1.rejection_sampling"], steps["round-1.annotate"]
    python = str(tmp_path / "venv" / "bin" / "python")
    assert sampling.keys["engine"] == "vllm" and sampling.keys["vllm"] == {"python": python}
    assert "engine" not in annotate.keys and annotate.keys["vllm"] == {"python": python}
    assert "vllm" not in steps["round-1.dpo"].keys
    _, steps = recipe("rejection_sampling.vllm={python: /x, tensor_parallel_size: 2}")
    assert steps["round-1.rejection_sampling"].keys["vllm"] == {"python": "/x", "tensor_parallel_size": 2}


def test_another_engine_is_another_step_and_another_interpreter_is_not(recipe, tmp_path):
    def fingerprints(*settings: str) -> dict[str, str | None]:
        _, steps = recipe(*settings)
        made = identities(list(steps.values()), hashes=FileHashes(tmp_path / "hashes"), function_folder=tmp_path)
        return {name: identity.fingerprint for name, identity in made.items()}

    plain = fingerprints("rejection_sampling.engine=transformers")
    by_vllm = fingerprints()
    changed = {name for name in plain if plain[name] != by_vllm[name]}
    assert "round-1.rejection_sampling" in changed and "round-1.sft" in changed
    assert not {"prepare_data", "round-0.sft", "round-1.annotate"} & changed
    assert fingerprints("rejection_sampling.vllm={python: /other, tensor_parallel_size: 4}") == by_vllm


def test_an_interpreter_that_is_not_there_is_found_before_anything_is_launched(recipe, tmp_path):
    check_machine(recipe()[0], list(recipe()[1].values()))
    loaded, steps = recipe("rejection_sampling.vllm={python: gone/python}")
    with pytest.raises(ConfigError) as error:
        check_machine(loaded, list(steps.values()))
    assert str(error.value) == (
        f"{tmp_path}/mine.yaml: rejection_sampling.vllm.python='gone/python' is no program here: give the interpreter "
        "of the environment that vLLM is installed in, as in /opt/vllm/bin/python"
    )
    loaded, steps = recipe("rejection_sampling.vllm={python: gone/python}", "rejection_sampling.launch.wrapper=sh")
    check_machine(loaded, list(steps.values()))


# -- the real one -----------------------------------------------------------------------------------------------------

REAL = os.environ.get("ALIGNLOOP_TEST_VLLM", "")
needs_vllm = pytest.mark.skipif(not REAL, reason="ALIGNLOOP_TEST_VLLM names no interpreter with vLLM")


def draw_for_real(folder: Path, model: Path, **keys: Any) -> list[list[Answer]]:
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "seed": 5,
        "max_new_tokens": 24,
        "generation_batch_size": 6,
        "engine": "vllm",
        "use_cpu": True,
        "vllm": {"python": REAL, "gpu_memory_utilization": 0.1},
        **keys,
    }
    stage = Stage("test", folder, {}, Tracker(folder, active=False), is_main=True)
    asked = [(prompt, None) for prompt in PROMPTS]
    return sample_in_turn(stage, [str(model)], asked, GenerationArguments(**given), num_answers=3, purpose="p")


@pytest.fixture(scope="module")
def model_for_vllm(tokenizer, tmp_path_factory) -> Path:
    """Heads of 32: vLLM's attention takes none of 16 on a CPU without AVX-512."""
    return tiny_llama(tokenizer, tmp_path_factory.mktemp("vllm") / "model", hidden_size=64)


@needs_vllm
def test_a_real_vllm_gives_the_same_bits_again_and_after_a_restart(model_for_vllm, tokenizer, tmp_path):
    answers = draw_for_real(tmp_path / "a" / "a", model_for_vllm)
    assert len({answer.text for own in answers for answer in own}) > 10
    for answer in (answer for own in answers for answer in own):
        assert answer.ended == (answer.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in answer.ids[:-1]
        assert answer.ended or len(answer.ids) == 24
    first = tmp_path / "b" / "b"
    assert draw_for_real(first, model_for_vllm) == answers
    (journal,) = (first / "checkpoints").glob("answers-0-*")
    for number in (1, 2):
        (journal / f"{number}.json").unlink()
    assert draw_for_real(first, model_for_vllm) == answers


@needs_vllm
def test_a_real_vllm_takes_the_most_probable_tokens_at_temperature_0(model_for_vllm, tmp_path):
    import torch

    answers = draw_for_real(tmp_path, model_for_vllm, temperature=0.0, dtype="float32")
    model, tokenizer = load_causal(str(model_for_vllm), dtype="float32").eval(), load_tokenizer(str(model_for_vllm))
    for prompt, own in zip(PROMPTS, answers, strict=True):
        assert own[0] == own[1] == own[2]
        ids, answer = encode_prompt(tokenizer, prompt.prompt), own[0].ids
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        chosen_T = logits_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert float((logits_TV.max(dim=1).values - chosen_T).max()) < 1e-3


@needs_vllm
def test_a_model_that_a_real_vllm_does_not_take_is_one_line(tiny_model, tmp_path):
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError) as error:
        draw_for_real(tmp_path / "out", tmp_path)
    assert str(error.value).startswith(f"vLLM does not take {tmp_path} (") and "\n" not in str(error.value)
