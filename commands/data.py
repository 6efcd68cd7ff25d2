"""Shows what files of rows contain, and what to write into a recipe to use them. Needs no torch without --model.

alignloop data FILE... [--model FOLDER] [--evaluation FILE]
"""

import argparse
import json
import shlex
import statistics
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from commands.data_rules import rules_of
from data_schemas.errors import DataError, UserError
from data_schemas.formats import format_of
from data_schemas.known_columns import misspelt
from data_schemas.reading import ONE_FILE_ADVICE, read_prompts
from data_schemas.row_kinds import KINDS
from data_schemas.rows import Conversation, Document, Message, PreferencePair, Prompt, Row
from data_schemas.sources import Source, SourceValue
from data_schemas.survey import PlacedRow, Problem, Survey, excerpt, parts_of, scripts, survey
from data_schemas.text import listed, printable
from data_schemas.unexpected import guarded
from data_schemas.yaml_files import dump_line

NUM_ROWS_SHOWN = 3
MAX_TOKENIZED_ROWS = 10_000
MAX_MESSAGE = 400  # characters of a message that are shown
MAX_RENDERED = 1500  # characters of a row in the model's template
MIN_SHARE = 0.005  # of a script that is listed


class Model:
    """The tokenizer and chat template of a model's folder."""

    def __init__(self, folder: str) -> None:
        from transformers.utils import logging

        from engine.models.loading import read_tokenizer
        from engine.tokens.rendering import render

        logging.set_verbosity_error()
        self._render = render  # under limits of time and memory: a template is a program
        self.tokenizer = read_tokenizer(folder, revision="main")

    def render(self, row: Row) -> list[tuple[str, str]]:
        """A row's texts in the model's template. Raises UserError where the template refuses it."""
        if isinstance(row, Document):
            return [("", row.text)]
        return [(name, self._in_template(messages, row)) for name, messages in dialogs_of(row)]

    def _in_template(self, messages: Sequence[Message], row: Row) -> str:
        if not self.tokenizer.chat_template:
            raise DataError("the model has no chat template; prepare_base can set one, as in {chat_template: chatml}")
        is_prompt = isinstance(row, Prompt)
        return self._render(self.tokenizer, messages, tools=getattr(row, "tools", None), generation_prompt=is_prompt)

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False)
        return [len(ids) for ids in encoded["input_ids"]]  # pyright: ignore[reportArgumentType]


def dialogs_of(row: Row) -> list[tuple[str, Sequence[Message]]]:
    """The dialogs of a row with their names: two of a pair, else one without a name."""
    match row:
        case Conversation():
            return [("", row.messages)]
        case PreferencePair():
            return [("chosen", [*row.prompt, *row.chosen]), ("rejected", [*row.prompt, *row.rejected])]
        case Prompt():
            return [("", row.prompt)]
    raise AssertionError(type(row))


def show(found: Survey, model: Model | None, evaluation: Sequence[SourceValue], console: Console) -> None:
    """Prints a report on one source. Raises UserError for an evaluation set that cannot be read."""
    console.rule(plain(str(found.source.path), "bold"), align="left")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    for name, value in facts_of(found):
        facts.add_row(name, plain(value))
    console.print(facts)
    if not found.kind and found.columns and not found.problems:
        console.print(plain(command_with_columns(found)), soft_wrap=True)  # in one line, for a shell
    if found.rows:
        console.print(lengths_of(found, model))
        for part in rules_of(found, evaluation):
            console.print(part)
    for problem in found.problems:
        console.print(plain(problem_line(problem), "yellow"))
    for number, item in enumerate(found.rows[:NUM_ROWS_SHOWN], 1):
        console.print(plain(f"row {number} ({item.place})", "bold"))
        console.print(plain(shown(item, model)))


def facts_of(found: Survey) -> list[tuple[str, str]]:
    """What is known of a source in one line each: a name and a value."""
    facts = []
    if len(found.files) > 1:
        names = ", ".join(found.files[:3]) + (", …" if len(found.files) > 3 else "")
        facts.append(("files", f"{len(found.files)}: {names}"))
    formats = dict.fromkeys(format_of(Path(name)) or "hub" for name in found.files)
    facts.append(("format", f"{', '.join(formats)}; {found.num_lines:,} rows"))
    if not found.num_lines:
        return facts
    facts.append(("columns", listed(found.columns) or "none"))
    if not found.kind and found.problems:
        facts.append(("read as", "nothing: no row can be read"))
        return facts
    if not found.kind:
        facts.append(("read as", "nothing: no known format of rows has these columns; expected one of"))
        facts.extend((kind, accepted(kind)) for kind in KINDS if kind != "evaluation_prompts")
        remedy = (
            "name them as in the command below: on the left alignloop's name, on the right the file's; correct both"
        )
        facts.append(("remedy", remedy))
        return facts
    dialects = ", ".join(f"{columns} ({count:,})" for columns, count in found.dialects.items())
    others = f"; also possible: {', '.join(found.other_kinds)}" if found.other_kinds else ""
    facts.append(("read as", f"{found.kind}, by the columns {dialects}{others}"))
    if found.is_guessed:
        guessed = ", ".join(f"{listed([column])} is {ours}" for ours, column in found.source.columns.items())
        facts.append(("guessed", f"{guessed}; write `columns` as below, or correct it"))
    num_bad = sum(problem.count for problem in found.problems)
    valid = "valid pairs" if any(name.endswith(" + label") for name in found.dialects) else "valid"
    facts.append(("rows", f"{len(found.rows):,} {valid}, {num_bad:,} with a problem"))
    facts.append(("duplicates", f"{found.num_duplicates:,} (texts equal to those of an earlier row)"))
    if found.num_first_messages is not None:
        facts.append(
            ("dialogs", f"{found.num_first_messages:,} different first user messages, by which rows are split")
        )
    shares = scripts(text for item in found.rows for text in parts_of(item.row).values())
    of_scripts = ", ".join(f"{script} {share:.0%}" for script, share in shares.items() if share >= MIN_SHARE)
    facts.append(("scripts", of_scripts or "no letters"))
    ignored = f"columns {listed(found.ignored)}{misspelt(found.ignored)}" if found.ignored else "no column"
    facts.append(("ignored", ignored))
    return facts


def accepted(kind: str) -> str:
    """The columns of each dialect of a kind."""
    return ", or ".join(" + ".join(dialect.columns) for dialect in KINDS[kind][1])


def lengths_of(found: Survey, model: Model | None) -> Table:
    """A table of the median, the 95th percentile and the maximum of the rows' lengths."""
    table = Table("length of", "unit", "median", "95 % up to", "longest", box=box.SIMPLE_HEAD, header_style="dim")
    for column in table.columns[2:]:
        column.justify = "right"
    characters: dict[str, array[int]] = {}
    words: dict[str, array[int]] = {}
    texts: dict[str, list[str]] = {}
    for number, item in enumerate(found.rows):
        for name, text in parts_of(item.row).items():
            characters.setdefault(name, array("q")).append(len(text))
            words.setdefault(name, array("q")).append(len(text.split()))
            if model is not None and number < MAX_TOKENIZED_ROWS:
                texts.setdefault(name, []).append(text)
    for name in characters:
        table.add_row(name, "characters", *quantiles(characters[name]))
        table.add_row("", "words", *quantiles(words[name]))
        if model is not None:
            table.add_row("", "tokens", *quantiles(model.num_tokens(texts[name])))
    if model is not None and found.kind != "documents":
        rendered: dict[str, list[str]] = {}
        for item in found.rows[:MAX_TOKENIZED_ROWS]:
            try:
                for name, text in model.render(item.row):
                    rendered.setdefault(name, []).append(text)
            except UserError:
                continue  # the rows below show it
        for name, of_name in rendered.items():
            table.add_row(f"{name or 'row'} in the template", "tokens", *quantiles(model.num_tokens(of_name)))
    return table


def nothing_read(found: Survey) -> str:
    """Why a source has no valid row; empty where it has one, or where its columns have other names."""
    if not found.num_lines:
        return "has no rows"
    if not found.rows and found.problems:
        return f"has no valid row: {problem_line(found.problems[0])}"
    return ""


def quantiles(numbers: Sequence[int]) -> list[str]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(numbers)
    return [f"{n:,.0f}" for n in (statistics.median(ordered), ordered[(len(ordered) * 95 - 1) // 100], ordered[-1])]


def problem_line(problem: Problem) -> str:
    """A kind of problem with its count and its first lines."""
    count = problem.count
    first = ", ".join(problem.places) + (", …" if count > len(problem.places) else "")
    rows = "row" if count == 1 else "rows"
    return f"{count:,} {rows}: {problem.place_in_row}: found {problem.found}, expected {problem.expected} ({first})"


def shown(item: PlacedRow, model: Model | None) -> str:
    """A row as text: in the model's template if one is given."""
    if model is not None:
        try:
            texts = model.render(item.row)
        except UserError as error:
            return str(error)
        return "\n".join(f"{name}: " * bool(name) + excerpt(text.rstrip(), MAX_RENDERED) for name, text in texts)
    if isinstance(item.row, Document):
        return excerpt(item.row.text, MAX_MESSAGE)
    if isinstance(item.row, PreferencePair):
        answers = (("chosen", item.row.chosen), ("rejected", item.row.rejected))
        lines = [*map(message_line, item.row.prompt)]
        return "\n".join(lines + [f"{name}: {message_line(turn)}" for name, turns in answers for turn in turns])
    return "\n".join(message_line(turn) for _, messages in dialogs_of(item.row) for turn in messages)


def message_line(message: Message) -> str:
    calls = f" {json.dumps(message.tool_calls, ensure_ascii=False)}" if message.tool_calls else ""
    return f"{message.role}: {excerpt(message.content + calls, MAX_MESSAGE)}"


def command_with_columns(found: Survey) -> str:
    """A command that reads the source, with its first columns of text as a prompt and an answer, or the only one as a
    text."""
    source = found.source
    columns = [source.columns.get(name, name) for name in found.text_columns or found.columns]
    names = ("prompt", "answer") if len(columns) > 1 else ("text",)
    value = replace(source, columns=dict(zip(names, columns, strict=False))).value()
    text = dump_line(value)
    quoted = shlex.quote(text) if set(text) & set('"$`!\\') else f'"{text}"'
    return f"alignloop data {quoted}"


def recipe_block(surveys: Sequence[Survey]) -> str:
    """The section `data` of a recipe that reads the sources."""
    lines = ["data:"]
    for kind in KINDS:
        values = [found.source.value() for found in surveys if found.kind == kind and found.rows]
        if not values:
            continue
        lines.append(f"  {kind}:")
        lines.extend(f"    - {dump_line(value)}" for value in values)
    if any(not problem.is_set_aside for found in surveys if found.rows for problem in found.problems):
        lines.append("  on_bad_row: set_aside  # leaves out the rows with a problem, and keeps them in a file")
    return "\n".join(lines)


def plain(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="a file, a folder, a hub name, or a mapping as in a recipe")
    parser.add_argument("--model", help="a model's folder or hub name: lengths in tokens, rows in its chat template")
    parser.add_argument("--evaluation", action="append", default=[], help="an evaluation set: overlap with its prompts")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    surveys: list[Survey] = []
    code = 0
    try:
        model = Model(arguments.model) if arguments.model is not None else None
        evaluation = [Source.of_argument(text).value() for text in arguments.evaluation]
        read_prompts(evaluation, advice=ONE_FILE_ADVICE)  # before anything is shown
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    for text in arguments.files:
        try:
            surveys.append(survey(Source.of_argument(text)))
            show(surveys[-1], model, evaluation, console)
        except UserError as error:
            sys.stdout.flush()
            print(f"error: {printable(str(error))}", file=sys.stderr)
            code = 2
            continue
        if problem := nothing_read(surveys[-1]):
            sys.stdout.flush()
            print(f"error: {printable(f'{text} {problem}')}", file=sys.stderr)
            code = 2
    if any(found.rows for found in surveys):
        console.rule(plain("for the recipe", "bold"), align="left")
        console.print(plain(recipe_block(surveys)), soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(guarded(main))
