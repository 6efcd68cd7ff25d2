"""Answers the prompts of a file with a model; the same answers as a stage samples for the same settings.

alignloop generate MODEL_DIR prompts.jsonl -o answers.jsonl --num_answers 4
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from commands.program import imports, options_of, parser_for, run
from data_schemas.errors import ConfigError
from data_schemas.files import digest
from data_schemas.reading import ONE_FILE_ADVICE, read_prompts, warn_of_ignored
from data_schemas.rows import Candidates, Prompt
from data_schemas.sources import Source
from data_schemas.text import printable
from data_schemas.unexpected import guarded
from engine.runtime.output_file import check_output, has_finished_batches, write_output
from engine.runtime.stage import Stage
from engine.sampling.prompts import with_system_prompt

PURPOSE = "generate"  # part of the seed of the noise; `chat` has the same, and so the same answers
# Options that change the answers, if only by rounding: an interrupted file is continued with the same ones.
IDENTITY = (
    "num_answers",
    "temperature",
    "top_p",
    "max_new_tokens",
    "seed",
    "engine",
    "generation_batch_size",
    "dtype",
    "use_cpu",
)


def main() -> int:
    parser = parser_for("generate", __doc__)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("prompts", help="a file of prompts")
    parser.add_argument("-o", "--output", required=True, help="the file to write")
    parser.add_argument("--system", help="a system prompt, for prompts without one")
    arguments = parser.parse_args()
    return run(lambda console: generate(arguments, console), output=Path(arguments.output))


def generate(arguments: argparse.Namespace, console: Console) -> None:
    """Writes a row of Candidates for each prompt. Raises UserError for a wrong option, file or model."""
    options, sampling = options_of("generate", arguments)
    output, num_answers = Path(arguments.output), options["num_answers"]
    check_output(output)
    prompts = read_requested(arguments.prompts, arguments.system)
    with imports():
        from engine.judging.scoring import scored_candidates
        from engine.models.loading import check_is_policy, identity_of, name_of
        from engine.models.policy_tokenizer import load_policy_tokenizer
        from engine.sampling.answers import Policy, SamplingSettings
        from engine.sampling.sampler import sample_in_turn

    load_policy_tokenizer(arguments.model)
    check_is_policy(arguments.model)
    policy = Policy(arguments.model, name_of(arguments.model))
    identity = {"MODEL": identity_of(arguments.model), "PROMPTS": digest([prompt.to_json() for prompt in prompts])}

    def sample(stage: Stage) -> list[Candidates]:
        doing = "continuing" if has_finished_batches(output) else "generating"
        message = f"{doing} answers to {len(prompts)} prompts, {num_answers} to each, by {policy.name}"
        console.print(Text(printable(message)), soft_wrap=True)
        settings = SamplingSettings.of(sampling, purpose=PURPOSE)
        requests = [(prompt, None) for prompt in prompts]
        answers = sample_in_turn(stage, [policy], requests, settings, num_answers=num_answers)
        return [scored_candidates(group, [None] * len(group)) for group in answers]

    rows = write_output("generate", output, identity | {name: options[name] for name in IDENTITY}, sample)
    print(printable(f"{output}: {summary(rows)}"))


def read_requested(file: str, system: str | None) -> list[Prompt]:
    """The prompts of a file, with the system prompt where they have none. Raises UserError, also where none is left."""
    read = read_prompts(Source.of_argument(file).value(), advice=ONE_FILE_ADVICE)
    warn_of_ignored(read.ignored)
    prompts = read.rows
    if not prompts:
        raise ConfigError(f"{file} has no prompt that can be answered; expected at least one")
    if system is not None and not system.strip():
        raise ConfigError("--system is empty; expected text, or leave it out")
    return [with_system_prompt(prompt, system) if system else prompt for prompt in prompts]


def summary(rows: Sequence[Candidates]) -> str:
    """What was generated, in one line."""
    answers = [candidate for row in rows for candidate in row.candidates]
    ended = sum(answer.ended for answer in answers) / len(answers)
    tokens = sum(answer.num_tokens for answer in answers) / len(answers)
    return f"{len(answers)} answers to {len(rows)} prompts, {tokens:.1f} tokens on average, {ended:.1%} ended"


if __name__ == "__main__":
    sys.exit(guarded(main))
