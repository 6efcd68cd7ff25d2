"""The commands that take a model: chat."""

import subprocess
import sys
from typing import Annotated

import typer

from pipeline.cli.app import app, environment
from pipeline.launch.command_line import ROOT
from pipeline.state.models import model_of


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_DIR", help="The folder of a model, of a step or of a run, or a hub name.")
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="Print the answer to this prompt and exit.  [default: none, which starts a conversation]"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.  [default: none]")] = None,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the sampling. With 0 the most probable token is taken.")
    ] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    use_cpu: Annotated[
        bool, typer.Option("--use_cpu", help="Run on the CPU even if there is a GPU.  [default: off]")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust_remote_code", help="Run code that comes with the model's files.  [default: off]"),
    ] = False,
) -> None:
    """Chat with a model. An empty line or Ctrl-D ends the conversation."""
    words = [model_of(model)]
    for name, value in (("prompt", prompt), ("system", system)):
        words += [f"--{name}={value}"] if value is not None else []
    words += [f"--temperature={temperature}", f"--max_new_tokens={max_new_tokens}", f"--seed={seed}"]
    words += ["--use_cpu"] if use_cpu else []
    words += ["--trust_remote_code"] if trust_remote_code else []
    command = [sys.executable, str(ROOT / "commands" / "chat.py"), *words]
    raise typer.Exit(subprocess.call(command, env=environment()))
