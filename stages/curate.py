"""Curation: drops the rows that should not train a model, each by a named rule, and writes down which and why.

The steps are those of Llama 3's post-training data (arXiv 2407.21783, 4.2.3: cleaning, quality, difficulty, semantic
duplicates) on rows that prepare_data or a generating stage wrote; held-out rows are never an input. Needs no torch.

    python stages/curate.py --instructions data/instructions.train.jsonl \\
        --evaluation_prompts data/evaluation_prompts.jsonl --output_dir curated
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_schemas.errors import ConfigError, DataError
from data_schemas.files import write_atomically, writing_atomically
from data_schemas.reading import read_prompts
from data_schemas.sources import Source, SourceValue
from data_schemas.stage_keys import StageTraits
from engine.curation.contamination import EvaluationIndex
from engine.curation.content import KINDS, Kind, Rule
from engine.curation.dialog_rules import ANSWER_CHECKS, PROMPT_CHECKS, dialog_rules
from engine.curation.document_rules import CHECKS, document_rules
from engine.curation.dropping import (
    drop_easy,
    drop_exact_duplicates,
    drop_low_scores,
    drop_near_duplicates,
    drop_semantic_duplicates,
    lines_of_pairs,
)
from engine.curation.funnel import Stratum, funnel_of, lines_of_dropped
from engine.curation.language import language_rules
from engine.curation.row_files import RowFiles
from engine.curation.row_rules import evaluation_index, of_content, own_rule
from engine.curation.table import Analysis, RowRule, Table, analyse
from engine.runtime import progress, world
from engine.runtime.arguments import PlainStageArguments
from engine.runtime.functions import find_function
from engine.runtime.keys import key_field
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage

RECIPE_VERSION = 1
EXAMPLE = "python stages/curate.py --instructions data/instructions.train.jsonl --output_dir curated"
TRAITS = StageTraits(
    purpose="Drops the rows that should not train a model, each by a named rule, and writes down which and why.",
    position=5,
    kind="transforms",
    runs="once",
    one_process=True,
    imports_torch=False,
    headlines=["rows", "kept"],
)
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CurateArguments(PlainStageArguments):
    documents: list[str] | None = key_field(None, "stored rows to pretrain on", role="rows")
    instructions: list[str] | None = key_field(None, "stored conversations for SFT", role="rows")
    preferences: list[str] | None = key_field(None, "stored preference pairs", role="rows")
    prompts: list[str] | None = key_field(None, "stored prompts to sample from", role="rows")
    evaluation_prompts: list[str] | None = key_field(None, "stored prompts that policies are evaluated on", role="rows")
    decontaminate_against: list[SourceValue] | None = key_field(
        None, "more evaluation sets: files of prompts in any format", role="rows"
    )
    contamination_rules: list[Literal["llama3_exact_prompt", "tulu3_8gram"]] = key_field(
        ["llama3_exact_prompt", "tulu3_8gram"],
        "drop rows whose prompt equals an evaluation prompt, or that have most of its words in 8-grams",
    )
    contaminated_share: float = key_field(
        0.5, "with tulu3_8gram: the share of an evaluation prompt's words that a row has at most", minimum=0, below=1
    )
    row_rules: list[str] | None = key_field(
        None, "module:function(row), each returns why a row is dropped, or None", role="function"
    )
    document_rules: list[Literal["gopher", "c4", "fineweb"]] = key_field(
        [], "published rules for documents of the web; a document that breaks one is dropped"
    )
    dialog_rules: list[str] = key_field(
        [name for name in (*ANSWER_CHECKS, *PROMPT_CHECKS) if name != "refusal"],
        "rules for conversations, prompts, and the best answers of preference pairs",
        choices=(*ANSWER_CHECKS, *PROMPT_CHECKS),
    )
    thresholds: dict[str, float | None] | None = key_field(
        None,
        "thresholds of rules, as in {refusal: 60, gopher_min_words: null}; null leaves a rule out",
        choices=(*ANSWER_CHECKS, *PROMPT_CHECKS, *CHECKS),
    )
    languages: list[str] | None = key_field(
        None, "the languages that are kept, by ISO 639-1 codes as en; null: all. Needs the extra data"
    )
    exact_duplicates: bool = key_field(True, "drop rows whose normalised text equals that of another")
    near_duplicates: float | None = key_field(
        0.8,
        "drop rows whose Jaccard similarity in word 5-grams to a better row is this or more; null: none",
        above=0,
        maximum=1,
    )
    semantic_duplicates: float | None = key_field(
        None,
        "drop conversations whose embedding has this cosine or more to that of a better one; null: none",
        above=0,
        maximum=1,
    )
    embedding_model: str | None = key_field(None, "the model whose mean hidden state is the embedding", role="model")
    min_score: float | None = key_field(None, "drop rows with a lower reward; null: none")
    top_share: float | None = key_field(
        None, "keep this share of the rows with a reward, the best; 0.25 is the top quartile", above=0, maximum=1
    )
    min_difficulty: float | None = key_field(
        None, "drop rows whose prompt's answers have a smaller spread of rewards; null: none", minimum=0
    )
    max_dropped: float = key_field(
        0.5, "the most of a kind's rows that the rules may drop; more is an error", minimum=0, maximum=1
    )


ARGUMENTS = (CurateArguments,)


def evaluation_sets(arguments: CurateArguments) -> EvaluationIndex | None:
    """The prompts of the evaluation sets, by the name of their file. None where there is none."""
    given = [*(arguments.evaluation_prompts or []), *(arguments.decontaminate_against or [])]
    sets = {Path(Source.of(value).path).name.partition(".")[0]: read_prompts([value]).rows for value in given}
    return evaluation_index(sets, max_covered=arguments.contaminated_share) if sets else None


def row_rules(kind: Kind, arguments: CurateArguments, evaluation: EvaluationIndex | None) -> list[RowRule]:
    """The rules that look at one row of a kind, in their order."""
    own = [own_rule(reference, find_function(reference)) for reference in arguments.row_rules or []]
    rules: list[Rule] = []
    if kind == "documents":
        families = arguments.document_rules
        known = document_rules(arguments.thresholds)
        rules += [rule for name, rule in known.items() if name.partition("_")[0] in families]
    else:
        known = dialog_rules(arguments.thresholds, kind)
        rules += [rule for name, rule in known.items() if name in arguments.dialog_rules]
    if arguments.languages:
        rules += language_rules(arguments.languages, kind).values()
    leaks = evaluation.rules() if evaluation else {}
    rules += [leaks[name] for name in arguments.contamination_rules if name in leaks]
    return [*own, *map(of_content, rules)]


def curate(kind: Kind, paths: Sequence[str], arguments: CurateArguments, evaluation: EvaluationIndex | None) -> Table:
    """The table of a kind after all rules."""
    rows = RowFiles(kind, [Path(path) for path in paths])
    with progress.activity(f"curating {kind}", total=len(rows), unit="rows"):
        rules = row_rules(kind, arguments, evaluation)
        table = analyse(rows, Analysis(rules, evaluation, arguments.near_duplicates))
    with progress.activity("looking for duplicates"):
        if arguments.exact_duplicates:
            drop_exact_duplicates(table)
        drop_near_duplicates(table)
    drop_low_scores(table, min_score=arguments.min_score, top_share=arguments.top_share)
    drop_easy(table, min_difficulty=arguments.min_difficulty)
    return table


def drop_paraphrases(stage: Stage, table: Table, arguments: CurateArguments) -> str:
    """Drops semantic duplicates, and writes the pairs nearest to the threshold; returns the name of their file."""
    from engine.models.embedding import embed  # torch, which no other rule needs

    assert arguments.embedding_model and arguments.semantic_duplicates, "key_rules.py checks it"
    rows = list(table.kept())
    device = world.device_of(arguments.use_cpu)
    vectors = embed(arguments.embedding_model, [table.content(row).text for row in rows], device)
    nearest = drop_semantic_duplicates(table, rows, vectors, arguments.semantic_duplicates)
    write_atomically(stage.folder / "semantic_pairs.jsonl", "".join(lines_of_pairs(table, nearest)))
    return "semantic_pairs.jsonl"


def check_share(table: Table, max_dropped: float) -> None:
    """Raises DataError where more than a share of the rows is dropped, with the number by rule."""
    num_dropped = len(table.findings)
    if num_dropped and num_dropped > max_dropped * len(table):
        by_rule = {stratum["rule"]: stratum["rows"] for stratum in funnel_of(table)[1:-1]}
        raise DataError(
            f"{num_dropped} of {len(table)} rows of {table.rows.kind} are dropped ({format_counts(by_rule)}), more "
            f"than max_dropped={max_dropped:g}; see dropped.jsonl, and change the rules or max_dropped"
        )


def kept_lines(table: Table) -> Iterator[bytes]:
    """The lines of the kept rows, in order."""
    for index in table.kept():
        yield table.rows.line(index) + b"\n"


def main(stage: Stage, arguments: CurateArguments) -> StageResult:
    given: dict[Kind, list[str]] = {kind: paths for kind in KINDS if (paths := getattr(arguments, kind))}
    if not given:
        raise ConfigError(f"curate has nothing to read: give {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    outputs: dict[str, str] = {"dropped": "dropped.jsonl", "funnel": "funnel.json"}
    evaluation = evaluation_sets(arguments)
    tables: list[Table] = []
    with writing_atomically(stage.folder / "dropped.jsonl") as dropped:
        for kind, paths in given.items():
            table = curate(kind, paths, arguments, evaluation)
            if kind == "instructions" and arguments.semantic_duplicates:
                outputs["semantic_pairs"] = drop_paraphrases(stage, table, arguments)
            tables.append(table)
            dropped.writelines(lines_of_dropped(table))
            outputs[f"{kind}.train"] = f"{kind}.train.jsonl"
            with progress.activity("writing rows"), writing_atomically(stage.folder / outputs[f"{kind}.train"]) as file:
                file.writelines(kept_lines(table))
    funnel = [stratum for table in tables for stratum in funnel_of(table)]
    write_atomically(stage.folder / "funnel.json", json.dumps(funnel, indent=1))
    if evaluation:
        report = {name: asdict(of_set) for name, of_set in evaluation.report().items()}
        write_atomically(stage.folder / "contamination.json", json.dumps(report, indent=1, ensure_ascii=False))
        outputs["contamination"] = "contamination.json"
    for table in tables:
        check_share(table, arguments.max_dropped)
    return StageResult(outputs=outputs, metrics=metrics_of(funnel))


def metrics_of(funnel: Sequence[Stratum]) -> dict[str, float | int | str | None]:
    """The rows read, kept and dropped by rule, over all kinds, and kept by kind."""
    counts: dict[str, float | int | str | None] = {"rows": 0, "kept": 0}
    for stratum in funnel:
        name = {"read": "rows", "kept": "kept"}.get(stratum["rule"], f"dropped_{stratum['rule']}")
        counts[name] = int(counts.get(name) or 0) + stratum["rows"]
        if stratum["rule"] == "kept":
            counts[f"{stratum['kind']}.train"] = stratum["rows"]
    return counts


if __name__ == "__main__":
    run_stage("curate", ARGUMENTS, main)
