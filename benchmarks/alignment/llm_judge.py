"""The demo's world annotated by an LLM judge that errs and prefers the first answer; a win rate corrected by people.

    python -m benchmarks.alignment llm_judge --seeds 0

The judge is a server process on loopback (gold_judge.py), asked by `annotator_llm` in both orders like any endpoint.
Two rounds of configs/demo.yaml are annotated by it and evaluated by gold: does gold still rise? Then the same judge
compares the last policy with the first one on both halves of the evaluation prompts (732), and 300 labels of a person
correct its win rate. The person is the gold score of the texts, and so is the truth, on all answers.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.alignment.gold_judge import MODEL, preference
from benchmarks.alignment.launching import MEASURING, alignloop, make_base, on_cores
from benchmarks.alignment.report import ROOT, RUNS, evaluations, means_by_prompt, pooled_interval, shown
from data_schemas.people import EXIT_CODE, FORMAT
from data_schemas.rows import STRENGTHS
from toy_world.make import evaluation_prompts

# Shapes: S = seeds, P = prompts, K = answers to each prompt.
NUM_LABELS = 300
PERSON = "gold"
BATCH = re.compile(r'<script id="batch" type="application/json">(.*?)</script>', re.DOTALL)
OF_CORRECTION = tuple(
    f"{name}{end}" for name in ("judged_win_rate", "corrected_win_rate") for end in ("", "_low", "_high")
)


@contextlib.contextmanager
def judge_server() -> Iterator[dict[str, Any]]:
    """The endpoint of a judge, in a separate process that ends with the block."""
    command = [sys.executable, "-m", "benchmarks.alignment.gold_judge"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield {"base_url": server.stdout.readline().strip(), "model": MODEL}
        finally:
            server.terminate()


def run_folder(seed: int) -> Path:
    return RUNS / f"alignment-{seed}-llm-judge"


def run(seed: int, base: Path, endpoint: Mapping[str, Any], *, core: int) -> None:
    """Runs the recipe and both evaluations by the judge. What is finished is reused."""
    started, folder = time.monotonic(), run_folder(seed)
    common = [f"name={folder.name}", f"seed={seed}", f"base_model={base}", "pretrain=null"]
    judge = [f"endpoints={{judge: {json.dumps(endpoint)}}}", "annotate.annotator_llm=judge"]
    alignloop([*common, *judge, "annotate.annotator_function=null"], core=core)
    write_prompts(folder.with_name(f"{folder.name}-measured"))
    first = evaluate(seed, "round-0.evaluate_policy", endpoint)
    people = {"people": [PERSON], "people_budget": NUM_LABELS, "people_against": "first", "previous": [str(first)]}
    evaluate(seed, last_evaluation(seed), endpoint, **people)
    print(f"seed {seed}  {time.monotonic() - started:6.0f} s", flush=True)


def write_prompts(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    prompts = [*evaluation_prompts("report"), *evaluation_prompts("tune")]
    rows = [json.dumps({"prompt": [{"role": "user", "content": text}]}) for text in prompts]
    (folder / "prompts.jsonl").write_text("".join(f"{row}\n" for row in rows))


def last_evaluation(seed: int) -> str:
    return evaluations(run_folder(seed), "summary.json")[-1].name.rpartition("-")[0]


def evaluate(seed: int, evaluation: str, endpoint: Mapping[str, Any], **people: Any) -> Path:
    """Evaluates the policy of one of the run's evaluations by the judge; `people` are keys of the person's labels."""
    folder = run_folder(seed)
    record = json.loads((folder / "steps" / evaluation / "artifact.json").read_text())
    output = folder.with_name(f"{folder.name}-measured") / evaluation
    if (output / "artifact.json").is_file():
        return output
    config = output.with_name(f"{output.name}.yaml")
    keys = {
        "prompts": [str(output.with_name("prompts.jsonl"))],
        "model_name_or_path": record["inputs"]["model_name_or_path"],
        "policy_step": record["keys"]["policy_step"],
        "judge_llm": "judge",
        "endpoints": {"judge": dict(endpoint)},
        "seed": seed,
        **MEASURING,
        "output_dir": str(output),
    }
    config.write_text(yaml.safe_dump(keys | people))
    command = [sys.executable, "-m", "stages.evaluate_policy", "--config", str(config)]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False).returncode == EXIT_CODE:
        label(output / "people")
        subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert (output / "artifact.json").is_file(), f"{output} has no record; see its log.txt"
    return output


def label(folder: Path) -> None:
    """Labels the rows of the person's page by the gold score of the texts, as the page would save them."""
    found = BATCH.search((folder / f"{PERSON}.html").read_text(encoding="utf-8"))
    assert found, "the page has no rows"
    batch = json.loads(found[1])
    head = {"format": FORMAT} | {name: batch[name] for name in ("run", "step", "batch", "person")}
    labels = [label_of(row) for row in batch["rows"]]
    lines = [head, *labels, {"end": True, "labels": len(labels)}]
    (folder / f"{PERSON}.labels.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def label_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The label of a row of a page, whose answers are in the order in which they are shown."""
    request = next(turn["content"] for turn in reversed(row["prompt"]) if turn["role"] == "user")
    level = preference(request, *row["answers"])
    first, second = ("one", "other") if row["first"] == "one" else ("other", "one")
    label = {"row": row["row"], "first": row["first"], "seconds": 1.0}
    if not level:
        return label | {"verdict": "tie"}
    return label | {"verdict": first if level > 0 else second, "strength": STRENGTHS[4 - abs(level)]}


def true_win_rate(policy: Path, other: Path) -> float:
    """The gold score's win rate of one evaluation's answers against the other's, ties as half; all answers count."""
    points: list[float] = []
    for own, theirs in zip(*(_answers(folder) for folder in (policy, other)), strict=True):
        for one, two in zip(own["candidates"], theirs["candidates"], strict=True):
            level = preference(own["prompt"][-1]["content"], one["text"], two["text"])
            points.append((1 + np.sign(level)) / 2)
    return float(np.mean(points))


def _answers(evaluation: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (evaluation / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Measured:
    """What a seed has shown."""

    gold_RP: np.ndarray  # mean gold of each evaluation prompt in each round
    judge: Mapping[str, Any]  # metrics of the annotator and the judge
    rates: Sequence[float]  # the judge's win rate over the first policy and the corrected one, each with its interval
    truth: float

    @property
    def covers(self) -> bool:
        return self.rates[4] <= self.truth <= self.rates[5]


def measured(seed: int) -> Measured:
    of_gold = evaluations(run_folder(seed), "summary.json")
    by_judge = run_folder(seed).with_name(f"{run_folder(seed).name}-measured")
    last = by_judge / last_evaluation(seed)
    metrics = json.loads((last / "artifact.json").read_text())["metrics"]
    annotated = json.loads((run_folder(seed) / "steps" / "round-1.annotate" / "artifact.json").read_text())["metrics"]
    return Measured(
        gold_RP=np.array([means_by_prompt(one) for one in of_gold]),
        judge=annotated | metrics,
        rates=[metrics[name] for name in OF_CORRECTION],
        truth=true_win_rate(last, by_judge / "round-0.evaluate_policy"),
    )


def table(of_seeds: Mapping[int, Measured]) -> list[str]:
    """A line for each seed, and in words whether gold has risen and whether the corrected interval covers the truth."""
    lines = [
        "| seed | gold by round | gain over round 0 | consistent | first | judge's win rate | corrected | truth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, one in of_seeds.items():
        gain = pooled_interval((one.gold_RP[-1] - one.gold_RP[0])[None])
        rates = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in (one.rates[:3], one.rates[3:])]
        shares = [f"{one.judge[f'annotator_{name}']:.2f}" for name in ("position_consistency", "prefers_first")]
        by_round = " ".join(f"{mean:.3f}" for mean in one.gold_RP.mean(axis=1))
        lines.append(f"| {seed} | {by_round} | {shown(gain)} | {' | '.join([*shares, *rates])} | {one.truth:.3f} |")
    gains = [pooled_interval((one.gold_RP[-1] - one.gold_RP[0])[None]) for one in of_seeds.values()]
    rose = sum(low > 0 for _, low, _ in gains)
    num_covered = sum(one.covers for one in of_seeds.values())
    raw = sum(one.rates[1] <= one.truth <= one.rates[2] for one in of_seeds.values())
    return [
        *lines,
        "",
        f"Gold rises beyond its interval with {rose} of {len(gains)} seeds. The corrected interval covers the true win "
        f"rate with {num_covered} of {len(gains)}, the judge's own with {raw}.",
    ]


def main(seeds: Sequence[int]) -> None:
    base = make_base()
    with judge_server() as endpoint:
        on_cores(lambda seed, core: run(seed, base, endpoint, core=core), seeds)
    print("\n".join(table({seed: measured(seed) for seed in seeds})))
