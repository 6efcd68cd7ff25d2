"""The commands that take a model: chat | generate | score | rewardbench | assess. Each is a program in commands/."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from data_schemas.assessment import load_assessment
from data_schemas.model_options import OPTIONS, checked, default_of, help_of, key_of
from pipeline.cli.app import app, environment
from pipeline.launch import command_line
from pipeline.state.models import evaluation_with, model_of, reward_model_of

REST = inspect.Parameter.VAR_KEYWORD
TYPES = {"bool": bool, "int": int, "float": float}  # of a key -> of its option; the others are text
ModelFolder = Annotated[
    str, typer.Argument(metavar="MODEL_DIR", help="The folder of a model, of a step or of a run, or a hub name.")
]
RewardModelFolder = Annotated[
    str,
    typer.Argument(
        metavar="REWARD_MODEL_DIR", help="The folder of a reward model, of its step, or of a run: the newest one."
    ),
]
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write, as JSON lines.")]
System = Annotated[str | None, typer.Option(help="A system prompt.  [default: none]")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of its name in data_schemas.model_options, as its keyword arguments."""
    name = command.__name__
    parameters = [given for given in inspect.signature(command).parameters.values() if given.kind is not REST]
    for option in OPTIONS[name]:
        kind = TYPES.get(key_of(option).type, str | None)
        default = default_of(name, option)
        left_out = "  [default: off]" if kind is bool else "  [default: none]" if default is None else ""
        annotation = Annotated[kind, typer.Option(f"--{option}", help=help_of(option) + left_out)]
        parameters.append(
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@app.command()
@with_options
def chat(
    model: ModelFolder,
    other: Annotated[
        str | None, typer.Option("--with", help="A second model, which answers too.  [default: none]")
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            "--reward_model", help="A reward model or a run: its score of each answer is printed.  [default: none]"
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Print the answer to this prompt and exit.  [default: none, which starts a conversation]"),
    ] = None,
    system: System = None,
    **options: Any,
) -> None:
    """Chat with a model, or with two side by side. An empty line or Ctrl-D ends the conversation, and /new
    starts another. Lines from a file or pipe form one conversation, in which empty lines are skipped."""
    models = {
        "with": model_of(other) if other is not None else None,
        "reward_model": reward_model_of(reward_model) if reward_model is not None else None,
    }
    _start("chat", [model_of(model)], models | {"prompt": prompt, "system": system}, options)


@app.command()
@with_options
def generate(
    model: ModelFolder,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS", help="A .txt file with one prompt per line, or rows in a format of docs/data.md."
        ),
    ],
    output: Output,
    system: System = None,
    **options: Any,
) -> None:
    """Answer the prompts of a file. An interrupted command, typed again, continues where it was."""
    _start("generate", [model_of(model), prompts], {"output": output, "system": system}, options)


@app.command()
@with_options
def score(
    reward_model: RewardModelFolder,
    answers: Annotated[
        str,
        typer.Argument(
            metavar="ANSWERS", help="Answers of `generate`, rows with a prompt and its answer, or preference pairs."
        ),
    ],
    output: Output,
    **options: Any,
) -> None:
    """Score answers with a reward model."""
    _start("score", [reward_model_of(reward_model), answers], {"output": output}, options)


@app.command()
@with_options
def rewardbench(
    reward_model: RewardModelFolder,
    rows: Annotated[
        str, typer.Argument(metavar="ROWS", help="A file, a folder or a hub name in the form of RewardBench 1 or 2.")
    ],
    output: Output,
    **options: Any,
) -> None:
    """Score a reward model on RewardBench 1 or 2; of a run, beside its best-of-K in the loop."""
    others = {"output": output, "evaluation": evaluation_with(reward_model)}
    _start("rewardbench", [reward_model_of(reward_model), rows], others, options)


@app.command()
@with_options
def assess(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What is assessed, as YAML: see docs/assess.md.")],
    output: Output,
    **options: Any,
) -> None:
    """Show whether fine-tuning is needed: candidates, one judge, their cost. Typed again, it continues."""
    candidates = load_assessment(Path(file)).candidates
    folders = {name: model_of(candidate.model) for name, candidate in candidates.items() if candidate.model}
    _start("assess", [file], {"output": output, "models": json.dumps(folders)}, options)


def _start(program: str, arguments: list[str], others: dict[str, str | None], options: dict[str, Any]) -> NoReturn:
    """Replaces this process by the program, so that signals reach it and its exit code is the command's.

    Raises ConfigError for an option with an invalid value, before anything is loaded.
    """
    checked(program, options)
    words = list(arguments)
    for name, value in (others | options).items():
        if value is not None and value is not False:
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, str(command_line.ROOT / "commands" / f"{program}.py"), *words]
    os.execve(command[0], command, environment())
