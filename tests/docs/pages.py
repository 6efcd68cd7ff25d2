"""README.md and the pages of docs/ as what a reader would try: blocks, commands, links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.launch.command_line import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A program's name at the start of a line or of a code span makes it a command.
PROGRAMS = ("alignloop", "make", "python", "python3", "pytest", "accelerate", "docker", "pip", "source", "cd", "mkdir")


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of its first line
    language: str  # empty: a terminal, or a drawing
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    words: tuple[str, ...]
    output: str  # what the page shows below it; empty for a span

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def program(self) -> str:
        return Path(self.words[0]).name

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text}"


def model_folder(folder: Path) -> None:
    """A folder that looks like a model with a chat template to what plans a recipe, which loads no model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").touch()


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    return [Block(page, text.count("\n", 0, found.start(2)) + 1, found[1], found[2]) for found in BLOCK.finditer(text)]


def yaml_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == "yaml"]


def commands(page: str) -> Iterator[Command]:
    """The commands of a page, in its blocks and in its code spans."""
    for block in blocks(page):
        if not block.language:
            yield from _commands_of(block)
    outside = BLOCK.sub(lambda found: "\n" * found[0].count("\n"), text_of(page))
    for span in re.finditer(r"`([^`]+)`", outside):
        if is_command(span[1]) and " " in span[1]:
            line = outside.count("\n", 0, span.start()) + 1
            yield from (Command(page, line, words, "") for words in _words_of(span[1]))


def is_command(text: str) -> bool:
    return Path(text.split()[0]).name in PROGRAMS if text.split() else False


def _commands_of(block: Block) -> Iterator[Command]:
    """With a `$` before each command, other lines are output; else every line that begins with a program is one."""
    marked = any(line.startswith("$ ") for line in block.text.splitlines())
    entries: list[tuple[int, str, list[str]]] = []  # line, command, output
    continues = False
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if continues:
            first, text, _ = entries.pop()
            entries.append((first, f"{text[:-1]} {line.strip()}", []))
        elif line.startswith("$ ") or (not marked and is_command(line)):
            entries.append((number, line.removeprefix("$ "), []))
        elif entries:
            entries[-1][2].append(line)
        continues = bool(entries) and line.endswith("\\") and not entries[-1][2]
    for number, text, output in entries:
        for words in _words_of(text):
            yield Command(block.page, number, words, "\n".join(output))


def _words_of(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each command of a line, without its comment. `<a folder>` is a placeholder, one word."""
    lexer = shlex.shlex(re.sub("<[^>]*>", "PLACEHOLDER", text), posix=True, punctuation_chars="&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, "&&"]:
        if word == "&&":
            yield tuple(words)
            words = []
        else:
            words.append(word)
