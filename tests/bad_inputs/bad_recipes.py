"""Bad recipes, given to `alignloop plan`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.launch import node
from tests.bad_inputs.cases import Call, Case, Place, exit_code

NO_ROUNDS = ("rounds=null",)
NO_PAIRS = "data={instructions: chats.jsonl}"
NO_ANNOTATOR = "annotate={}"
MACHINES = "profile: ddp, num_machines: 2, device: cpu"
# Settings of a valid recipe, and the error for the last one. SET stands for `error: --set` and that setting.
SETTINGS: list[tuple[str | tuple[str, ...], str]] = [
    # -- the content of a recipe
    ("rouns=3", "SET: unknown key 'rouns'; did you mean 'rounds'?"),
    ("path=elsewhere", "SET: unknown key 'path'"),
    (
        "on_bad_row=set_aside",
        "SET: unknown key 'on_bad_row'; it is a key of the sections data (of the stage prepare_data), pretrain,",
    ),
    ("name=null", "SET: name=None: expected text"),
    ("name=a/b", "SET: name='a/b': expected text that matches"),
    ("output_dir=toy.yaml", "toy.yaml is a file; expected a folder, or a path where one can be made"),
    ("output_dir=toy.yaml/runs", "toy.yaml is a file; expected a folder, or a path where one can be made"),
    ("rounds=two", "SET: rounds='two': expected an integer"),
    ("rounds=-1", "SET: rounds=-1: expected 0 or more"),
    ("human_share=-0.1", "SET: human_share=-0.1: expected 0 or more"),
    ("human_share=1.5", "SET: human_share=1.5: expected 1 or less"),
    ("dpo_batches=0", "SET: dpo_batches=0: expected 1 or more"),
    ("dpo_batch_decay=0", "SET: dpo_batch_decay=0: expected a number above 0"),
    ("dpo_batch_decay=1.5", "SET: dpo_batch_decay=1.5: expected 1 or less"),
    ("average_with_best=1", "SET: average_with_best=1: expected a number below 1"),
    ("average_with_best=-0.5", "SET: average_with_best=-0.5: expected 0 or more"),
    ("rejection_sampling.vote=worst", "rejection_sampling: vote=worst has one reward model to ask; list several, wh"),
    ("annotate.prompt_order=hardest_first", "prompt_order: hardest_first has nothing to choose where all prompts are"),
    ("sft_batches=0", "SET: sft_batches=0: expected 1 or more"),
    ("sft_batches=1001", "sft_batches=1001: expected 1000 or less"),
    (
        "reward_model_from=sft",
        "reward_model_from='sft' does not exist, neither in HERE nor beside the recipe; expected ",
    ),
    (
        "reward_model_from=",
        "--set reward_model_from=: the value is empty; leave it out, or, where the key may be nothing, write reward",
    ),
    ("reward_model_from=toy.yaml", "reward_model_from=HERE/toy.yaml is a file, expected a model folder"),
    ("sft_from=worst", "SET: sft_from='worst': expected 'base' or 'best'"),
    ("dpo=[1]", "SET: dpo=[1]: expected a mapping"),
    ("dpo={1: 2}", "SET: dpo.1=1: expected text"),
    ("{}=3", "SET: unknown key '{}'"),
    ("round_stages=[dpo, sft]", "SET: round_stages=['dpo', 'sft']: the order is fixed; try [sft, dpo]"),
    ("round_stages=[evaluate_policy]", "SET: round_stages.0='evaluate_policy': expected 'annotate',"),
    ("by_round=[dpo]", "SET: by_round=['dpo']: expected a mapping"),
    ("by_round.one.dpo.beta=1", "SET: by_round.one='one': expected an integer"),
    ("by_round.1.dpoo.beta=1", "SET: by_round.1.dpoo='dpoo': expected 'data', 'curate', 'paraphrase',"),
    ("by_round.3.dpo.beta=1", "SET: by_round.3: the run has rounds 0 to 2"),
    ("by_round.1.pretrain.seed=1", "SET: by_round.1.pretrain: pretrain runs once, before the rounds"),
    ("by_round.1.evaluate_policy.seed=1", "SET: by_round.1.evaluate_policy: all policies are judged the same way"),
    ("dpo.betta=1", "SET: dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
    ("by_round.1.dpo.betta=1", "SET: by_round.1.dpo: unknown key 'betta' of stage dpo; did you mean 'beta'?"),
    ("defaults.max_lenth=3", "defaults: unknown key 'max_lenth': no stage has it; did you mean 'max_length'?"),
    ("dpo.beta=high", "SET: dpo: beta='high' is text, expected float"),
    ("sft.max_length=2.5", "SET: sft: max_length=2.5 is a number, expected nothing (null) | int"),
    ("sft.on_bad_row=skip", "SET: sft: on_bad_row='skip' is not one of error, set_aside"),
    ("sft.keep=best_by_accuracy", "SET: sft: keep='best_by_accuracy' is not one of best_by_loss, last"),
    ("defaults.keep=best", "SET: defaults: keep='best' is not one of best_by_loss, last"),
    ("sft.seed=true", "SET: sft: seed=True is a boolean, expected int"),
    ("sft.seed=null", "SET: sft: seed=None is nothing, expected int"),
    ("data.make_data_arguments=[1]", "data: make_data_arguments=[1] is a list, expected nothing (null) | dict"),
    ("dpo.beta=0", "SET: dpo: beta=0.0: expected a number above 0"),
    ("dpo.use_cpu=true", "SET: dpo.use_cpu is set by the plan; set launch: {device: cpu}"),
    ("dpo.train_data=[a]", "SET: dpo.train_data is set by the plan; leave it out"),
    ("dpo.assistant_only_loss=true", "dpo: unknown key 'assistant_only_loss' of stage dpo"),
    # -- --set
    ("dpo.beta", "--set dpo.beta: expected key=value, as in --set dpo.beta=0.2"),
    ("evaluate_policy.rubric=", "evaluate_policy.rubric=: the value is empty; leave it out, or, where the key may be"),
    ("evaluate_policy.rubric=' '", "SET: evaluate_policy: rubric=' ' is empty text; leave the key out"),
    (
        "curate.languages=en",
        "curate: languages='en' is text, expected nothing (null) | list[str]; write it as a list, as ",
    ),
    (
        "curate.languages=[en, no]",
        "and its item 2, False, is a boolean, expected nothing (null) | list[str]; YAML reads an unquoted no",
    ),
    ("name=[", "--set name=[: the value is not YAML; put it in quotes"),
    ("name=2024-01-31", "expected text; YAML reads an unquoted date as a date, not as text: write it"),
    ("seed=017", "--set seed=017: YAML reads '017' as the number 15; write it as a decimal number, or in quotes"),
    ("name=2024-13-45", "--set name=2024-13-45: the value is not YAML; put it in quotes"),
    ("name.x=1", "--set name.x=1: name is not a section"),
    # -- variants
    ("sft.variants={seed: 1}", "sft.variants={'seed': 1}: expected a list of mappings, as in [{seed: 1}, {seed: 2}]"),
    ("sft.variants=[]", "sft.variants=[]: expected a list of mappings, as in [{seed: 1}, {seed: 2}]"),
    ("sft.variants=[{seeed: 1}, {}]", "sft.variants.1: unknown key 'seeed' of stage sft; did you mean 'seed'?"),
    ("sft.variants=[{}, {eos_token: x}]", "sft.variants.2.eos_token: all variants must have the same; set it in the"),
    ("sft.variants=[{launch: {}}]", "sft.variants.1.launch: a variant holds only keys of its stage; set"),
    ("sft.variants=[{human_share: 2}]", "sft.variants.1: human_share=2: expected 1 or less"),
    ("sft.average=greedy", "sft.average='greedy': expected a mapping, as in {weights: greedy}"),
    ("sft.average={weight: 1}", "sft.average: unknown key 'weight'; did you mean 'weights'?"),
    ("sft.average={method: mean}", "sft.average: method='mean' is not one of linear, slerp"),
    ("sft.average={weights: greedy}", "sft.average: there is nothing to average; list two models or more as"),
    (
        ("sft.variants=[{seed: 1}, {seed: 2}]", "sft.average={weights: [1]}"),
        "sft.average: 1 weights for 2 models; give one for each",
    ),
    ("annotate.variants=[{}, {}]", "annotate: unknown key 'variants' of stage annotate"),
    # -- how it is launched
    ("launch=cpu", "SET: launch='cpu': expected a mapping"),
    ("launch.profil=ddp", "SET: unknown key 'launch.profil'; did you mean 'profile'?"),
    ("launch.profile=zero4", "SET: launch.profile='zero4': expected 'single', 'ddp',"),
    ("launch.num_processes=0", "SET: launch.num_processes=0: expected 1 or more"),
    ("launch.num_machines=0", "SET: launch.num_machines=0: expected 1 or more"),
    ("launch.grace_seconds=-1", "SET: launch.grace_seconds=-1: expected 0 or more"),
    ("launch.price_per_gpu_hour=-1", "SET: launch.price_per_gpu_hour=-1: expected 0 or more"),
    ("sft.launch=ddp", "SET: sft.launch='ddp': expected a mapping, as in {num_processes: 2}"),
    ("sft.launch.profil=ddp", "SET: sft.launch: unknown key 'profil'; did you mean 'profile'?"),
    ("data.launch.num_processes=2", "SET: data.launch: this stage is always one process"),
    ("launch.num_processes=2", "launch: num_processes=2 with profile single; try profile: ddp"),
    ("launch.profile=fsdp2", "launch: profile fsdp2 needs GPUs, since accelerate runs it as ddp on a CPU; use profile"),
    ("launch.num_machines=2", "launch: num_machines=2 with profile single; try profile: zero3"),
    (
        f"launch={{{MACHINES}, num_processes: 3}}",
        "launch: num_processes=3 counts the processes of all machines; expected a multiple of",
    ),
    (
        f"launch={{{MACHINES}, num_processes: 4}}",
        "launch: wrapper is missing; give a command that starts another on every machine, as",
    ),
    (
        f"launch={{{MACHINES}, num_processes: 4, wrapper: srun}}",
        "launch: main_process_ip is missing; give the address of",
    ),
    ("dpo.launch={devices: [0, 0]}", "dpo.launch.devices=[0, 0]: expected at least num_processes=1 different numbers"),
    ("dpo.launch={devices: []}", "dpo.launch.devices=[]: expected at least num_processes=1 different numbers"),
    ("dpo.launch={devices: [4711]}", "dpo.launch.devices=[4711]: the available cores are "),
    (
        "dpo={global_batch_size: 10, per_device_train_batch_size: 4}",
        "dpo.global_batch_size=10 is not a multiple of per_device_train_batch_size x num_processes = 4 x 1; try 12",
    ),
    # -- what the rounds need
    ("round_stages=[rejection_sampling, sft]", "round_stages: rejection_sampling has no reward model: add"),
    (("round_stages=[annotate, dpo]", NO_ANNOTATOR), "round_stages: annotate has no annotator: give"),
    ("round_stages=[annotate, sft]", "round_stages: nothing trains on the pairs of annotate: add dpo or reward_model,"),
    ("round_stages=[reward_model, rejection_sampling]", "round_stages: nothing trains on the winners of"),
    (
        ("round_stages=[annotate, dpo, rl]", "rl.reward_functions=[scores:missing]"),
        "SET: rl.reward_functions: scores:missing: HERE/scores.py defines no function 'missing'",
    ),
    ("round_stages=[sft, rl]", "round_stages: rl has no reward: add reward_model, or give rl.reward_model or"),
    (("round_stages=[sft]", "human_share=0"), "round_stages: sft has no rows: add rejection_sampling, or human_share"),
    ("round_stages_from={0: [dpo]}", "SET: round_stages_from.0: rounds begin with 1"),
    ("round_stages_from={2: [dpo, sft]}", "the order is fixed; try [sft, dpo]"),
    ("round_stages_from={2: [dppo]}", "SET: round_stages_from.2.0='dppo': expected 'annotate',"),
    ("round_stages_from=[dpo]", "SET: round_stages_from=['dpo']: expected a mapping"),
    ("round_stages_from={2: [reward_model]}", "round 2 trains no new policy: round_stages_from.2 has neither"),
    ("round_stages=[reward_model]", "round 1 trains no new policy: round_stages has neither rejection_sampling with"),
    ((NO_PAIRS, NO_ANNOTATOR), "annotate.annotator_function or data.preferences is missing: who compares answers?"),
    ((NO_PAIRS, "round_stages=[dpo]"), "data.preferences is missing: dpo has no pairs"),
    ("base_model=null", "base_model is missing; give a folder or a hub name, or a section pretrain"),
    (("base_model=null", "pretrain={architecture: {hidden_size: 8}}"), "data.documents is missing; pretrain needs"),
    (
        "data.instructions=null",
        "data.instructions is missing; give it, or data.preferences with chosen_as_instructions > 0",
    ),
    (("round_stages=[annotate, dpo]", "first_sft=false", "data={}"), "data.prompts is missing; no other data has"),
    (
        (NO_PAIRS, "evaluate_policy={}"),
        "evaluate_policy.judge_function, judge_model or data.preferences is missing; one",
    ),
    (
        "evaluate_policy={}",
        "data.judge_share is 0, but without evaluate_policy.judge_function or judge_model the judge",
    ),
    (
        ("annotate={annotator_models: [acme/judge]}", "evaluate_policy={judge_model: acme/judge}"),
        "evaluate_policy.judge_model='acme/judge' is optimised in round 1, so its scores of later policies",
    ),
    # -- runs without rounds
    (
        (*NO_ROUNDS, "stages=[sft, evaluate_policy]", "data.preferences=null", "evaluate_policy={gate_max_kl: 3}"),
        "gate_max_kl is given without a judge; expected judge_function, judge_model or judge_llm, which compares the",
    ),
    ("stages=[sft]", "rounds is a key of the rounds, and a recipe with `stages` has none; leave one of them out"),
    (
        (*NO_ROUNDS, "stages=[sfft]"),
        "'sfft' is not one of pretrain, reward_model, sft, dpo, rl, evaluate_tasks, evaluate_po",
    ),
    ((*NO_ROUNDS, "stages=[sft, sft]"), "sft is listed twice; a run without rounds runs each stage once"),
    ((*NO_ROUNDS, "stages=[]"), "no stage that trains; try [sft]"),
    ((*NO_ROUNDS, "stages=[sft]", "data.instructions=null"), "data.instructions is missing; sft needs conversations"),
    ((*NO_ROUNDS, "stages=[dpo]", NO_PAIRS), "data.preferences is missing; dpo needs preference pairs"),
    (
        (*NO_ROUNDS, "stages=[rl]", "data={}", "rl={reward_functions: 'scores:score'}"),
        "data.prompts is missing; rl needs prompts to answer",
    ),
    ((*NO_ROUNDS, "stages=[rl]", "rl={}"), "toy.yaml: rl: reward_model or reward_functions is missing: nothing scores"),
    (
        ("round_stages=[rl]", "rl={reward_functions: [scores:gold]}"),
        "scores:gold: HERE/scores.py defines no function 'gold'",
    ),
    (
        (*NO_ROUNDS, "stages=[pretrain]", "base_model=null", "pretrain={}", "data.documents=chats.jsonl"),
        "base_model is missing (or pretrain.architecture, for random weights)",
    ),
    ((*NO_ROUNDS, "stages=[sft]"), "the section annotate is not used: no step of this recipe runs it; add its stage"),
    # -- limits of the settings
    ("rounds=1001", "rounds=1001: expected 1000 or less"),
    ("seed=-1", "seed=-1: expected 0 or more"),
    ("seed=4294967296", "seed=4294967296: expected 4294967295 or less"),
    ("launch.num_processes=100001", "launch.num_processes=100001: expected 100000 or less"),
    ("launch.num_machines=100001", "launch.num_machines=100001: expected 100000 or less"),
    ("launch.main_process_port=0", "launch.main_process_port=0: expected 1 or more"),
    ("launch.main_process_port=65536", "launch.main_process_port=65536: expected 65535 or less"),
    ("launch.grace_seconds=1000001", "launch.grace_seconds=1000001: expected 1000000 or less"),
    (
        "launch.price_per_gpu_hour=10000000.0",
        "price_per_gpu_hour=10000000.0: expected 1000000 or less",
    ),
    ("dpo_batches=1001", "dpo_batches=1001: expected 1000 or less"),
    # -- the files and models it names
    ("data.preferences=gone.jsonl", "data.preferences='gone.jsonl' does not exist, neither in HERE nor beside the"),
    ("base_model=gone", "base_model='gone' does not exist, neither in HERE nor beside the recipe"),
    ("base_model=chats.jsonl", "base_model=HERE/chats.jsonl is a file, expected a model folder"),
    ("prepare_base.chat_template=gone.jinja", "prepare_base.chat_template='gone.jinja' does not exist"),
    ("evaluate_policy.judge_function=scores", "'scores' is no function: expected module:function, as in"),
    ("evaluate_policy.judge_function=.a:b", "'.a:b' is no function: expected module:function, as in my_scores:score"),
    ("evaluate_policy.judge_function=gone:score", "'gone:score': no module 'gone' beside the recipe (HERE) or"),
    ("evaluate_policy.judge_function=scores:gold", "scores:gold: HERE/scores.py defines no function 'gold'"),
]


def of_settings(settings: str | tuple[str, ...], says: str) -> Case:
    chosen = (settings,) if isinstance(settings, str) else settings
    says = says.replace("SET: ", f"error: --set {chosen[-1]}: ")
    return Case(f"recipe {' '.join(chosen)}", lambda place: place.alignloop("plan", *place.recipe(*chosen)), says)


# The bytes of a recipe, and the error.
FILES: list[tuple[str, bytes, str]] = [
    ("not YAML", b"a: [1\nb: 2", "bad.yaml:2:2 is not YAML: expected ',' or ']', but got ':'"),
    (
        "not YAML's characters",
        b"name: a\0b",
        "bad.yaml is not YAML: unacceptable character #x0000: special characters",
    ),
    ("no such day", b"name: 2024-13-45", "bad.yaml is not YAML: month must be in 1..12"),
    ("too deep", b"a: " + b"[" * 500, "bad.yaml is not YAML: "),
    ("a list", b"- 1", "bad.yaml holds a list, expected `key: value` lines"),
    ("Latin-1", b"name: caf\xe9", "bad.yaml cannot be read (UnicodeDecodeError)"),
    ("empty", b"", "bad.yaml: name is missing"),
    ("a key that is no text", b"1: 2\nname: x", "bad.yaml: 1=1: expected text as the name of a key"),
]


def of_recipe_file(name: str, content: bytes, says: str) -> Case:
    def make(place: Place) -> Call:
        place.write("bad.yaml", content)
        return place.alignloop("plan", "bad.yaml")

    return Case(f"recipe that is {name}", make, says)


def base(spoil: Callable[[Path], Any]) -> Callable[[Place], Call]:
    """A recipe with a damaged base model."""

    def make(place: Place) -> Call:
        words = place.recipe()
        spoil(place.folder / "base")
        return place.alignloop("plan", *words)

    return make


def spoiled(name: str, content: Any, *settings: str, command: str = "plan") -> Callable[[Place], Call]:
    """A file of a recipe's folder."""

    def make(place: Place) -> Call:
        words = place.recipe(*settings)
        place.write(name, content)
        return place.alignloop(command, *words)

    return make


def with_reward_model(
    *settings: str, architecture: str = "LlamaForSequenceClassification", others: dict[str, str] | None = None
) -> Callable[[Place], Call]:
    """A model folder `rewards` of an architecture, and what it holds besides."""

    def make(place: Place) -> Call:
        words = place.recipe(*settings)
        place.write("rewards/config.json", {"model_type": "llama", "architectures": [architecture]})
        for name, content in (others or {}).items():
            place.write(f"rewards/{name}", content)
        return place.alignloop("plan", *words)

    return make


OTHERS = ("rejection_sampling.vote=mean", "rejection_sampling.other_reward_models=[rewards]")


def no_gpu(place: Place) -> Call:
    return place.alignloop("run", *place.recipe("launch.device=gpu"))


def of_hidden_gpus(place: Place) -> Call:
    place.patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return place.alignloop("plan", *place.recipe("dpo.launch={devices: [2], device: gpu}"))


def unnamed_machine(place: Place) -> Call:
    for name in node.RANKS:
        place.patch.delenv(name, raising=False)

    return lambda: exit_code(lambda: node.main("accelerate.yaml"))


CASES = [
    *(of_settings(*settings) for settings in SETTINGS),
    *(of_recipe_file(*file) for file in FILES),
    Case("recipe that is not there", lambda place: place.alignloop("plan", "gone.yaml"), "gone.yaml does not exist"),
    Case("recipe that is a folder", lambda place: place.alignloop("plan", "."), ". cannot be read (IsADirectoryError)"),
    Case(
        "template that is not text",
        spoiled("x.jinja", b"\xff", "prepare_base.chat_template=x.jinja"),
        "x.jinja is not UTF-8 text",
    ),
    Case(
        "module that is not Python",
        spoiled("scores.py", "def score(:\n"),
        "scores:score: HERE/scores.py:1 is not Python: invalid syntax",
    ),
    Case("module with a null byte", spoiled("scores.py", b"def score(): \0\n"), "scores:score: HERE/scores.py"),
    Case(
        "function without a name",
        lambda place: place.alignloop("plan", *place.recipe("annotate.annotator_function=scores")),
        "error: --set annotate.annotator_function=scores: annotate.annotator_function: 'scores' is no function: "
        "expected module:function",
    ),
    Case(
        "base model with a long name",
        lambda place: place.alignloop("plan", *place.recipe(f"base_model={'x' * 300}")),
        "is too long for a path: expected at most 255 bytes for each name and 4095 in all",
    ),
    Case(
        "base model with a null character",
        lambda place: place.alignloop("plan", *place.recipe('base_model="a\\0b"')),
        "base_model='a\\x00b': contains a null character; remove it",
    ),
    Case(
        "base without a config",
        base(lambda base: (base / "config.json").unlink()),
        "base_model=HERE/base has no config.json; expected a model folder",
    ),
    Case(
        "base with a config that is a list",
        base(lambda base: (base / "config.json").write_text("[]")),
        "base_model=HERE/base: config.json is not a JSON object; expected a model's configuration",
    ),
    Case(
        "base of no known type",
        base(lambda base: (base / "config.json").write_text('{"model_type": "qwen33"}')),
        "config.json: model_type='qwen33' is no type of model that the installed transformers knows; did you mean",
    ),
    Case(
        "base without a type",
        base(lambda base: (base / "config.json").write_text("{}")),
        "base_model=HERE/base: config.json has no model_type; expected the type of its architecture, as llama",
    ),
    Case(
        "base with a million layers",
        base(lambda base: (base / "config.json").write_text('{"num_hidden_layers": 1000000}')),
        "config.json: num_hidden_layers=1000000: expected a number 1 or more, at most 10000",
    ),
    Case(
        "base without a tokenizer",
        base(lambda base: (base / "tokenizer.json").unlink()),
        "base_model=HERE/base has no tokenizer; expected one of tokenizer.json, tokenizer.model, vocab.json",
    ),
    Case(
        "base without a template",
        base(lambda base: (base / "chat_template.jinja").unlink()),
        "base_model=HERE/base has no chat template; give one, as in prepare_base: {chat_template: chatml}",
    ),
    Case(
        "reward model that is trained from a reward model",
        with_reward_model("reward_model_from=rewards"),
        "reward_model_from=HERE/rewards is a reward model already; name it as rejection_sampling.reward_model and",
    ),
    Case(
        "reward model without a score head",
        with_reward_model(*OTHERS, architecture="LlamaForCausalLM", others={"tokenizer.json": "{}"}),
        "rejection_sampling.other_reward_models=HERE/rewards is no reward model: its config.json has LlamaForCa",
    ),
    Case(
        "reward model without a template",
        with_reward_model(*OTHERS, others={"tokenizer.json": "{}"}),
        "rejection_sampling.other_reward_models=HERE/rewards has no chat template, in which a reward model rea",
    ),
    Case("GPU that is not there", no_gpu, "toy.yaml: launch: this machine has no GPU; to use the CPU, set launch"),
    Case(
        "GPU that is hidden",
        of_hidden_gpus,
        "dpo.launch.devices=[2]: the available GPUs in CUDA_VISIBLE_DEVICES are 0, 1",
    ),
    Case(
        "wrapper that is not there",
        lambda place: place.alignloop("run", *place.recipe("launch.wrapper=srum -N1")),
        "toy.yaml: launch: wrapper: the command 'srum' is not found on this machine",
    ),
    Case(
        "wrapper with an open quote",
        lambda place: place.alignloop("run", *place.recipe("launch.wrapper=a 'b")),
        "error: --set launch.wrapper=a 'b: launch.wrapper=\"a 'b\": No closing quotation",
    ),
    Case("machine without a number", unnamed_machine, "which machine is this? launch.wrapper must set ", 1),
]
