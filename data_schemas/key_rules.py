"""Which values of a stage's keys are valid, each by itself and in combination; checked without torch before any launch.

The pipeline checks a recipe's steps with it, and every stage its own command line.
"""

import datetime
from collections.abc import Callable

from data_schemas.answering_rules import check_annotation, check_people, check_rejection_sampling, one_of
from data_schemas.curation_rules import check_curation, check_paraphrases
from data_schemas.endpoints import parse_endpoints
from data_schemas.errors import ConfigError, UserError
from data_schemas.packages import is_installed, to_install
from data_schemas.ranges import check_ranges
from data_schemas.rows import STRENGTHS
from data_schemas.splitting import Shares
from data_schemas.stage_keys import Values, with_defaults
from data_schemas.text import nearest, shown
from data_schemas.vllm_keys import vllm_options

# Keys inside the key `lm_eval_options`: options of its command line that change the scores.
LM_EVAL_OPTIONS = (
    "num_fewshot",
    "limit",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "system_instruction",
    "gen_kwargs",
)
ROPE_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")  # kinds of scaling that transformers knows

# Keys of average_models itself, which `stage_keys` of the stage that it evaluates with can't set.
KEYS_OF_AVERAGE = (
    "output_dir",
    "model_name_or_path",
    "train_data",
    "eval_data",
    "reference_model",
    "use_cpu",
    "per_device_eval_batch_size",
)


def check_values(stage: str, values: Values, *, where: str) -> None:
    """Raises ConfigError for values that contradict each other. Each by itself was checked where it was typed."""
    given, values = values, with_defaults(stage, values)
    try:
        check_ranges(values, given=given)
        _training(values)
        _packages(given)
        vllm_options(values)
        parse_endpoints(values.get("endpoints") or {}, where="endpoints")
        RULES.get(stage, lambda _: None)(values)
    except UserError as error:
        raise ConfigError(f"{where}: {error}") from None


def _packages(given: Values) -> None:
    """Optional packages that the given values need must be installed where the stages run, which is here."""
    for key in ("load_in_4bit", "load_in_8bit"):
        if given.get(key) and not is_installed("bitsandbytes"):
            raise ConfigError(
                f"{key}: the package bitsandbytes is not installed, which quantizes the weights; "
                f"{to_install('bitsandbytes')}, or leave {key} out"
            )
    if given.get("languages") and not is_installed("py3langid"):
        raise ConfigError(f"languages: the package py3langid is not installed; {to_install('py3langid')}")


def _training(values: Values) -> None:
    """Rules of every stage with an optimizer."""
    if (values.get("fp16") or values.get("dtype") == "float16") and not values.get("force_fp16", True):
        raise ConfigError(
            "float16 overflows where log-probs and rewards are summed, and training ends in nan: set "
            "bf16: true, or force_fp16: true to use it anyway"
        )
    if values.get("at_end") == "keep" and not values.get("use_peft", True):
        raise ConfigError("at_end: keep saves an adapter, and none is trained: set use_peft: true, or leave at_end out")
    if values.get("load_in_4bit") and values.get("load_in_8bit"):
        raise ConfigError("load_in_4bit and load_in_8bit are both set; leave one of them out")
    for key in ("load_in_4bit", "load_in_8bit"):
        if values.get(key) and not values.get("use_peft", True):
            raise ConfigError(f"{key}: quantized weights cannot be trained, only adapters on them: set use_peft: true")


def check_batch(global_batch_size: int, micro_batch: int | None, *, processes: int) -> None:
    """Raises ConfigError where an optimizer step's rows cannot be divided into micro-batches on all processes.

    `micro_batch` is per_device_train_batch_size, None where it is left open. The error advises the valid
    global_batch_size nearest to the given one, which changes training least; of two equally near ones the larger, whose
    gradients are less noisy. At least one micro-batch a process is needed.
    """
    product = (micro_batch or 1) * processes
    if global_batch_size >= product and global_batch_size % product == 0:
        return
    nearest_valid = max(1, (global_batch_size + product // 2) // product) * product
    if micro_batch is None:
        problem = f"cannot be divided among {processes} processes"
    else:
        problem = f"is not a multiple of per_device_train_batch_size x num_processes = {micro_batch} x {processes}"
    raise ConfigError(f"global_batch_size={global_batch_size} {problem}; try {nearest_valid}")


def _prepare_data(values: Values) -> None:
    evaluation = 0.0 if values["evaluation_prompts"] or values["make_data"] else values["evaluation_share"]
    Shares(evaluation=evaluation, judge=values["judge_share"], validation=values["validation_share"])


def _reward_model(values: Values) -> None:
    margins = values["level_margins"]
    if margins is not None and (len(margins) != len(STRENGTHS) or sorted(margins, reverse=True) != margins):
        raise ConfigError(
            f"level_margins={margins}: expected {len(STRENGTHS)} falling numbers, one for each strength from "
            f"{STRENGTHS[0]} to {STRENGTHS[-1]}"
        )


def _evaluate_tasks(values: Values) -> None:
    tasks = ("ifeval", "gsm8k", "function_calls", "multiple_choice", "lm_eval_tasks")
    if not any(values[name] for name in tasks):
        raise ConfigError(f"{', '.join(tasks[:-1])} or {tasks[-1]} is missing: the file of a benchmark")
    if values["ifeval"] and not is_installed("py3langid"):
        raise ConfigError(f"ifeval: the package py3langid is not installed; {to_install('py3langid')}")
    if values["lm_eval_tasks"] and not values["lm_eval_python"] and not is_installed("lm_eval"):
        raise ConfigError(
            f"lm_eval_tasks: the package lm-eval is not installed; {to_install('lm-eval')}, or set lm_eval_python "
            "to the interpreter of an environment that has it"
        )
    for name in values["lm_eval_options"] or {}:
        if name not in LM_EVAL_OPTIONS:
            raise ConfigError(f"lm_eval_options: unknown key {name!r}{nearest(str(name), LM_EVAL_OPTIONS)}")
    if bool(values["num_examples"]) != bool(values["gsm8k_examples"]):
        raise ConfigError("num_examples and gsm8k_examples need each other; set both or neither")


def _evaluate_policy(values: Values) -> None:
    if values["gate_max_task_fall"] is not None and not values["tasks"]:
        raise ConfigError("gate_max_task_fall has no tasks to compare; add a section evaluate_tasks, or leave it out")
    judges = ("judge_function", "judge_model", "judge_llm")
    check_people("evaluate_policy", values)
    if values["people"] and values["people_budget"] is None:
        raise ConfigError("people_budget is missing: how many of the evaluation's comparisons people label, as in 200")
    if values["people"] and values["people_against"] == "baseline" and not values["baseline"]:
        raise ConfigError("people_against: baseline needs baseline, the model to compare with; give it")
    if any(values[name] for name in judges):
        one_of(values, *judges)
        return
    defaults = with_defaults("evaluate_policy", {})
    for name in (
        "previous",
        "proxy_model",
        "first_policy",
        "baseline",
        "tasks",
        "people",
        *(key for key in values if key.startswith("gate_")),
    ):
        if values[name] != defaults[name]:
            raise ConfigError(
                f"{name} is given without a judge; expected judge_function, judge_model or judge_llm, which compares "
                "the policies; without one, only sample answers are written: leave it out"
            )


def _dpo(values: Values) -> None:
    types, weights = values["loss_type"], values["loss_weights"]
    types = types if isinstance(types, list) else [types]
    if weights is not None and len(weights) != len(types):
        raise ConfigError(f"{len(weights)} loss_weights for {len(types)} of loss_type; give one for each")
    if weights is not None and not sum(weights):
        raise ConfigError(f"loss_weights={weights}: nothing is trained; expected at least one above 0")


def _rl(values: Values) -> None:
    sources = int(bool(values["reward_model"])) + len(values["reward_functions"] or [])
    if not sources:
        raise ConfigError("reward_model or reward_functions is missing: nothing scores the answers")
    weights = values["reward_weights"]
    if weights is not None and len(weights) != sources:
        raise ConfigError(
            f"{len(weights)} reward_weights for {sources} rewards; give one for the reward model and each function"
        )
    if weights is not None and not any(weights):
        raise ConfigError(f"reward_weights={weights}: nothing is trained; expected at least one other than 0")
    if values["reward_shaping"] == "none" and values["num_reference_answers"] != 1:
        raise ConfigError(
            f"num_reference_answers={values['num_reference_answers']} is for reward_shaping: sigmoid_of_reference; set "
            "it, or leave num_reference_answers out"
        )
    if not values["temperature"]:
        raise ConfigError("temperature=0: all answers to a prompt would be the same; expected a number above 0")
    if values["engine"] == "vllm":
        _vllm_of_rl(values)
    number, answers = values["num_generations"], values["global_batch_size"]
    if answers % number:
        nearest = max(1, (answers + number // 2) // number) * number
        raise ConfigError(
            f"global_batch_size={answers} answers are not a multiple of num_generations={number} for each prompt; "
            f"try global_batch_size={nearest}"
        )
    of_window, steps = values["steps_per_window"] * values["num_iterations"], values["max_steps"]
    if steps > 0 and steps % of_window:
        raise ConfigError(
            f"max_steps={steps} is not a multiple of steps_per_window x num_iterations = {of_window}, the steps of a "
            f"window; try {(steps // of_window + 1) * of_window}"
        )


def _vllm_of_rl(values: Values) -> None:
    """vLLM samples beside the training process, on its device, from its weights."""
    options = values["vllm"] or {}
    for key in ("tensor_parallel_size", "data_parallel_size"):
        if options.get(key, 1) > 1:
            raise ConfigError(
                f"vllm.{key}={options[key]}: rl starts one vLLM for each training process, on its device; "
                f"leave {key} out"
            )
    for key in ("load_in_4bit", "load_in_8bit"):
        if values[key]:
            raise ConfigError(f"{key}: vLLM cannot load the quantized weights of a training; leave engine: vllm out")


def check_average(values: Values, count: int) -> None:
    """Raises ConfigError where `weights`, `method` and `fraction` of an average do not fit `count` models."""
    weights, is_slerp = values.get("weights", "uniform"), values.get("method") == "slerp"
    if isinstance(weights, str) and weights not in ("uniform", "greedy"):
        raise ConfigError(f"weights={weights!r} is not one of uniform, greedy, or a list of numbers")
    if isinstance(weights, list) and len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} models; give one for each")
    if isinstance(weights, list) and not sum(weights):
        raise ConfigError(f"weights={weights}: expected at least one above 0")
    if is_slerp and (count != 2 or weights != "uniform"):
        raise ConfigError("method=slerp takes two models and no weights; set fraction, or method: linear")
    if not is_slerp and values.get("fraction") not in (None, 0.5):
        raise ConfigError("fraction is for method: slerp; a mean takes weights")


def _average_models(values: Values) -> None:
    count = len(values["models"] or [])
    check_average(values, count)
    if not values["averaged_stage"]:
        of_evaluation = ("eval_data", "train_data", "reference_model", "stage_keys")
        if given := next((name for name in of_evaluation if values[name]), None):
            raise ConfigError(f"{given} is for the evaluation; set averaged_stage, whose loss it is, or leave it out")
        if values["weights"] == "greedy":
            raise ConfigError("weights=greedy compares losses; set averaged_stage and eval_data, or give the weights")
        return
    if values["averaged_stage"] == "dpo" and not values["reference_model"]:
        raise ConfigError("reference_model is missing: the loss of dpo is measured against the parts' reference")
    if not (values["eval_data"] or values["train_data"]):
        raise ConfigError("eval_data is missing: the held-out rows that the average and its parts are measured on")
    if names := [name for name in values["stage_keys"] if name in KEYS_OF_AVERAGE]:
        raise ConfigError(f"stage_keys.{names[0]} is a key of average_models itself")
    if values["part_names"] and len(values["part_names"]) != count:
        raise ConfigError(f"{len(values['part_names'])} part_names for {count} models; give one for each")


def _prepare_base(values: Values) -> None:
    try:
        datetime.date.fromisoformat(values["template_date"] or "2000-01-01")
    except ValueError:
        raise ConfigError(f"template_date={shown(values['template_date'])}: expected a date as YYYY-MM-DD") from None
    if bool(values["extend_tokenizer"]) != bool(values["num_new_tokens"]):
        raise ConfigError("extend_tokenizer and num_new_tokens need each other; set both or neither")


def _pretrain(values: Values) -> None:
    scaling = values["rope_scaling"]
    if scaling is not None and scaling.get("rope_type") not in ROPE_TYPES:
        raise ConfigError(
            f"rope_scaling={shown(scaling)}: expected rope_type with one of {', '.join(ROPE_TYPES)}, as in "
            "{rope_type: yarn, factor: 4.0}"
        )


RULES: dict[str, Callable[[Values], None]] = {
    "prepare_base": _prepare_base,
    "prepare_data": _prepare_data,
    "pretrain": _pretrain,
    "annotate": check_annotation,
    "rejection_sampling": check_rejection_sampling,
    "reward_model": _reward_model,
    "evaluate_policy": _evaluate_policy,
    "evaluate_tasks": _evaluate_tasks,
    "average_models": _average_models,
    "dpo": _dpo,
    "rl": _rl,
    "curate": check_curation,
    "paraphrase": check_paraphrases,
}
