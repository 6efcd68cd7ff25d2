"""Recipes are typed and layered by section and round. Every mistake is an error of one line before a launch."""

from pathlib import Path

import pytest

from data_schemas.errors import ConfigError, DataError, UserError
from pipeline.launch import machine
from pipeline.launch.checks import check_recipe
from pipeline.launch.machine import check_machine
from pipeline.plan import make_plan
from pipeline.recipe.schema import load_recipe
from tests.pipeline.fake_stages import build_inputs


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return build_inputs(tmp_path / "work")


def checked(recipe_file: Path, *overrides: str):
    recipe = load_recipe(recipe_file, overrides)
    steps = make_plan(recipe)
    check_recipe(recipe, steps)
    check_machine(recipe, steps)
    return recipe, steps


def test_paths_are_found_in_the_working_directory_first_then_beside_the_recipe(recipe_file, monkeypatch):
    assert load_recipe(recipe_file).section("data").keys["preferences"] == [str(recipe_file.parent / "pairs.jsonl")]
    (Path.cwd() / "pairs.jsonl").write_text("{}")
    assert load_recipe(recipe_file).section("data").keys["preferences"] == [str(Path.cwd() / "pairs.jsonl")]


def test_the_run_folder_is_relative_to_the_working_directory(recipe_file):
    assert load_recipe(recipe_file).folder == Path.cwd() / "runs" / "toy"


def test_overrides_are_typed_yaml_on_dotted_keys_and_reach_rounds_and_launch(recipe_file):
    recipe = load_recipe(
        recipe_file,
        ["dpo.beta=0.2", "sft.learning_rate=1e-5", "by_round.2.dpo.beta=0.3", "dpo.launch.num_processes=4", "seed=7"],
    )
    assert recipe.section("dpo", 1).keys["beta"] == 0.2
    assert recipe.section("dpo", 2).keys["beta"] == 0.3
    assert recipe.section("sft").keys["learning_rate"] == 1e-5  # YAML reads 1e-5 as text
    assert recipe.section("dpo", 1).launch.model_dump() == {
        "profile": "single",
        "num_processes": 4,
        "device": "cpu",
        "num_machines": 1,
        "wrapper": None,
        "main_process_ip": None,
        "main_process_port": None,
        "devices": None,
        "grace_seconds": 0.5,
        "warm": True,
        "gpu": None,
        "price_per_gpu_hour": None,
    }
    assert recipe.section("annotate").keys["seed"] == 7


def test_defaults_reach_exactly_the_stages_that_know_the_key_and_sections_win(recipe_file):
    recipe = load_recipe(recipe_file, ["defaults.max_length=64", "dpo.max_length=32"])
    assert recipe.section("sft").keys["max_length"] == 64
    assert recipe.section("dpo").keys["max_length"] == 32
    assert "max_length" not in recipe.section("annotate").keys


def test_the_judge_takes_the_reward_models_keys_under_its_own(recipe_file):
    recipe = load_recipe(
        recipe_file, ["reward_model.learning_rate=0.5", "reward_model.max_length=9", "judge.max_length=8"]
    )
    assert recipe.section("judge").keys == {"seed": 0, "report_to": "none", "learning_rate": 0.5, "max_length": 8}


def test_stages_that_generate_run_outside_zero_unless_their_own_section_sets_it(recipe_file):
    recipe = load_recipe(recipe_file, ["launch={profile: zero3, num_processes: 2, device: cpu}"])
    assert recipe.section("dpo").launch.profile == "zero3"
    assert recipe.section("rejection_sampling").launch.profile == "ddp"
    assert (recipe.section("data").launch.profile, recipe.section("data").launch.num_processes) == ("single", 1)
    recipe = load_recipe(recipe_file, ["launch.profile=zero3", "annotate.launch.profile=zero2"])
    assert recipe.section("annotate").launch.profile == "zero2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rouns=3", "unknown key 'rouns'; did you mean 'rounds'?"),
        ("dpo.betta=1", "dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
        ("by_round.1.dpo.betta=1", "by_round.1.dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
        ("defaults.max_lenth=3", "defaults: unknown key 'max_lenth': no stage has it; did you mean 'max_length'?"),
        ("launch.profil=ddp", "unknown key 'launch.profil'; did you mean 'profile'?"),
        ("sft.launch.profil=ddp", "sft.launch: unknown key 'profil'; did you mean 'profile'?"),
        ("sft.launch=ddp", "sft.launch='ddp': expected a mapping, as in {num_processes: 2}"),
        ("data.launch.num_processes=2", "data.launch: this stage is always one process"),
        ("sft.max_length=2.5", "sft: max_length=2.5 is a number, expected nothing (null) | int"),
        ("rounds=two", "rounds='two': expected an integer"),
        ("round_stages=[dpo, sft]", "round_stages=['dpo', 'sft']: the order is fixed; try [sft, dpo]"),
        ("round_stages=[sft, sft]", "round_stages=['sft', 'sft']: sft is there more than once"),
        (
            "round_stages=[annotate, dpo, reward_model, rejection_sampling, sft]",
            "the order is fixed; try [annotate, reward_model, rejection_sampling, sft, dpo] or "
            "[annotate, reward_model, dpo, rejection_sampling, sft]",
        ),
        (
            "round_stages=[evaluate_policy]",
            "round_stages.0='evaluate_policy': expected 'annotate', 'reward_model'",
        ),
        (
            "annotate.annotator_models=[a/b]",
            "annotate: annotator_function and annotator_models are both given; set one",
        ),
        ("evaluate_policy.judge_model=a/b", "evaluate_policy: judge_function and judge_model are both given; set one"),
        ("rounds=-1", "rounds=-1: expected 0 or more"),
        ("human_share=1.5", "human_share=1.5: expected 1 or less"),
        ("name=a/b", "name='a/b': expected text that matches"),
        ("by_round.3.dpo.beta=1", "by_round.3: the run has rounds 0 to 2"),
        ("by_round.1.pretrain.seed=1", "by_round.1.pretrain: pretrain runs once, before the rounds"),
        ("by_round.1.evaluate_policy.seed=1", "by_round.1.evaluate_policy: all policies are judged the same way"),
        ("by_round.1.dpoo.beta=1", "did you mean 'dpo'?"),
        ("name.x=1", "--set name.x=1: name is not a section"),
        ("dpo.beta", "--set dpo.beta: expected key=value, as in --set dpo.beta=0.2"),
        ("dpo.use_cpu=true", "dpo.use_cpu is set by the plan; set launch: {device: cpu}"),
        ("dpo.train_data=[a]", "dpo.train_data is set by the plan; leave it out"),
        ("annotate.round=3", "annotate.round is set by the plan; leave it out"),
        ("data.preferences=gone.jsonl", "data.preferences='gone.jsonl' does not exist, neither in"),
        ("data.preferences=chats.jsonl", "chats.jsonl has the columns messages; expected "),
        ("base_model=gone", "base_model='gone' does not exist, neither in"),
        ("base_model=null", "base_model is missing; give a folder or a hub name, or a section pretrain"),
        ("prepare_base.chat_template=gone.jinja", "prepare_base.chat_template='gone.jinja' does not exist"),
        (
            "data.instructions=null",
            "data.instructions is missing; give it, or data.preferences with chosen_as_instructions > 0",
        ),
        ("evaluate_policy.judge_function=null", "data.judge_share is 0, but without evaluate_policy.judge_function"),
        ("launch.num_processes=2", "launch: num_processes=2 with profile single; try profile: ddp"),
        ("launch.num_machines=2", "launch: num_machines=2 with profile single; try profile: zero3"),
        (
            "launch={profile: ddp, num_machines: 2, num_processes: 3, device: cpu}",
            "launch: num_processes=3 counts the processes of all machines; expected a multiple of num_machines=2",
        ),
        (
            "launch={profile: ddp, num_machines: 2, num_processes: 4, device: cpu}",
            'launch: wrapper is missing; give a command that starts another on every machine, as in "srun --nodes=2',
        ),
        (
            "launch={profile: ddp, num_machines: 2, num_processes: 4, device: cpu, wrapper: srun}",
            "launch: main_process_ip is missing; give the address of machine 0, as in --set",
        ),
        (
            "dpo={global_batch_size: 10, per_device_train_batch_size: 4}",
            "dpo.global_batch_size=10 is not a multiple of per_device_train_batch_size x num_processes = 4 x 1; try 12",
        ),
        (
            "dpo={global_batch_size: 9, launch: {profile: ddp, num_processes: 2}}",
            "dpo.global_batch_size=9 cannot be divided among 2 processes; try 10",
        ),
    ],
)
def test_a_users_mistake_is_one_line_with_a_hint(recipe_file, override, message):
    with pytest.raises(UserError) as error:
        checked(recipe_file, override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_boolean_in_place_of_a_number_is_not_asked_to_be_text(recipe_file):
    with pytest.raises(ConfigError, match=r"rounds=True: expected an integer$"):
        checked(recipe_file, "rounds=true")
    with pytest.raises(ConfigError, match=r"name=True: expected text; YAML reads an unquoted yes, on or true"):
        checked(recipe_file, "name=on")


def test_rl_runs_as_ddp_beside_other_stages_under_fsdp2(recipe_file, monkeypatch):
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    stages = "round_stages=[annotate, reward_model, rl]"
    _, steps = checked(recipe_file, "launch={profile: fsdp2, num_processes: 2}", stages, "rl.launch.profile=ddp")
    profiles = {step.stage: step.launch.profile for step in steps}
    assert (profiles["rl"], profiles["reward_model"], profiles["annotate"]) == ("ddp", "fsdp2", "ddp")


def test_without_an_annotator_or_a_judge_nothing_starts(recipe_file):
    no_pairs = "data.preferences=null"
    with pytest.raises(ConfigError, match=r"annotate\.annotator_function or data\.preferences is missing"):
        checked(recipe_file, no_pairs, "annotate.annotator_function=null")
    with pytest.raises(ConfigError, match=r"judge_function, judge_model or data\.preferences is missing"):
        checked(recipe_file, no_pairs, "evaluate_policy.judge_function=null")


def test_an_optimised_reward_model_is_no_judge(recipe_file):
    judge = "evaluate_policy={judge_function: null, judge_model: acme/judge}"
    annotators = "annotate={annotator_function: null, annotator_models: [acme/reward]}"
    checked(recipe_file, judge, annotators)
    with pytest.raises(ConfigError, match="judge_model='acme/judge' is optimised in round 2"):
        checked(recipe_file, judge, annotators, "by_round.2.annotate.annotator_models=[acme/reward, acme/judge]")


def test_only_keys_that_the_rounds_read_are_required(recipe_file):
    online = ("round_stages=[annotate, dpo]", "first_sft=false")
    checked(recipe_file, *online, "data.instructions=null")
    with pytest.raises(ConfigError, match=r"data\.prompts is missing; no other data has prompts to answer"):
        checked(recipe_file, *online, "data={}")
    checked(recipe_file, *online, "data={prompts: chats.jsonl}")


def test_a_model_folder_is_checked(recipe_file):
    base = recipe_file.parent / "base"
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"has no chat template; give one, as in prepare_base: \{chat_template"):
        checked(recipe_file)
    checked(recipe_file, "prepare_base.chat_template=chatml")
    (base / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    checked(recipe_file)
    (base / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="has no tokenizer; expected one of"):
        checked(recipe_file)
    (base / "config.json").unlink()
    with pytest.raises(DataError, match=r"has no config\.json; expected a model folder"):
        checked(recipe_file)


def test_a_hub_name_is_accepted_but_not_a_missing_path_below_an_existing_folder(recipe_file):
    recipe, _ = checked(recipe_file, "base_model=some-owner/some-model")
    assert recipe.base_model == "some-owner/some-model"
    (Path.cwd() / "models").mkdir()
    with pytest.raises(ConfigError, match="does not exist"):
        checked(recipe_file, "base_model=models/gone")


def test_a_gpu_profile_needs_a_gpu_and_cpu_use_is_reported(recipe_file, monkeypatch):
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    with pytest.raises(ConfigError, match=r"to use the CPU, set launch: \{device: cpu\} in the recipe"):
        checked(recipe_file, "launch.device=gpu")
    with pytest.raises(ConfigError, match=r"dpo\.launch: this machine has no GPU"):
        checked(recipe_file, "dpo.launch.device=gpu")
    checked(recipe_file, "launch={wrapper: env A=1}")  # the run's machine is another one
    with pytest.raises(ConfigError, match="launch: wrapper: the command 'srum' is not found on this machine"):
        checked(recipe_file, "launch={wrapper: srum -N1}")
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    checked(recipe_file, "launch.device=gpu")


def test_hidden_gpus_are_no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.has_gpu()


def test_a_recipe_that_is_not_yaml_or_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2:2 is not YAML"):
        load_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (
            "{devices: [0], num_processes: 2, profile: ddp}",
            r"launch\.devices=\[0\]: expected at least num_processes=2 different",
        ),
        ("{devices: [0, 0]}", r"launch\.devices=\[0, 0\]: expected at least num_processes=1 different numbers"),
        ("{devices: []}", r"launch\.devices=\[\]: expected at least num_processes=1 different"),
        ("{devices: [0, 9]}", r"launch\.devices=\[0, 9\]: the available cores are 0, 1, 2, 3$"),
        (
            "{devices: [0, 9], device: gpu}",
            r"launch\.devices=\[0, 9\]: the available GPUs in CUDA_VISIBLE_DEVICES are 0, 1$",
        ),
        ("{devices: 2}", r"launch: devices=2: expected a list"),
    ],
)
def test_devices_that_are_not_there_are_refused_before_launch(recipe_file, monkeypatch, launch, message):
    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match=message):
        checked(recipe_file, f"dpo.launch={launch}")
    checked(
        recipe_file, "dpo.launch={devices: [1, 3]}", "launch={devices: [0, 1], device: gpu}", "dpo.launch.device=cpu"
    )


def test_a_file_of_unknown_columns_names_the_command_that_shows_what_to_write(recipe_file, tmp_path):
    (tmp_path / "my rows.jsonl").write_text('{"Q": "a", "A": "b"}\n')
    setting = f"data.instructions={tmp_path / 'my rows.jsonl'}"
    with pytest.raises(DataError) as raised:
        checked(recipe_file, setting)
    assert str(raised.value).endswith(f"; `alignloop data '{tmp_path / 'my rows.jsonl'}'` shows what to write")
    (tmp_path / "my rows.jsonl").write_text("")
    with pytest.raises(DataError) as raised:
        checked(recipe_file, setting)
    assert "alignloop data" not in str(raised.value)
