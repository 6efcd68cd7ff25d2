"""Bad files and keys of evaluate_tasks, and bad files of `alignloop assess` and `alignloop rewardbench`."""

import sys
from collections.abc import Callable
from typing import Any

from data_schemas import key_rules
from data_schemas.reward_bench import read_benchmark
from engine.judging.best_of_k import read_best_of_k
from tests.bad_inputs.bad_models import model
from tests.bad_inputs.cases import Call, Case, Place

IFEVAL = {"prompt": "Hi?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
TOOL = {"name": "add", "parameters": {}}
CALLS = {"id": "a", "question": "Hi?", "function": [TOOL], "ground_truth": [{"add": {"a": [1]}}]}
CHOICE = {"question": "Hi?", "choices": ["a", "b"], "answer": 0}
PROBLEM = {"question": "1?", "answer": "#### 1"}
FIRST = {"prompt": "Hi?", "chosen": "a", "rejected": "b", "subset": "donotanswer"}
SECOND = {"prompt": "Hi?", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Math", "id": "1"}
TIED = {"prompt": "Hi?", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties", "id": "tied:1"}


def tasks(task: str, *rows: object, **keys: Any) -> Callable[[Place], Call]:
    """The stage on a file with these rows."""

    def make(place: Place) -> Call:
        model(place)
        file = place.write("rows.jsonl", list(rows))
        return place.stage("evaluate_tasks", model_name_or_path="model", **{task: [file]} | keys)

    return make


def without(package: str, task: str, value: Any) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        installed = key_rules.is_installed
        place.patch.setattr(key_rules, "is_installed", lambda name: name != package and installed(name))
        return place.stage("evaluate_tasks", model_name_or_path="model", **{task: value})

    return make


def lm_eval(script: str, **keys: Any) -> Callable[[Place], Call]:
    """The stage with an interpreter of lm-eval that does this."""

    def make(place: Place) -> Call:
        model(place)
        python = place.folder / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        values = {"lm_eval_tasks": ["arc"], "lm_eval_python": str(python)} | keys
        return place.stage("evaluate_tasks", model_name_or_path="model", **values)

    return make


def benchmark(*rows: object) -> Callable[[Place], Call]:
    """A file in RewardBench's form with these rows."""
    return lambda place: place.function(read_benchmark, str(place.write("bench.jsonl", list(rows))))


def best_of_nothing(place: Place) -> Call:
    """The folder of an evaluation that has no record."""
    return place.function(read_best_of_k, place.folder)


def evaluated(place: Place) -> Call:
    """A policy whose folder of tasks has no record."""
    model(place)
    return place.stage(
        "evaluate_tasks",
        model_name_or_path="model",
        gsm8k=[place.write("rows.jsonl", [PROBLEM])],
        first=str(place.folder),
    )


def assess(**changes: Any) -> Callable[[Place], Call]:
    """`alignloop assess` on a file with these changes."""

    def make(place: Place) -> Call:
        from commands import assess as program

        model(place)
        place.write("prompts.jsonl", [{"prompt": "Hi?"}])
        candidates = {"a": {"model": "model"}, "b": {"model": "model", "system": "Be brief."}}
        content = {"instructions": "prompts.jsonl", "judge": {"function": "judge:score"}, "candidates": candidates}
        place.write("assess.yaml", {key: value for key, value in (content | changes).items() if value is not None})
        place.patch.chdir(place.folder)
        place.patch.setattr(sys, "argv", ["assess", "assess.yaml", "-o", "out.jsonl", "--use_cpu"])
        return program.main

    return make


def two(**candidate: Any) -> dict[str, Any]:
    return {"a": {"model": "model"}, "b": candidate}


SERVED = {"base_url": "https://api.example.com/v1", "model": "m"}
CASES = [
    Case(
        "benchmark: no rows",
        benchmark(),
        "bench.jsonl has no rows; expected the columns of RewardBench, prompt, chosen",
    ),
    Case(
        "benchmark: no mapping", benchmark([1]), "bench.jsonl:1: row: found a list of 1, expected the columns of Reward"
    ),
    Case("benchmark: no JSON", benchmark("{\n"), "bench.jsonl:1: line: found "),
    Case(
        "benchmark: pairs without subsets",
        benchmark({key: FIRST[key] for key in ("prompt", "chosen", "rejected")}),
        "subset: found nothing, expected the columns of RewardBench, prompt, chosen, rejected and subset; `score` take",
    ),
    Case(
        "benchmark: both forms",
        benchmark(FIRST, SECOND),
        "bench.jsonl:2: chosen: found a list of 1, expected the form of the rows before it, texts",
    ),
    Case(
        "benchmark: a text among lists",
        benchmark(SECOND | {"rejected": "b"}),
        "bench.jsonl:1: rejected: found 'b', expected a list of texts",
    ),
    Case("benchmark: a subset without a name", benchmark(FIRST | {"subset": 3}), "bench.jsonl:1: subset: found 3, exp"),
    Case(
        "benchmark: several right answers",
        benchmark(SECOND | {"chosen": ["a", "d"]}),
        "bench.jsonl:1: chosen: found 2 answers, expected one: only the subset Ties has several right answers",
    ),
    Case(
        "benchmark: ties without a number",
        benchmark(TIED | {"id": "tied"}),
        "bench.jsonl:1: id: found 'tied', expected ref:NUMBER or tied:NUMBER in the subset Ties",
    ),
    Case(
        "benchmark: ties with one right answer",
        benchmark(TIED | {"chosen": ["a"]}),
        "chosen: found 1 answer in tied:1, expected several in a row `tied`, one in a row `ref`",
    ),
    Case(
        "benchmark: ties twice",
        benchmark(TIED, TIED),
        "two rows of the subset Ties have the id tied:1; expected one of each",
    ),
    Case(
        "benchmark: ties without a reference",
        benchmark(TIED),
        "the subset Ties has no row tied:N with its reference row ref:N; expected at least one",
    ),
    Case("best of K of no evaluation", best_of_nothing, "is not an evaluation as its step wrote it (it has no record)"),
    Case(
        "a limit for tasks without tasks",
        lambda place: place.alignloop("plan", *place.recipe("evaluate_policy.gate_max_task_fall=0.1")),
        "gate_max_task_fall has no tasks to compare; add a section evaluate_tasks",
    ),
    Case(
        "no task", lambda place: place.stage("evaluate_tasks", model_name_or_path="m"), "lm_eval_tasks is missing: the"
    ),
    Case("ifeval without languages", without("py3langid", "ifeval", ["x"]), "the package py3langid is not installed"),
    Case("tasks without lm-eval", without("lm_eval", "lm_eval_tasks", ["arc"]), "the package lm-eval is not installed"),
    Case(
        "an unknown option of lm-eval", lm_eval("", lm_eval_options={"shots": 1}), "lm_eval_options: unknown key 'sho"
    ),
    Case(
        "an interpreter without lm-eval", lm_eval("echo No module named lm_eval; exit 1"), "has no lm_eval; install it"
    ),
    Case(
        "no interpreter of lm-eval", lm_eval("", lm_eval_python="/no/python"), "'/no/python' cannot be started (No such"
    ),
    Case(
        "an lm-eval that fails",
        lm_eval("echo a; echo b; exit 3"),
        "lm_eval ended with exit code 3: a | b; its log",
        code=1,
    ),
    Case(
        "an lm-eval without numbers", lm_eval("exit 0"), "lm_eval_tasks: arc: lm_eval gives no number for each question"
    ),
    Case("examples without a number of them", tasks("gsm8k", PROBLEM, num_examples=1), "need each other; set both or"),
    Case("a task without questions", tasks("function_calls", {"id": "a", "ground_truth": []}), "no question is left"),
    Case("a task's row that is a number", tasks("gsm8k", 3), "rows.jsonl:1: row: found 3, expected a mapping"),
    Case("a task's row that is no JSON", tasks("gsm8k", "{\n"), "rows.jsonl:1: "),
    Case("a task without a text", tasks("gsm8k", {"question": 3}), "rows.jsonl:1: question: found 3, expected text"),
    Case("a problem without a number", tasks("gsm8k", PROBLEM | {"answer": "1"}), "rows.jsonl:1: answer: found '1'"),
    Case(
        "no instructions",
        tasks("ifeval", IFEVAL | {"instruction_id_list": []}),
        "instruction_id_list: found a list of 0",
    ),
    Case("too few kwargs", tasks("ifeval", IFEVAL | {"kwargs": []}), "expected a list of 1 mappings, one for each"),
    Case(
        "kwargs of text",
        tasks("ifeval", IFEVAL | {"kwargs": ["a"]}),
        "expected a mapping with the arguments of punctua",
    ),
    Case(
        "an unknown instruction",
        tasks("ifeval", IFEVAL | {"instruction_id_list": ["punctuation:no_commas"]}),
        "'punctuation:no_commas'; did you mean 'punctuation:no_comma'?, expected one of the 25 kinds",
    ),
    Case(
        "an instruction without its arguments",
        tasks("ifeval", IFEVAL | {"instruction_id_list": ["length_constraints:number_words"]}),
        "kwargs: found {} ('relation'), expected the arguments of length_constraints:number_words",
    ),
    Case(
        "an instruction with another relation",
        tasks(
            "ifeval",
            IFEVAL
            | {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"relation": "about", "num_words": 3}],
            },
        ),
        "the relation 'about' is neither 'less than' nor 'at least'",
    ),
    Case("one choice", tasks("multiple_choice", CHOICE | {"choices": ["a"]}), "choices: found a list of 1, expected a"),
    Case(
        "a wrong choice",
        tasks("multiple_choice", CHOICE | {"answer": 2}),
        "answer: found 2, expected a number from 0 to 1",
    ),
    Case(
        "no right call",
        tasks("function_calls", CALLS | {"ground_truth": "add"}),
        "ground_truth: found 'add', expected a",
    ),
    Case(
        "a question of numbers",
        tasks("function_calls", CALLS | {"question": [3]}),
        "question: found a list of 1, expected",
    ),
    Case(
        "a question without roles",
        tasks("function_calls", CALLS | {"question": [{"a": 1}]}),
        "each with role and content",
    ),
    Case("a function without a name", tasks("function_calls", CALLS | {"function": [{}]}), "each with its name"),
    Case("no evaluation of the first policy", evaluated, "holds no finished evaluation on tasks; run evaluate_tasks"),
    Case(
        "assess with an unknown key",
        assess(canditates={}),
        "assess.yaml: unknown key 'canditates'; did you mean 'candi",
    ),
    Case("assess without instructions", assess(instructions=None), "assess.yaml: instructions is missing"),
    Case(
        "assess one candidate",
        assess(candidates={"a": {"model": "m"}}),
        "assess.yaml: candidates={'a': {'model': 'm'}}: ",
    ),
    Case(
        "assess by two judges", assess(judge={"task": "ifeval", "llm": "m"}), "expected one of task, function and llm, "
    ),
    Case(
        "assess by a task's rubric", assess(judge={"task": "ifeval", "rubric": "r"}), "judge.rubric is for an LLM judge"
    ),
    Case("assess nothing", assess(candidates=two()), "candidates.b: expected either model or endpoint"),
    Case(
        "assess an unknown endpoint",
        assess(candidates=two(endpoint="larg"), endpoints={"large": SERVED}),
        "candidates.b.endpoint='larg' is not among `endpoints`; did you mean 'large'?",
    ),
    Case("assess beside no baseline", assess(baseline="c"), "baseline='c' is not among `candidates`"),
]
