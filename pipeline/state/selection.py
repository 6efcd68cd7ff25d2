"""Which steps of a plan `run` may run: all of them, or those that --until, --only or --from selects.

A step that is not selected is reused where it is finished, and stays pending otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_schemas.artifact import Artifact
from data_schemas.errors import ConfigError
from data_schemas.text import nearest, shown
from pipeline.state.run import Run
from pipeline.steps import BestPolicy, Step, source_steps

FINISHED = ("reuse", "skip", "to be hashed")  # `plan` cannot know of a step to be hashed whether it is finished


@dataclass(frozen=True)
class Selection:
    option: str  # "--until", "--only" or "--from"
    given: str  # what the option names
    steps: frozenset[str]


def select(
    steps: Sequence[Step], *, until: str | None = None, only: str | None = None, start: str | None = None
) -> Selection | None:
    """The steps up to and including the named one, only this one, or this one and all that follow. None: all steps.

    A name is that of a step, of its round (round-1) or of its section (dpo). Where it names several steps, --until ends
    with the last of them, and --from starts with the first. Raises ConfigError for an unknown name, and for more than
    one option.
    """
    given = {"--until": until, "--only": only, "--from": start}
    chosen = [(option, name) for option, name in given.items() if name is not None]
    if not chosen:
        return None
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(option for option, _ in chosen)} are not supported together; give one")
    (option, name) = chosen[0]
    places = [place for place, step in enumerate(steps) if _is_named(step, name)]
    if not places:
        raise ConfigError(
            f"{option} {shown(name)}: the plan has no such step, round or section"
            f"{nearest(name, names_of(steps)) or '; `plan` lists the steps'}"
        )
    first, last = places[0], places[-1]
    selected = {
        "--until": steps[: last + 1],
        "--only": [steps[place] for place in places],
        "--from": steps[first:],
    }[option]
    return Selection(option, name, frozenset(step.name for step in selected))


def names_of(steps: Sequence[Step]) -> list[str]:
    """Every name that an option may have: of steps, sections and rounds."""
    rounds = [f"round-{step.round}" for step in steps if step.round is not None]
    return list(dict.fromkeys([*(step.name for step in steps), *(step.section for step in steps), *rounds]))


def _is_named(step: Step, name: str) -> bool:
    """Whether the name is that of the step, its section or its round. The variants of round-1.dpo are part of it."""
    return name in (step.name, step.section) or step.name.startswith(f"{name}.")


def check_finished(run: Run, selection: Selection) -> None:
    """Raises ConfigError for the first step that the selected ones need and that is not finished."""
    if selection.option == "--until":
        return
    steps = {step.name: step for step in run.steps}
    for name in _before(run, selection):
        decision = run.decide(steps[name])
        if name not in selection.steps and decision.action not in FINISHED:
            raise ConfigError(
                f"{selection.option} {selection.given} needs {name}, which is not finished ({decision.why}); "
                f"--until {name} runs it"
            )


def _before(run: Run, selection: Selection) -> Iterator[str]:
    """With --only the steps whose output a selected one reads, with --from all that precede the first selected one."""
    for step in run.steps:
        if selection.option == "--from":
            if step.name in selection.steps:
                return
            yield step.name
        elif step.name in selection.steps:
            yield from _sources(run, step)


def _sources(run: Run, step: Step) -> Iterator[str]:
    """The steps that a step reads from, and those that trained the policies which an evaluation chose for it."""
    yield from source_steps(step)
    for reference in (item for items in step.inputs.values() for item in items):
        folder = run.folder(reference.step) if isinstance(reference, BestPolicy) else None
        if folder and isinstance(reference, BestPolicy) and (record := Artifact.read(folder)):
            yield from (choice.step for choice in record.choices[reference.rank :][:1])
