"""Bad keys of a stage started by hand: options, types, numbers beyond their limits, incompatible keys."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_schemas import key_rules
from data_schemas.stage_keys import REPLACED_KEYS, stages
from tests.bad_inputs.cases import Call, Case, Place

NEEDED = {
    "prepare_data": "",
    "pretrain": "--train_data t",
    "sft": "--train_data t",
    "reward_model": "--train_data t",
    "dpo": "--train_data t",
    "annotate": "--prompts p --policies m --annotator_function a:b",
    "rejection_sampling": "--prompts p --policies m --reward_model r",
    "evaluate_policy": "--prompts p --model_name_or_path m --judge_function a:b",
    "rl": "--train_data t --reward_functions a:b",
    "average_models": "--models a b --averaged_stage sft --eval_data e",
}
# stage, options after the required ones, the error after the stage's name
LIMITS = [
    ("annotate", "--temperature -0.1", "temperature=-0.1: expected a number 0 or more"),
    ("annotate", "--temperature inf", "temperature=inf: expected a number 0 or more"),
    ("annotate", "--top_p 0", "top_p=0.0: expected a number above 0, at most 1"),
    ("annotate", "--top_p 1.5", "top_p=1.5: expected a number above 0, at most 1"),
    ("annotate", "--max_new_tokens 0", "max_new_tokens=0: expected a number 1 or more"),
    ("annotate", "--generation_batch_size 0", "generation_batch_size=0: expected a number 1 or more"),
    ("annotate", "--num_answers 0", "num_answers=0: expected a number 1 or more"),
    ("annotate", "--num_prompts 0", "num_prompts=0: expected a number 1 or more"),
    ("annotate", "--num_validation_prompts -1", "num_validation_prompts=-1: expected a number 0 or more"),
    ("annotate", "--function_timeout 0", "function_timeout=0.0: expected a number above 0"),
    ("rejection_sampling", "--num_winners 0", "num_winners=0: expected a number 1 or more"),
    ("rejection_sampling", "--min_answer_tokens -1", "min_answer_tokens=-1: expected a number 0 or more"),
    ("rejection_sampling", "--max_answer_tokens 0", "max_answer_tokens=0: expected a number 1 or more"),
    ("evaluate_policy", "--gate_min_win_rate 1.1", "gate_min_win_rate=1.1: expected a number 0 or more, at most 1"),
    ("evaluate_policy", "--gate_max_length_growth 0", "gate_max_length_growth=0.0: expected a number above 0"),
    ("evaluate_policy", "--gate_max_unfinished -1", "gate_max_unfinished=-1.0: expected a number 0 or more, at most 1"),
    ("evaluate_policy", "--gate_max_tag_fall -1", "gate_max_tag_fall=-1.0: expected a number 0 or more"),
    ("evaluate_policy", "--gate_max_kl -1", "gate_max_kl=-1.0: expected a number 0 or more"),
    ("dpo", "--max_similarity 1.5", "max_similarity=1.5: expected a number 0 or more, at most 1"),
    ("dpo", "--beta 0", "beta=0.0: expected a number above 0"),
    ("rl", "--num_generations 1", "num_generations=1: expected a number 2 or more"),
    ("rl", "--beta -1", "beta=-1.0: expected a number 0 or more"),
    ("rl", "--kl_budget 0", "kl_budget=0.0: expected a number above 0"),
    ("rl", "--max_new_tokens", "unknown key 'max_new_tokens' of stage rl; did you mean 'max_completion_length'?"),
    ("rl", "--max_prompt_length", "unknown key 'max_prompt_length' of stage rl; did you mean 'max_prompt_tokens'?"),
    ("rl", "--use_vllm", "unknown key 'use_vllm' of stage rl"),
    ("sft", "--global_batch_size 0", "global_batch_size=0: expected a number 1 or more"),
    ("sft", "--per_device_train_batch_size 0", "per_device_train_batch_size=0: expected a number 1 or more"),
    ("sft", "--per_device_eval_batch_size 0", "per_device_eval_batch_size=0: expected a number 1 or more"),
    ("sft", "--patience 0", "patience=0: expected a number 1 or more"),
    ("sft", "--spike_sigma 0", "spike_sigma=0.0: expected a number above 0"),
    ("sft", "--learning_rate -1e-5", "learning_rate=-1e-05: expected a number above 0"),
    ("sft", "--learning_rate nan", "learning_rate=nan: expected a number above 0"),
    ("sft", "--weight_decay -0.1", "weight_decay=-0.1: expected a number 0 or more"),
    ("sft", "--max_length 0", "max_length=0: expected a number 1 or more"),
    ("sft", "--train_data_shares 0.5 2", "train_data_shares=[0.5, 2.0]: expected numbers 0 or more, at most 1"),
    ("sft", "--eval_data_shares -1", "eval_data_shares=[-1.0]: expected numbers 0 or more, at most 1"),
    ("pretrain", "--block_size 1", "block_size=1: expected a number 2 or more"),
    ("pretrain", "--vocab_size 0", "vocab_size=0: expected a number 1 or more"),
    ("pretrain", "--muon_learning_rate -1", "muon_learning_rate=-1.0: expected a number above 0"),
    ("prepare_data", "--chosen_as_instructions 2", "chosen_as_instructions=2.0: expected a number 0 or more, at most"),
    ("prepare_data", "--make_data_arguments {a", "make_data_arguments='{a' is text, expected nothing (null) | dict"),
    ("prepare_data", "--max_rows 0", "max_rows=0: expected a number 1 or more"),
    ("prepare_data", "--num_evaluation_prompts 0", "num_evaluation_prompts=0: expected a number 1 or more"),
]
TOGETHER = [
    ("annotate", "--annotator_models m", "annotator_function and annotator_models are both given; set one of them to"),
    ("annotate", "--annotator_function null", "annotator_function, annotator_models or annotator_llm is missing"),
    ("annotate", "--num_answers 1", "num_answers=1 is too few to compare answers of 1 policies; try 2"),
    ("annotate", "--policies a b c", "num_answers=2 is too few to compare answers of 3 policies; try 3"),
    ("annotate", "--strength_margins 0.5 1 0.2", "strength_margins=[0.5, 1.0, 0.2]: expected three falling score"),
    (
        "annotate",
        "--keep_rankings --rejected random",
        "keep_rankings: true keeps all answers in order; it does not support",
    ),
    ("rejection_sampling", "--num_answers 1", "num_answers=1 is too few to choose the best answer among them; try 2"),
    ("rejection_sampling", "--vote mean", "vote=mean has one reward model to ask; list several, which differ, as"),
    ("rejection_sampling", "--other_reward_models m", "vote and other_reward_models need each other; set both or"),
    ("rejection_sampling", "--earlier_candidates c", "earlier_candidates is for prompt_order: hardest_first; set both"),
    ("rejection_sampling", "--prompt_order hardest_first", "prompt_order: hardest_first has nothing to choose where"),
    ("reward_model", "--level_margins 3 2 1", "level_margins=[3.0, 2.0, 1.0]: expected 4 falling numbers, one for"),
    ("reward_model", "--level_margins 0 1 2 3", "level_margins=[0.0, 1.0, 2.0, 3.0]: expected 4 falling numbers, one"),
    ("rejection_sampling", "--min_score 1", "min_score and keep_by: min_score need each other;"),
    (
        "rejection_sampling",
        "--keep_by min_score",
        "min_score and keep_by: min_score need each other;",
    ),
    ("rejection_sampling", "--temperature_range 1 0.5", "temperature_range=[1.0, 0.5]: expected [lowest, highest]"),
    ("evaluate_policy", "--judge_model m", "judge_function and judge_model are both given; set one of them to null"),
    (
        "sft",
        "--report_to tensorbord",
        "report_to='tensorbord' is not one of none, wandb, tensorboard, trackio, mlflow;",
    ),
    ("dpo", "--loss_weights 0 0", "loss_weights=[0.0, 0.0]: nothing is trained; expected at least one above 0"),
    ("sft", "--fp16", "float16 overflows where log-probs and rewards are summed, and training ends in nan: set bf16:"),
    ("sft", "--at_end keep", "at_end: keep saves an adapter, and none is trained: set use_peft: true, or leave at_end"),
    ("sft", "--load_in_4bit", "load_in_4bit: quantized weights cannot be trained, only adapters on them: set use_peft"),
    (
        "dpo",
        "--load_in_4bit --load_in_8bit --use_peft",
        "load_in_4bit and load_in_8bit are both set; leave one of them",
    ),
    ("dpo", "--loss_type sigmoid --loss_weights 1 0.2", "2 loss_weights for 1 of loss_type; give one for each"),
    ("rl", "--reward_functions null", "reward_model or reward_functions is missing: nothing scores the answers"),
    ("rl", "--reward_weights 1 1", "2 reward_weights for 1 rewards; give one for the reward model and each function"),
    ("rl", "--reward_weights 0", "reward_weights=[0.0]: nothing is trained; expected at least one other than 0"),
    ("rl", "--num_reference_answers 4", "num_reference_answers=4 is for reward_shaping: sigmoid_of_reference; set it"),
    ("rl", "--num_generations 6", "global_batch_size=32 answers are not a multiple of num_generations=6 for each"),
    (
        "rl",
        "--num_iterations 2 --max_steps 5",
        "max_steps=5 is not a multiple of steps_per_window x num_iterations = 2",
    ),
    ("rl", "--temperature 0", "temperature=0: all answers to a prompt would be the same; expected a number above 0"),
    ("average_models", "--weights unifrom", "weights='unifrom' is not one of uniform, greedy, or a list of numbers"),
    ("average_models", "--weights 0.5 0.25 0.25", "3 weights for 2 models; give one for each"),
    ("average_models", "--weights 0 0", "weights=[0.0, 0.0]: expected at least one above 0"),
    ("average_models", "--weights 2 -1", "weights=[2.0, -1.0]: expected numbers 0 or more"),
    ("average_models", "--weights inf 1", "weights=[inf, 1.0]: expected numbers 0 or more"),
    ("average_models", "--method slerp --weights 1 1", "method=slerp takes two models and no weights; set fraction,"),
    ("average_models", "--method slerp --fraction 1.5", "fraction=1.5: expected a number 0 or more, at most 1"),
    ("average_models", "--fraction 0.3", "fraction is for method: slerp; a mean takes weights"),
    ("average_models", "--averaged_stage dpo", "reference_model is missing: the loss of dpo is measured against the"),
    ("average_models", "--eval_data null", "eval_data is missing: the held-out rows that the average and its parts"),
    ("average_models", "--stage_keys {eval_data:[x]}", "stage_keys.eval_data is a key of average_models itself"),
    ("average_models", "--averaged_stage null", "eval_data is for the evaluation; set averaged_stage, whose loss it"),
    (
        "average_models",
        "--averaged_stage null --eval_data null --weights greedy",
        "weights=greedy compares losses; set averaged_stage and eval_data, or give the weights",
    ),
    ("average_models", "--part_names one", "1 part_names for 2 models; give one for each"),
]


def of_words(stage: str, words: str, says: str) -> Case:
    def make(place: Place) -> Call:
        return place.stage_by_hand(stage, *NEEDED[stage].split(), *words.split(), "--output_dir", "out")

    return Case(f"{stage} {words}", make, f"{stage}: {says}")


def of_replaced(name: str) -> Case:
    """A key of TRL that another key replaces here."""
    stage = next(stage for stage in NEEDED if name in stages()[stage].keys)
    value = {"bool": "true", "int": "2"}.get(stages()[stage].keys[name].type.rpartition(" | ")[2], "x")
    return of_words(stage, f"--{name} {value}", f"{name} is not a key here: {REPLACED_KEYS[name]}")


def of_file(name: str, content: Any, says: str) -> Case:
    """A stage's --config file."""

    def make(place: Place) -> Call:
        place.write("sft.yaml", content)
        return place.stage_by_hand("sft", "--config", "sft.yaml")

    return Case(f"config {name}", make, says)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))

# The options of a stage, unchanged, and the error.
WORDS: list[tuple[str, str]] = [
    ("seed 3", "'seed': expected --key value"),
    ("--config", "--config takes one file"),
    ("--config gone.yaml", "gone.yaml does not exist"),
    ("--config /dev/null", "/dev/null is a device, expected a regular file"),
    ("--config .", ". cannot be read (IsADirectoryError)"),
    ("--seed 3 4", "--seed takes one value, got 2: 3 4"),
    ("--seeed 3", "sft: unknown key 'seeed' of stage sft; did you mean 'seed'?"),
    ("--seed", "sft: seed=True is a boolean, expected int"),
    ("--seed 1.5", "sft: seed='1.5' is text, expected int"),
    ("--bf16 maybe", "sft: bf16='maybe' is text, expected nothing (null) | bool"),
    ("--on_bad_row skip", "sft: on_bad_row='skip' is not one of error, set_aside"),
    ("--train_data [a", "--train_data [a: not YAML, as in [a, b] or {path: a}"),
    ("--train_data [2024-13-45]", "--train_data [2024-13-45]: not YAML, as in [a, b] or {path: a}"),
    ("--seed 3", "sft: train_data is missing (files or folders of training rows)"),
    ("--train_data t", "output_dir is missing: the folder this stage writes"),
]


def by_hand(words: str) -> Callable[[Place], Call]:
    return lambda place: place.stage_by_hand("sft", *words.split())


def prepare(place: Place, **keys: Any) -> Call:
    """A valid prepare_data."""
    place.write("rows.jsonl", [{"prompt": f"question {number}"} for number in range(40)])
    return place.stage("prepare_data", **{"prompts": ["rows.jsonl"]} | keys)


def into(name: str, content: Any) -> Callable[[Place], Call]:
    """The output folder is not empty."""

    def make(place: Place) -> Call:
        place.write(f"out/{name}" if name else "out", content)
        return prepare(place)

    return make


def begun_with_other_keys(place: Place) -> Call:
    """The folder has the checkpoint of a stage that was stopped."""
    place.write("out/identity.json", {"stage": "prepare_data", "keys": {"seed": 3}, "inputs": {}})
    return prepare(place)


def in_use(place: Place) -> Call:
    held = place.write("out/.lock", "4711 here\n").open("r+")
    fcntl.flock(held, fcntl.LOCK_EX)
    call = prepare(place)

    def locked() -> int:
        with held:
            return call()

    return locked


def onto_its_rows(place: Place) -> Call:
    call = prepare(place, prompts=["out/prompts.train.jsonl"])
    (place.folder / "out").mkdir()
    Path("rows.jsonl").rename("out/prompts.train.jsonl")
    return call


def of_three_processes(place: Place) -> Call:
    place.patch.setenv("WORLD_SIZE", "3")
    return place.stage("sft", train_data=["t"], model_name_or_path="m", global_batch_size=8)


def without_package(words: str) -> Callable[[Place], Call]:
    """On a machine without the packages that only some keys need."""

    def make(place: Place) -> Call:
        place.patch.setattr(key_rules, "is_installed", lambda package: False)
        return place.stage_by_hand("sft", "--train_data", "t", "--model_name_or_path", "m", *words.split())

    return make


NOT_INSTALLED = [
    (
        "--load_in_4bit --use_peft",
        "load_in_4bit: the package bitsandbytes is not installed, which quantizes the weights",
    ),
    ("--load_in_8bit --use_peft", "'alignloop[lora]', or leave load_in_8bit out"),
]

CASES = [
    *(Case(f"without a package: {words}", without_package(words), says) for words, says in NOT_INSTALLED),
    *(of_words(*limit) for limit in LIMITS),
    *(of_words(*rule) for rule in TOGETHER),
    *(of_replaced(name) for name in REPLACED_KEYS),
    *(Case(f"sft {words}", by_hand(words), says) for words, says in WORDS),
    of_file("that is a list", "- 1", "sft.yaml holds a list, expected `key: value` lines"),
    of_file("that is cut", "train_data: [", "sft.yaml:1:14 is not YAML: expected the node content, but found '<stream"),
    of_file("with bytes", b"a: \xff", "sft.yaml cannot be read (UnicodeDecodeError)"),
    of_file("with an unknown key", "train_dta: [a]", "sft.yaml: unknown key 'train_dta' of stage sft; did you mean"),
    of_file("with half of a character", r'model_name_or_path: "\ud83d"', "an escape is half of a character; write the"),
    of_file("with a key twice", "seed: 1\nseed: 2", "sft.yaml:2:1: the key 'seed' is given twice, first in line 1;"),
    of_file("with a key twice inside", "architecture: {a: 1, a: 2}", "sft.yaml:1:22: the key 'a' is given twice"),
    of_file("with an anchor in itself", "train_data: &a [*a]", "sft.yaml:1:13: an anchor contains itself"),
    of_file("that is deep", "train_data: " + "[" * 60 + "]" * 60, "more than 50 lists and mappings are inside each"),
    of_file("with an anchor bomb", BOMB, ": more than 100000 values, those of aliases counted at each use"),
    of_file("that is large", b"# " + b"x" * 2_000_000, "sft.yaml has more than 2000000 bytes, expected a YAML file of"),
    of_file("with an unquoted no", "save_strategy: no", "unquoted no, off or false as a boolean: write it in quotes"),
    of_file("with an unquoted on", "eos_token: on", "unquoted yes, on or true as a boolean: write it in quotes"),
    of_file("with a number of base 60", "max_length: 1:30", "sft.yaml:1:13: YAML reads '1:30' as the number 90; write"),
    of_file("with a number of base 8", "seed: 010", "sft.yaml:1:7: YAML reads '010' as the number 8; write it as a"),
    of_file("with a fraction of base 60", "learning_rate: 1:30.5", "YAML reads '1:30.5' as the number 90.5; write it"),
    of_file("with an empty list", "train_data: []", "sft.yaml: train_data=[] is an empty list; give a value"),
    of_file("with empty text", "eos_token: ''", "eos_token='' is empty text; leave the key out: its default is null"),
    of_file("with a null character", 'eos_token: "a\\0b"', "eos_token='a\\x00b' contains a null character; remove it"),
    of_file("with a long path", f"train_data: [{'x' * 256}]", "is too long for a path: expected at most 255 bytes for"),
    of_file("with a set in a mapping", "model_init_kwargs: {a: !!set {b}}", "contains {'b'}, which is a set; expected"),
    of_file("with a number for text", "train_data: 3", "sft.yaml: train_data=3 is an integer, expected list[str]"),
    Case(
        "key that is missing",
        lambda place: place.stage("rejection_sampling", prompts=["p"], policies=["m"]),
        "rejection_sampling: reward_model is missing (the reward model that ranks)",
    ),
    Case(
        "keys that TRL refuses",
        lambda place: place.stage("sft", train_data=["t"], dataloader_prefetch_factor=2),
        "--dataloader_prefetch_factor can only be set when data is loaded in a different process",
    ),
    Case(
        "batch that three processes cannot share",
        of_three_processes,
        "global_batch_size=8 cannot be divided among 3 processes; try 9",
    ),
    Case(
        "batch of no whole micro-batches",
        lambda place: place.stage("sft", train_data=["t"], global_batch_size=8, per_device_train_batch_size=3),
        "global_batch_size=8 is not a multiple of per_device_train_batch_size x num_processes = 3 x 1; try 9",
    ),
    Case(
        "model that is missing",
        lambda place: place.stage("sft", train_data=["t"]),
        "model_name_or_path is missing: the folder of the model to start from",
    ),
    Case(
        "folder that is finished",
        into("artifact.json", "{}"),
        "HERE/out holds a finished stage (artifact.json); choose another output_dir, or move it away",
    ),
    Case(
        "folder of a stage with other keys",
        begun_with_other_keys,
        "HERE/out holds an unfinished prepare_data with other keys (seed",
    ),
    Case(
        "folder with another's identity",
        into("identity.json", "[]"),
        "HERE/out/identity.json was not written by a stage; choose another output_dir, or move it away",
    ),
    Case(
        "folder with an identity that is no JSON",
        into("identity.json", "me"),
        "HERE/out/identity.json was not written by a stage; choose another output_dir, or move it away",
    ),
    Case(
        "folder with a model of somebody's",
        into("model/config.json", "{}"),
        "HERE/out/model was not written by this stage; choose another output_dir, or move it away",
    ),
    Case("folder in use", in_use, "HERE/out is in use by another process (pid 4711 on here)"),
    Case("folder that is a file", into("", "a file"), "[Errno 17] File exists: 'HERE/out'", 1),
    Case(
        "folder of its own rows",
        onto_its_rows,
        "prompts=out/prompts.train.jsonl is inside HERE/out, which this stage writes; choose another output_dir",
    ),
]
