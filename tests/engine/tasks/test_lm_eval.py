"""Tasks of lm-evaluation-harness: how it is started, and what is read of its files, with a program in its place."""

import json
import sys
from pathlib import Path

from tests.stage_runs import run_here

# Writes the files of `lm_eval run` 0.4.13, and what it was started with.
PROGRAM = """#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
pathlib.Path({words!r}).write_text(json.dumps(words))
folder = pathlib.Path(words[words.index("--output_path") + 1]) / "model"
folder.mkdir()
def write(task, samples):
    file = folder / f"samples_{{task}}_2026-11-30T00-00-00.000000.jsonl"
    file.write_text("".join(json.dumps(sample) + chr(10) for sample in samples))
arc = {{"filter": "none", "metrics": ["acc", "acc_norm"], "acc_norm": 1.0}}
write("arc_easy", [arc | {{"doc_id": number, "acc": float(number < 3)}} for number in range(4)])
math = {{"doc_id": 0, "metrics": ["exact_match", "parts"], "parts": [1, 2]}}
filters = {{"strict-match": 0, "flexible-extract": 1}}
write("math", [math | {{"filter": name, "exact_match": value}} for name, value in filters.items()])
"""


def test_each_question_has_the_metrics_that_are_numbers(tiny_model, tmp_path):
    program, words = tmp_path / "python", tmp_path / "words.json"
    program.write_text(PROGRAM.format(python=sys.executable, words=str(words)))
    program.chmod(0o755)
    record = run_here(
        "evaluate_tasks",
        tmp_path / "out",
        model_name_or_path=tiny_model,
        lm_eval_tasks=["arc_easy", "math"],
        lm_eval_python=str(program),
        lm_eval_options={"num_fewshot": 2, "apply_chat_template": False},
        lm_eval_files=[tmp_path],
        generation_batch_size=4,
    )
    given = json.loads(words.read_text())
    assert given[:5] == ["-m", "lm_eval", "run", "--model", "hf"]
    options = dict(zip(given[6::2], given[7::2], strict=False))
    assert options["--model_args"] == f"pretrained={tiny_model},dtype=auto" and options["--tasks"] == "arc_easy,math"
    assert (options["--num_fewshot"], options["--include_path"]) == ("2", str(tmp_path))
    assert "--apply_chat_template" not in given and not Path(options["--output_path"]).exists()
    assert record.metrics["lm_eval_arc_easy_acc"] == 0.75 and record.metrics["lm_eval_arc_easy_acc_norm"] == 1.0
    assert record.metrics["lm_eval_math_exact_match_strict_match"] == 0.0
    assert record.metrics["lm_eval_math_exact_match_flexible_extract"] == 1.0
    assert record.metrics["task_scores"] == "lm_eval_arc_easy_acc, lm_eval_math_exact_match_strict_match"
    assert not any("parts" in name for name in record.metrics)
