"""Bad rewards, prompts and guards, given to the stage rl, and to the evaluation."""

from collections.abc import Callable
from typing import Any

from tests.bad_inputs.bad_models import model
from tests.bad_inputs.cases import Call, Case, Place

REWARDS = """
def length(prompt, answer, ended): return float(len(answer))
def huge(prompt, answer, ended): return 1e39
def one(prompt, answer, ended): return 1.0
def same(prompt, answer, ended): return 0.5
def nan(prompt, answer, ended): return float("nan")
def nothing(prompt, answer, ended): return None
def several(prompt, answer, ended): return [1.0, 2.0]
def raises(prompt, answer, ended): raise KeyError("a\\nb")
"""
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"


def rl(
    *, num_prompts: int = 4, before: Callable[[Place], Any] = lambda place: None, **keys: Any
) -> Callable[[Place], Call]:
    """The stage on a few prompts, with 2 answers to each of 2 prompts in a window."""

    def make(place: Place) -> Call:
        model(place)
        place.write("rewards.py", REWARDS)
        given = {
            "train_data": [place.write("prompts.jsonl", [{"prompt": f"question {n}"} for n in range(num_prompts)])],
            "eval_data": [place.write("held_out.jsonl", [{"prompt": "another question"}])],
            "model_name_or_path": "model",
            "reward_functions": ["rewards:length"],
            "num_generations": 2,
            "global_batch_size": 4,
            "max_completion_length": 2,
            "max_steps": 4,
        }
        before(place)
        return place.stage("rl", **given | keys)

    return make


def other_template(place: Place) -> None:
    (model(place, "rewards", kind="tiny_reward_model") / "chat_template.jinja").write_text(TEMPLATE)


def other_policy(place: Place) -> None:
    model(place, "other", kind="tied_model")


def of_reward(function: str, says: str) -> Case:
    return Case(f"reward {function}", rl(reward_functions=[f"rewards:{function}"]), says)


def evaluation(**keys: Any) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        model(place)
        place.write("rewards.py", REWARDS)
        prompts = place.write("prompts.jsonl", [{"prompt": f"question {n}", "tag": "math"} for n in range(4)])
        given = {"prompts": [prompts], "model_name_or_path": "model", "judge_function": "rewards:length"}
        return place.stage("evaluate_policy", **given | keys)

    return make


CASES = [
    of_reward("nan", "False) gave nan, expected a finite number"),
    of_reward("nothing", "False) gave None, expected a finite number"),
    of_reward("several", "False) gave [1.0, 2.0], expected a finite number"),
    of_reward("raises", "False) raised KeyError: 'a\\nb'"),
    Case(
        "rewards without variance",
        rl(reward_functions=["rewards:same"]),
        "in 3 windows in a row all 2 answers to each prompt have the same reward (the first one is ",
        1,
    ),
    Case(
        "answers that never end, and are masked",
        rl(max_completion_length=1, mask_truncated_completions=True),
        "in 3 windows in a row no answer ended within max_completion_length=1 (the first one is ",
        1,
    ),
    Case(
        "a reward that 32 bits do not hold",
        rl(reward_functions=["rewards:huge"]),
        " is 1e+39 x the weight 1, expected at most 1e+15: make it smaller",
    ),
    Case(
        "a weight that makes a reward too large",
        rl(reward_functions=["rewards:one"], reward_weights=[1e16]),
        " is 1 x the weight 1e+16, expected at most 1e+15: make it smaller",
    ),
    Case(
        "fewer prompts than a window has",
        rl(num_prompts=1),
        "1 training prompts are fewer than the 2 of one window (global_batch_size=4 x steps_per_window=1 / num_gener",
    ),
    Case(
        "prompts that are all too long",
        rl(max_prompt_tokens=3),
        "no training prompt has at most max_prompt_tokens=3 tokens; raise it, or leave it out",
    ),
    Case(
        "reward model with another template",
        rl(before=other_template, reward_functions=None, reward_model="rewards"),
        "reward_model rewards has another contract than the policy: chat_template from character ",
    ),
    Case(
        "KL budget that is spent already",
        rl(before=other_policy, reference_model="other", kl_budget=0.1, max_completion_length=8),
        "kl_budget=0.1 is spent before the first step: the policy is already ",
    ),
    Case(
        "a condition for tags that have few prompts",
        evaluation(gate_max_tag_fall=0.1),
        "gate_max_tag_fall=0.1: no tag has 10 of the 4 evaluation prompts or more; give the prompts a column tag, or",
    ),
]
