"""Folders of runs with two rounds, written by hand, for the tests of the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_schemas.artifact import Artifact, files_below

PROMPTS = ("Name a colour.", "Name a sound.", "Name a city.")
STEPS = (
    ("prepare_data", None, []),
    ("round-0.sft", 0, ["prepare_data"]),
    ("round-0.evaluate_policy", 0, ["prepare_data", "round-0.sft"]),
    ("round-1.dpo", 1, ["prepare_data", "round-0.evaluate_policy"]),
    ("round-1.evaluate_policy", 1, ["prepare_data", "round-1.dpo", "round-0.evaluate_policy"]),
)
POLICY = {"round-0.evaluate_policy": "round-0.sft", "round-1.evaluate_policy": "round-1.dpo"}
JUDGED = {
    "round-0.evaluate_policy": {"judge_mean": 0.25, "kl_to_first": None, "proxy_mean": None, "gate": "accept"},
    "round-1.evaluate_policy": {
        "judge_mean": 0.75,
        "kl_to_first": 4.0,
        "proxy_mean": 3.5,
        "score_gain_vs_first": 0.5,
        "score_gain_vs_first_low": 0.375,
        "score_gain_vs_first_high": 0.625,
        "gate": "accept",
        "gate_reason": "gain 0.5 > 0",
    },
}
SCORES = {"round-0.sft": [0.0, 0.5, 0.25], "round-1.dpo": [1.0, 0.5, 0.0]}
CURVE = [(0, 1.0), (10, 0.5), (20, 0.75)]  # (step, held-out loss): it overfits after step 10


def write_run(
    folder: Path,
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    state: str = "done",
    shows_samples: bool = True,
    rounds: int = 1,
    answers: int = 1,
) -> Path:
    """A run whose evaluations have one answer to each of PROMPTS; `texts` replaces the answers of a policy.

    More answers are longer by a letter, and a quarter better each; the reward model likes each less, by 1.

    With more than one round, the steps of round 1 are repeated under other names.
    """
    entries, rows = [], []
    for name, number, inputs in _steps(rounds):
        stage = name.partition(".")[2] or name
        metrics = _metrics(name, stage)
        step_folder = folder / f"{name}-0123abcd"
        step_folder.mkdir(parents=True)
        _write_step(step_folder, name, stage, metrics, texts or {}, num_answers=answers)
        entries.append(
            {
                "name": name,
                "stage": stage,
                "round": number,
                "folder": step_folder.name,
                "fingerprint": "0123abcd" * 8,
                "state": "ran",
                "seconds": 5.0,
                "metrics": metrics,
                "warnings": [],
                "inputs": inputs,
            }
        )
        if stage == "evaluate_policy":
            rows.append({"round": number, "policy": _policy(name), "judge": "toy:gold", **_judged(name)})
    best = {"step": rows[-1]["policy"], "folder": f"{rows[-1]['policy']}-0123abcd/model", "score": 0.75}
    recipe = {"file": "toy.yaml", "content": {"name": "toy"}, "changes": ["dpo.beta: 0.1 -> 0.2"]}
    summary = {"name": "toy", "state": state, "steps": entries, "rounds": rows, "best_policy": best}
    summary["recipe"] = recipe | {"shows_samples": shows_samples}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _steps(rounds: int) -> list[tuple[str, int | None, list[str]]]:
    first, later = list(STEPS[:3]), STEPS[3:]
    for number in range(1, rounds + 1):
        first += [
            (name.replace("round-1", f"round-{number}"), number, [one.replace("1", str(number)) for one in inputs])
            for name, _, inputs in later
        ]
    return first


def _policy(evaluation: str) -> str:
    return "round-0.sft" if evaluation.startswith("round-0") else evaluation.replace("evaluate_policy", "dpo")


def _judged(evaluation: str) -> dict[str, object]:
    return JUDGED["round-0.evaluate_policy" if evaluation.startswith("round-0") else "round-1.evaluate_policy"]


def _metrics(name: str, stage: str) -> dict[str, float | int | str | None]:
    if stage == "evaluate_policy":
        return dict(_judged(name))  # pyright: ignore[reportReturnType]
    if stage == "prepare_data":
        return {"prompts.train": 3, "rejected_rows": 2, "dialogs_left_out": 0}
    return {"eval_loss_at_step_0": 1.0, "eval_loss": 0.5, "dropped_too_long": 4}


def _write_step(
    folder: Path, name: str, stage: str, metrics: Mapping, texts: Mapping[str, Sequence[str]], *, num_answers: int
) -> None:
    outputs, inputs, keys = {}, {}, {}
    if stage == "evaluate_policy":
        policy = _policy(name)
        keys["policy_step"] = policy
        outputs["answers"] = "answers.jsonl"
        scores = SCORES["round-0.sft" if policy == "round-0.sft" else "round-1.dpo"]
        answers = texts.get(policy, [f"{policy} says {number}" for number in range(len(PROMPTS))])
        lines = [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "prompt_id": f"{number:016x}",
                "group_id": f"{number:016x}",
                "candidates": [
                    {"text": answers[number] + "!" * k, "k": k, "num_tokens": 3, "ended": True, "score": score + k / 4}
                    for k in range(num_answers)
                ],
            }
            for number, (prompt, score) in enumerate(zip(PROMPTS, scores, strict=True))
        ]
        (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
        if policy != "round-0.sft":
            outputs["proxy_scores"] = "proxy_scores.json"
            rewards = [reward - k for reward in (3.0, 3.5, 4.0) for k in range(num_answers)]
            (folder / "proxy_scores.json").write_text(json.dumps(rewards))
    elif stage in ("sft", "dpo"):
        inputs["train_data"] = str(folder.parent / "prepare_data-0123abcd" / "pairs.jsonl")
        (folder / "metrics.jsonl").write_text(
            "\n".join(json.dumps({"step": step, "eval_loss": loss}) for step, loss in CURVE)
        )
        keys["beta" if stage == "dpo" else "learning_rate"] = 0.25
    (folder / "outcome.json").write_text(json.dumps({"state": "done", "seconds": {"train": 3.0, "load": 1.0}}))
    record = Artifact(
        stage=stage,
        step=name,
        recipe_version=1,
        keys=keys,
        inputs=inputs,
        outputs=outputs,
        files=files_below(folder, outputs),
        metrics=dict(metrics),
        versions={"torch": "2.13.0"},
        seconds=5.0,
    )
    record.write(folder)
