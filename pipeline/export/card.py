"""The model card of an exported model: README.md with the front matter that the Hugging Face hub reads.

It names no folder of the user's machine: of a path from outside the run only the last part is shown.
"""

import importlib.metadata
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType

from data_schemas.files import read_json
from data_schemas.stage_keys import Keys, stages
from data_schemas.text import printable
from data_schemas.yaml_files import dump_yaml
from pipeline.export.folder import CARD, ExportedModel
from pipeline.report import terminal
from pipeline.state.lineage import FinishedStep, Lineage, read_step, rows_in
from pipeline.state.summary import trained_models

UNKNOWN = "unknown"
WIDTH = 1000  # columns of a table, so that no row is wrapped
ROW_FILE = ".jsonl"
SAMPLING = ("engine", "temperature", "top_p", "max_new_tokens", "num_answers", "num_prompts", "seed", "dtype")
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file, or the model's name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
dialog = [{"role": "user", "content": "Hi"}]
batch = tokenizer.apply_chat_template(dialog, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**batch, max_new_tokens=128)[0, batch["input_ids"].size(1) :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""
SCORE = "## How to score"  # the part of the card of a reward model that shows how to read a score


@dataclass(frozen=True)
class Card:
    """What a card is written from."""

    exported: ExportedModel
    lineage: Lineage
    name: str  # the title
    license: str  # an identifier of the hub, or UNKNOWN

    def text(self) -> str:
        """The card as Markdown with YAML front matter."""
        sections = {
            "License": self._license(),
            "How to use": self._use(),
            "Results": self._results(),
            "Evaluation": self._evaluation(),
            "Lineage": self._steps(),
            "Data": self._data(),
            "Recipe": self._recipe(),
            "Versions": self._versions(),
        }
        body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
        front = dump_yaml(self._front())
        return f"---\n{front}---\n\n# {_line(self.name)}\n\n{self._head()}\n\n{body}\n"

    @property
    def is_reward_model(self) -> bool:
        config = read_json(self.exported.model / "config.json") or {}
        return any("SequenceClassification" in str(name) for name in config.get("architectures") or [])

    def _hub_names(self, kind: str) -> list[str]:
        return [item.name for item in self.lineage.origins if item.kind == kind and item.sha256 is None]

    def _front(self) -> Keys:
        trained_by = [step.record.stage for step in self.lineage.steps if _trains(step)]
        front: Keys = {"license": self.license}
        if names := self._hub_names("model"):
            front["base_model"] = names if len(names) > 1 else names[0]
        if names := self._hub_names("rows"):
            front["datasets"] = names
        task = "text-classification" if self.is_reward_model else "text-generation"
        return front | {
            "library_name": "transformers",
            "pipeline_tag": task,
            "tags": ["alignloop", *dict.fromkeys(trained_by)],
        }

    def _head(self) -> str:
        exported, record = self.exported, self.exported.record
        kind = "Reward model" if self.is_reward_model else "Language model"
        how = (
            f", trained as a LoRA adapter (rank {record.keys.get('lora_r')}) and merged into its base"
            if record.keys.get("use_peft")
            else ""
        )
        return (
            f"{kind} of step {_code(exported.step)} of the run {_code(exported.summary['name'])}{how}, exported by "
            f"alignloop {importlib.metadata.version('alignloop')}. Its folder in the run is "
            f"{_code(exported.folder.name)}, with the fingerprint `{record.fingerprint}`."
        )

    def _license(self) -> str:
        if self.license != UNKNOWN:
            return f"The license given at the export is {_code(self.license)}."
        return (
            "The license is unknown: none was given at the export. The licenses of the base model and of the data may "
            "limit the use of this model."
        )

    def _use(self) -> str:
        if not self.is_reward_model:
            return USE if self.exported.record.contract.get("chat_template") else ""
        try:
            text = (self.exported.model / CARD).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""
        return text.partition(SCORE)[2].strip()

    def _results(self) -> str:
        rows = [row for row in self.exported.summary["rounds"] if row["judge"] is not None]
        if rows:
            table = _markdown(terminal.rounds_table({**self.exported.summary, "rounds": rows}))
            return f"Brackets are 95 % bootstrap intervals, paired by prompt.\n\n{table}"
        names = {step.record.step for step in self.lineage.steps}
        trained = [entry for entry in trained_models(self.exported.summary) if entry["step"] in names]
        return f"No judge compared the policies.\n\n{_markdown(terminal.models_table(trained))}" if trained else ""

    def _evaluation(self) -> str:
        """How the answers of the results were sampled, by the record of the last evaluation."""
        folders = [step["folder"] for step in self.exported.summary["steps"] if step["stage"] == "evaluate_policy"]
        found = [step for name in folders if name and (step := read_step(self.exported.run / name))]
        if not found:
            return ""
        record = found[-1].record
        shown = {"judge": record.metrics.get("judge"), "prompts": record.metrics.get("prompts")}
        shown |= {name: record.keys.get(name) for name in SAMPLING}
        return _table(
            ("setting", "value"), [(name, _code(value)) for name, value in shown.items() if value is not None]
        )

    def _steps(self) -> str:
        lines = [
            f"{place}. {_code(step.record.step)} ({step.record.stage}): {_code(step.folder.name)}, "
            f"fingerprint `{step.record.fingerprint}`"
            for place, step in enumerate(self.lineage.steps, 1)
        ]
        lines += [
            f"- base model {_code(item.name)}: " + (f"SHA-256 of its files `{item.sha256}`" if item.sha256 else "hub")
            for item in self.lineage.origins
            if item.kind == "model"
        ]
        lines += [f"- a step that is no longer in the run: fingerprint {_code(text)}" for text in self.lineage.missing]
        return "\n".join(lines)

    def _data(self) -> str:
        given = [
            (item.name, "from outside the run", "-", item.sha256)
            for item in self.lineage.origins
            if item.kind == "rows"
        ]
        cells = [
            (_code(name), _code(writer), number, f"`{sha256}`" if sha256 else "-")
            for name, writer, number, sha256 in (*given, *_row_files(self.lineage))
        ]
        return _table(("file", "written by", "rows", "SHA-256"), cells) if cells else ""

    def _recipe(self) -> str:
        """The keys that the recipe gave to each step, as they were given to the stage."""
        given = {step.record.step: _given_keys(step) for step in self.lineage.steps}
        text = dump_yaml(given, default_flow_style=None, width=110)
        return f"The keys that the recipe sets, by step; other keys have their default.\n\n```yaml\n{text}```"

    def _versions(self) -> str:
        return _table(("library", "version"), [(name, _code(v)) for name, v in self.exported.record.versions.items()])


def _trains(step: FinishedStep) -> bool:
    return stages()[step.record.stage].traits.kind == "trains"


def _row_files(lineage: Lineage) -> Iterator[tuple[str, str, str, str | None]]:
    """The rows that a step of the lineage wrote and another one read: name, writer, number of rows, hash."""
    for step in lineage.steps:
        for output, file in step.record.outputs.items():
            if (step.record.fingerprint, output) in lineage.read and file.endswith(ROW_FILE):
                path = step.folder / file
                number = str(rows_in(path)) if path.is_file() else "-"
                yield file, step.record.step, number, step.record.sha256.get(file)


def _given_keys(step: FinishedStep) -> Keys:
    """The identity keys in a step's config. A path is shortened to its last part."""
    known = stages()[step.record.stage].keys
    roles = ("identity", "function")
    return {
        name: Path(value).name if isinstance(value, str) and value.startswith("/") else value
        for name, value in step.config.items()
        if name in known and known[name].role in roles
    }


def _markdown(renderable: RenderableType) -> str:
    """A table of the terminal as Markdown: its lines without the blank ones around it."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False, no_color=True)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in printable(console.file.getvalue()).splitlines()]
    return "\n".join(line for line in lines if line.startswith("|"))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(text: str) -> str:
    return printable(" ".join(text.split()))


def _code(value: object) -> str:
    """A value between backticks, without what would end them or a cell of a table."""
    return f"`{_line(str(value)).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
