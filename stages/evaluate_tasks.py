"""Evaluates a policy on standard benchmarks: IFEval, GSM8K, function calls, multiple choice, and tasks of lm-eval.

The files are the user's. Each score has a 95 % interval, and each change from the first policy a paired one, so that a
run shows in every round what its alignment costs elsewhere. The gate of `evaluate_policy` reads the changes from the
best policy so far (`gate_max_task_fall`). Answers are sampled at temperature 0 under the policy's own chat template.

    accelerate launch stages/evaluate_tasks.py --config configs/stages/evaluate_tasks.yaml
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_schemas.stage_keys import Keys, StageTraits
from engine.judging.comparison import Metric
from engine.judging.shared_scoring import ScoringSettings
from engine.runtime import timing
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage, StageResult, run_stage
from engine.sampling.answers import Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from engine.tasks.changes import changes, read_evaluation
from engine.tasks.function_calls import read_function_calls
from engine.tasks.grades import GRADES, Grade, measures_of, points_by_measure, score_of, write_grades
from engine.tasks.gsm8k import read_gsm8k
from engine.tasks.ifeval import read_ifeval
from engine.tasks.lm_eval import LMEval, evaluate
from engine.tasks.multiple_choice import choose, read_choices
from engine.tasks.questions import ChoiceQuestion, Question

RECIPE_VERSION = 1
EXAMPLE = "accelerate launch stages/evaluate_tasks.py --config configs/stages/evaluate_tasks.yaml"
TRAITS = StageTraits(
    purpose="Scores a policy on standard benchmarks, whose files the recipe gives.",
    position=85,
    kind="generates",
    runs="after_round",
    in_every_round=False,
    headlines=["ifeval_strict", "gsm8k", "function_calls", "multiple_choice"],
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluateTasksArguments(GenerationArguments):
    model_name_or_path: str = required_field("the policy under test", role="model")
    policy_step: str = key_field("", "name of the step that trained the policy")
    first: str | None = key_field(None, "folder of this stage for the first policy: what changed since", role="rows")
    ifeval: list[str] | None = key_field(None, "files of IFEval: instructions that a program can check", role="rows")
    gsm8k: list[str] | None = key_field(None, "files of GSM8K: final numbers have to match", role="rows")
    gsm8k_examples: list[str] | None = key_field(
        None, "files of solved problems, of which num_examples precede each problem of gsm8k", role="rows"
    )
    num_examples: int = key_field(0, "solved problems before each problem of gsm8k", minimum=0, maximum=1000)
    function_calls: list[str] | None = key_field(
        None, "files of dialogs with tools, or of BFCL: calls are compared as parsed trees", role="rows"
    )
    multiple_choice: list[str] | None = key_field(
        None, "files of questions with choices: the most probable one counts", role="rows"
    )
    choices_by: Literal["text", "letter"] = key_field(
        "text", "what is compared: the choices' own texts, or their letters after a list in the question"
    )
    lm_eval_tasks: list[str] | None = key_field(
        None, "tasks of lm-evaluation-harness, which runs in a separate process"
    )
    lm_eval_files: list[str] | None = key_field(None, "folders of task files for lm-evaluation-harness", role="rows")
    lm_eval_options: Keys | None = key_field(
        None, "its options: num_fewshot, limit, apply_chat_template (true), fewshot_as_multiturn, gen_kwargs, …"
    )
    lm_eval_python: str | None = key_field(
        None, "the interpreter of the environment with lm-eval; null: this one, with the extra `eval`", role="runtime"
    )
    num_questions: int | None = key_field(None, "the first questions of each task; null: all", minimum=1)
    temperature: float = key_field(0.0, "softmax temperature; 0 takes the most probable token", minimum=0)
    max_new_tokens: int = key_field(1280, "longest answer, in tokens", minimum=1, maximum=10**7)


ARGUMENTS = (EvaluateTasksArguments,)


def read_questions(arguments: EvaluateTasksArguments) -> tuple[list[Question], list[ChoiceQuestion]]:
    """The questions that are answered in words, and those with choices. Raises UserError for a wrong row."""
    count = arguments.num_questions
    questions: list[Question] = []
    if arguments.ifeval:
        questions += read_ifeval(arguments.ifeval, count=count)
    if arguments.gsm8k:
        questions += read_gsm8k(
            arguments.gsm8k,
            count=count,
            examples=arguments.gsm8k_examples or [],
            num_examples=arguments.num_examples,
        )
    if arguments.function_calls:
        questions += read_function_calls(arguments.function_calls, count=count)
    by_letter = arguments.choices_by == "letter"
    files = arguments.multiple_choice
    return questions, read_choices(files, count=count, by_letter=by_letter) if files else []


def answer(stage: Stage, arguments: EvaluateTasksArguments, questions: Sequence[Question]) -> list[Grade]:
    """The grades of the policy's own answers, in order."""
    if not questions:
        return []
    policy = Policy(arguments.model_name_or_path, arguments.policy_step or arguments.model_name_or_path)
    settings = SamplingSettings.of(arguments, purpose="evaluate_tasks")
    requests = [(question.prompt, None) for question in questions]
    answers = sample_in_turn(stage, [policy], requests, settings, num_answers=1)
    return [
        Grade(question.task, question.question_id, question.grade(given), given.text)
        for question, (given,) in zip(questions, answers, strict=True)
    ]


def metrics_of(grades: Sequence[Grade], *, seed: int) -> dict[str, Metric]:
    """Every measure with its interval, and the questions of every task."""
    metrics: dict[str, Metric] = {"task_scores": ", ".join(names[0] for names in measures_of(grades).values())}
    points = points_by_measure(grades)
    for task, measures in measures_of(grades).items():
        for measure in measures:
            score = score_of(list(points[measure].values()), seed=seed)
            metrics |= {measure: score.mean, f"{measure}_low": score.low, f"{measure}_high": score.high}
        metrics[f"{task}_questions"] = len(points[measures[0]])
    return metrics


@timing.part("evaluate")
def main(stage: Stage, arguments: EvaluateTasksArguments) -> StageResult:
    questions, choices = read_questions(arguments)
    first = read_evaluation(arguments.first)[1] if arguments.first else None
    grades = answer(stage, arguments, questions)
    grades += choose(stage, choices, arguments.model_name_or_path, ScoringSettings.of(arguments))
    grades += evaluate(
        stage,
        arguments.model_name_or_path,
        LMEval(
            arguments.lm_eval_tasks or [],
            arguments.lm_eval_python,
            arguments.lm_eval_files or [],
            arguments.lm_eval_options or {},
        ),
        dtype=arguments.dtype,
        batch_size=arguments.generation_batch_size,
        use_cpu=arguments.use_cpu,
    )
    metrics = metrics_of(grades, seed=arguments.seed)
    if first is not None:
        metrics |= changes(grades, first, "first", seed=arguments.seed)
    if stage.is_main:
        write_grades(stage.folder, grades)
    for measures in measures_of(grades).values():
        for name in measures:
            log.info(
                "%s: %.3f [%.3f, %.3f]", name, *(np.float64(metrics[f"{name}{end}"]) for end in ("", "_low", "_high"))
            )
    return StageResult(outputs={"grades": GRADES}, metrics=metrics)


if __name__ == "__main__":
    run_stage("evaluate_tasks", ARGUMENTS, main)
