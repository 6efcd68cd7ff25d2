"""The table by round, as text: what the terminal and the page both show of a summary."""

import itertools
from collections.abc import Callable, Iterator, Mapping

from data_schemas.text import printable
from pipeline.state.summary import Summary, trained_models

ROWS: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "policy": lambda row: str(row["policy"] or "-"),
    "judge's mean": lambda row: number(row["judge_mean"]),
    "gain vs first": lambda row: _interval(row, "score_gain_vs_first"),
    "wins vs first": lambda row: _interval(row, "win_rate_vs_first"),
    "wins vs previous": lambda row: _interval(row, "win_rate_vs_previous"),
    "gate": lambda row: str(row.get("gate") or "-"),
    "decided by": lambda row: str(row.get("gate_reason") or "-").partition("; ")[0],
    "reward's mean": lambda row: number(row["proxy_mean"]),
    "reward's accuracy": lambda row: _interval(row, "proxy_accuracy"),
    "on its own pairs": lambda row: number(row["reward_accuracy"]),
    "best by reward": lambda row: number(row["best_by_proxy"]),
    "best by judge": lambda row: number(row["best_by_judge"]),
    "KL to first": lambda row: number(row["kl_to_first"]),
    "answer tokens": lambda row: number(row["mean_answer_tokens"]),
    "ended": lambda row: number(row["ended_share"]),
    "distinct-2": lambda row: number(row["distinct_2"]),
    "SFT eval loss": lambda row: number(row["sft_eval_loss"]),
    "DPO accuracy": lambda row: number(row["dpo_reward_accuracy"]),
}
FAR_KL = 10.0  # nats an answer from the first policy, beyond which models that judge are weak evidence
# For each tag of the evaluation prompts, where they have tags.
ROWS_OF_A_TAG: Mapping[str, str] = {
    "judge's mean": "judge_mean",
    "gain vs first": "score_gain_vs_first",
    "wins vs first": "win_rate_vs_first",
}
# Of an LLM judge, a baseline or RL; shown beside the row of this name where a round has them.
OPTIONAL_ROWS: Mapping[str, Mapping[str, str]] = {
    "wins vs first": {"at equal length": "lc_win_rate_vs_first"},
    "wins vs previous": {"wins vs baseline": "win_rate_vs_baseline", "at equal length ": "lc_win_rate_vs_baseline"},
    "DPO accuracy": {"RL reward": "rl_reward", "RL's KL": "rl_kl"},
    "gate": {"wins, judge alone": "judged_win_rate", "corrected by people": "corrected_win_rate"},
}


def title(summary: Summary) -> str:
    """`by round, judged by toy_world.gold:gold`."""
    judges = sorted({str(row["judge"]) for row in summary["rounds"] if row["judge"]})
    how = "by round, " if any(row["round"] is not None for row in summary["rounds"]) else ""
    return f"{how}judged by {', '.join(judges)}" if judges else f"{how}no policy evaluated yet"


def heads(summary: Summary) -> list[str]:
    """The head of each column: its round, or the one evaluation of a run without rounds."""
    return ["evaluate_policy" if row["round"] is None else f"round {row['round']}" for row in summary["rounds"]]


def rows(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """The name of each row and its cells; `-` is a number that does not apply."""
    for name, show in ROWS.items():
        yield name, [show(row) for row in summary["rounds"]]
        for optional, metric in OPTIONAL_ROWS.get(name, {}).items():
            if any(row.get(metric) is not None for row in summary["rounds"]):
                yield optional, [_interval(row, metric) for row in summary["rounds"]]
    by_tag = [_by_tag(row) for row in summary["rounds"]]
    for tag in sorted({tag for of_round in by_tag for tag in of_round}):
        for name, metric in ROWS_OF_A_TAG.items():
            yield f"{name}: {printable(tag)}", [_interval(of_round.get(tag, {}), metric) for of_round in by_tag]
    yield from _task_rows(summary)


def _by_tag(row: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    """The numbers of a round by the evaluation prompts' tags. Raises nothing for a damaged summary."""
    found = row.get("by_tag")
    if not isinstance(found, dict):
        return {}
    return {str(tag): numbers for tag, numbers in found.items() if isinstance(numbers, dict)}


def _task_rows(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """The score of each task, and its change from the first policy: what alignment costs."""
    tasks = [found if isinstance(found := row.get("tasks"), Mapping) else {} for row in summary["rounds"]]
    names = dict.fromkeys(name for row in tasks for name in str(row.get("task_scores") or "").split(", ") if name)
    for name in names:
        yield name, [_interval(row, name) for row in tasks]
        if any(row.get(f"{name}_vs_first") is not None for row in tasks):
            yield f"{name} vs first", [_interval(row, f"{name}_vs_first") for row in tasks]


def diagnosis(summary: Summary) -> str | None:
    """What limits the next round, by the newest evaluation that says so."""
    said = [(row["round"], row["diagnosis"]) for row in summary["rounds"] if row.get("diagnosis")]
    if not said:
        return None
    number, text = said[-1]
    return printable(str(text) if number is None else f"after round {number}, {text}")


def judge_warning(summary: Summary) -> str | None:
    """What is wrong with a judge that orders no more of its held-out pairs rightly than chance does."""
    for step in summary["steps"]:
        accuracy = step["metrics"].get("eval_accuracy")
        if step["name"] == "judge" and isinstance(accuracy, int | float) and accuracy <= 0.5:
            return (
                f"the judge orders {accuracy:.0%} of its held-out pairs rightly, which is no better than chance "
                "(`check` shows how many they are): its numbers and the gate say nothing of quality; raise "
                "data.judge_share or set evaluate_policy.judge_model"
            )
    return None


def exploited_rewards(summary: Summary) -> list[str]:
    """The policies for which RL raised its reward while the judge prefers the policy before, beyond the interval."""
    round_of = {step["name"]: step["round"] for step in summary["steps"] if step["stage"] == "rl"}
    trained = {round_of[model["step"]]: model for model in trained_models(summary) if model["step"] in round_of}
    said = []
    for before, row in itertools.pairwise(summary["rounds"]):
        model, high = trained.get(_round(row)), row["win_rate_vs_previous_high"]
        if model is None or model["loss_before"] is None or model["loss_after"] is None:
            continue
        if isinstance(high, int | float) and high < 0.5 and model["loss_after"] < model["loss_before"]:
            said.append(
                f"{model['step']} exploits its reward: that rose on held-out prompts from {-model['loss_before']:.3f} "
                f"to {-model['loss_after']:.3f}, and the judge's mean fell from {number(before['judge_mean'])} to "
                f"{number(row['judge_mean'])}; lower rl.kl_budget, set rl.reward_shaping, or change the reward"
            )
    return said


def _round(row: Mapping[str, object]) -> int | None:
    number = row.get("round")
    return number if isinstance(number, int) else None


def far_policy(summary: Summary) -> str | None:
    """A warning where the newest policy is so far from the first one that a judge model knows no such answers."""
    row = summary["rounds"][-1] if summary["rounds"] else {}
    kl = row.get("kl_to_first")
    if not isinstance(kl, int | float) or kl <= FAR_KL:
        return None
    return (
        f"{printable(str(row['policy']))} is {kl:.1f} nats an answer from the first policy: a judge or a reward model "
        "that was trained on answers near that one may prefer what it has never seen, so read the answers; a lower "
        "dpo.learning_rate, a higher dpo.beta or evaluate_policy.gate_max_kl keep policies nearer"
    )


def remarks(summary: Summary) -> list[str]:
    """What a reader of the table should know: what limits the next round, a useless judge, a policy that is far from
    the first, and exploited rewards."""
    said = (diagnosis(summary), judge_warning(summary), far_policy(summary), *exploited_rewards(summary))
    return [text for text in said if text]


def number(value: object) -> str:
    """A float with three decimals; `-` for null."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _interval(row: Mapping[str, object], name: str) -> str:
    """A number with its interval of confidence, where the row has one."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    has_interval = isinstance(low, int | float) and isinstance(high, int | float)
    return number(row.get(name)) + (f" [{low:.2f}, {high:.2f}]" if has_interval else "")
