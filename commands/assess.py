"""Whether fine-tuning is needed: the same instructions, answered by candidates, compared by one judge, with their cost.

alignloop assess assess.yaml -o answers.jsonl
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from commands.program import imports, options_of, parser_for, run
from data_schemas.assessment import load_assessment, with_models
from data_schemas.files import digest
from data_schemas.rows import Candidates
from data_schemas.text import printable
from data_schemas.unexpected import guarded
from engine.runtime.output_file import check_output, write_output
from engine.runtime.stage import Stage

IDENTITY = ("temperature", "top_p", "max_new_tokens", "seed", "engine", "generation_batch_size", "dtype", "use_cpu")


def main() -> int:
    parser = parser_for("assess", __doc__)
    parser.add_argument("file", help="the file of the assessment")
    parser.add_argument("--models", help="JSON: the folder of each candidate's model")
    parser.add_argument("-o", "--output", required=True, help="the file to write: all answers")
    arguments = parser.parse_args()
    return run(lambda console: assess(arguments, console), output=Path(arguments.output))


def assess(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the answers, and prints the table and the verdict. Raises UserError for a wrong option, file or model."""
    options, sampling = options_of("assess", arguments)
    assessment = with_models(load_assessment(Path(arguments.file)), json.loads(arguments.models or "{}"))
    output, sampling = Path(arguments.output), replace(sampling, endpoints=assessment.endpoints or None)
    check_output(output)
    with imports():
        from engine.judging.scoring import scored_candidates
        from engine.models.loading import identity_of
        from engine.tasks.assessing import Assessor, policies_of
        from engine.tasks.panel import read_instructions

    prompts, questions = read_instructions(assessment.instructions, assessment.judge.task, assessment.num_instructions)
    policies = policies_of(assessment)
    identity = {"FILE": digest(assessment.model_dump(exclude={"endpoints", "gpu_hour_price"}))}
    identity |= {
        "MODELS": [one.endpoint.identity if one.endpoint else identity_of(one.path) for one in policies.values()]
    }
    identity |= {"INSTRUCTIONS": digest([prompt.to_json() for prompt in prompts])}
    said: list[str] = []

    def work(stage: Stage) -> list[Candidates]:
        def show(message: str) -> None:
            console.print(Text(printable(message)), soft_wrap=True)

        assessor = Assessor(stage, assessment, policies, prompts, questions, sampling, show)
        said.extend(assessor.report())
        groups = zip(*assessor.answers.values(), strict=True)
        return [scored_candidates(group, [None] * len(group)) for group in groups]

    write_output("assess", output, identity | {name: options[name] for name in IDENTITY}, work)
    for text in said:
        print(printable(text))


if __name__ == "__main__":
    sys.exit(guarded(main))
