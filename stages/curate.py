"""Curation: drops the rows that should not train a model, each by a named rule, and writes down which and why.

The steps are those of Llama 3's post-training data (arXiv 2407.21783, 4.2.3: cleaning, quality, difficulty, semantic
duplicates) on rows that prepare_data or a generating stage wrote; held-out rows are never an input. Needs no torch.

    python stages/curate.py --instructions data/instructions.train.jsonl \\
        --evaluation_prompts data/evaluation_prompts.jsonl --output_dir curated
"""

import logging
from array import array
from pathlib import Path

from data_schemas.errors import ConfigError, DataError
from data_schemas.files import write_atomically, writing_atomically
from data_schemas.stage_keys import StageTraits
from engine.curation.analysis import Analysis, analyse
from engine.curation.arguments import CurateArguments
from engine.curation.balancing import MIXED_KINDS, check_names_of_mix, drop_overused_phrases, mix
from engine.curation.contamination import EvaluationIndex
from engine.curation.content import KINDS, Kind
from engine.curation.dropping import (
    drop_easy,
    drop_exact_duplicates,
    drop_low_scores,
    drop_near_duplicates,
    drop_semantic_duplicates,
    keys_without_rewards,
    lines_of_pairs,
)
from engine.curation.funnel import lines_of_dropped, metrics_of, write_report
from engine.curation.masking import mask_row
from engine.curation.origins import FileNumbers, write_origins
from engine.curation.prompt_variants import synonyms_of, write_variants
from engine.curation.row_files import RowFiles
from engine.curation.row_results import EarlierResults
from engine.curation.row_rules import evaluation_sets, marks_of, row_rules, settings_of
from engine.curation.table import Table
from engine.runtime import progress, world
from engine.runtime.stage import Stage, StageResult, format_counts, run_stage

RECIPE_VERSION = 3
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
# Files that a run of the stage has for what it did; each is there only where it did that.
RESULTS = "results.bin"
BESIDE = (
    "dropped.jsonl",
    "funnel.json",
    "contamination.json",
    "semantic_pairs.jsonl",
    "mix.json",
    "variants.jsonl",
    RESULTS,
)
log = logging.getLogger(__name__)


ARGUMENTS = (CurateArguments,)


def curate(stage: Stage, kind: Kind, arguments: CurateArguments, evaluation: EvaluationIndex | None) -> Table:
    """The table of a kind after all rules."""
    table = compare(kind, arguments, evaluation)
    if kind == "instructions" and arguments.semantic_duplicates:
        drop_paraphrases(stage, table, arguments)
    drop_low_scores(
        table,
        min_score=arguments.min_score,
        top_share=arguments.top_share,
        mark_of=marks_of(arguments.mark_function, table) if arguments.mark_function else None,
        top_mark=arguments.top_mark,
    )
    drop_easy(table, min_difficulty=arguments.min_difficulty)
    if kind == "instructions" and arguments.max_phrase_share is not None:
        drop_overused_phrases(table, arguments)
    if kind in MIXED_KINDS:
        mix(table, arguments)
    return table


def compare(kind: Kind, arguments: CurateArguments, evaluation: EvaluationIndex | None) -> Table:
    """The table of a kind after the rules that look at one row, and without rows that repeat others."""
    rows = RowFiles(kind, [Path(path) for path in getattr(arguments, kind)])
    analysis = analysis_of(kind, arguments, evaluation)
    with progress.activity(f"curating {kind}", total=len(rows), unit="rows"):
        table = analyse(rows, analysis)
    if analysis.earlier is not None:
        log.info("%d of %d rows have the results of an earlier step", table.num_reused, len(table))
    with progress.activity("looking for duplicates"):
        if arguments.exact_duplicates:
            drop_exact_duplicates(table)
        drop_near_duplicates(table)
    return table


def analysis_of(kind: Kind, arguments: CurateArguments, evaluation: EvaluationIndex | None) -> Analysis:
    """What is done with each row of a kind. Raises what the tokenizer and the earlier results raise."""
    count_tokens = contract = earlier = None
    if arguments.tokenizer:
        from engine.curation.token_counts import token_counter  # transformers, which no rule needs
        from engine.models.loading import read_tokenizer
        from engine.tokens.contract import contract_of

        tokenizer = read_tokenizer(arguments.tokenizer)
        count_tokens, contract = token_counter(tokenizer, kind), contract_of(tokenizer)
    keeps = arguments.keep_results and kind == "instructions"
    settings = settings_of(kind, arguments, evaluation, contract) if keeps or arguments.earlier_results else ""
    if arguments.earlier_results:
        earlier = EarlierResults(Path(arguments.earlier_results), settings)
    return Analysis(
        row_rules(kind, arguments, evaluation),
        evaluation,
        near_duplicates=arguments.near_duplicates,
        change=mask_row if arguments.mask_personal_data else None,
        count_tokens=count_tokens,
        settings=settings if keeps else "",
        earlier=earlier,
    )


def drop_paraphrases(stage: Stage, table: Table, arguments: CurateArguments) -> None:
    """Drops semantic duplicates, and writes the pairs nearest to the threshold."""
    from engine.models.embedding import embed  # torch, which no other rule needs

    assert arguments.embedding_model and arguments.semantic_duplicates, "key_rules.py checks it"
    rows = list(table.kept())
    device = world.device_of(arguments.use_cpu)
    vectors = embed(arguments.embedding_model, [table.content(row).text for row in rows], device)
    nearest = drop_semantic_duplicates(table, rows, vectors, arguments.semantic_duplicates)
    write_atomically(stage.folder / "semantic_pairs.jsonl", "".join(lines_of_pairs(table, nearest)))


def write_kept_origins(path: Path, table: Table) -> str:
    """Writes where the kept rows are from, beside the file that has them; returns the name of the new file."""
    numbers = FileNumbers()
    origins = array("q", (numbers.origin(file, line) for file, line in table.kept_origins()))
    return write_origins(path, numbers.names, origins)


def check_share(table: Table, max_dropped: float) -> None:
    """Raises DataError where more than a share of the rows is dropped, with the number by rule."""
    num_dropped = len(table.findings)
    if num_dropped and num_dropped > max_dropped * len(table):
        by_rule = {rule: len(rows) for rule, rows in table.dropped_by_rule()}
        raise DataError(
            f"{num_dropped} of {len(table)} rows of {table.rows.kind} are dropped ({format_counts(by_rule)}), more "
            f"than max_dropped={max_dropped:g}; see dropped.jsonl, and change the rules or max_dropped"
        )


def main(stage: Stage, arguments: CurateArguments) -> StageResult:
    given: list[Kind] = [kind for kind in KINDS if getattr(arguments, kind)]
    if not given:
        raise ConfigError(f"curate has nothing to read: give {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    evaluation, synonyms = evaluation_sets(arguments), synonyms_of(arguments)
    tables: list[Table] = []
    outputs: dict[str, str] = {}
    with writing_atomically(stage.folder / "dropped.jsonl") as dropped:
        for kind in given:
            tables.append(table := curate(stage, kind, arguments, evaluation))
            path = stage.folder / f"{kind}.train.jsonl"
            outputs[f"{kind}.train"] = path.name
            with progress.activity("writing rows"), writing_atomically(path) as file:
                file.writelines(table.kept_lines())
                if kind == "prompts" and arguments.num_variants:
                    write_variants(stage.folder / "variants.jsonl", table, arguments, file, synonyms=synonyms)
            if kind != "prompts":  # nothing drops prompts later, and variants of them are from no line
                outputs[f"{kind}.train.origins"] = write_kept_origins(path, table)
            dropped.writelines(lines_of_dropped(table))
    check_names_of_mix(tables, arguments)
    for results in filter(None, (table.results for table in tables)):
        with writing_atomically(stage.folder / RESULTS) as file:
            results.write(file)
    write_report(stage.folder, tables, evaluation)
    for table in tables:
        check_share(table, arguments.max_dropped)
    beside = {file.stem: file.name for file in map(stage.folder.joinpath, BESIDE) if file.exists()}
    log.info("%s", "; ".join(f"{table.rows.kind}: {len(table)} rows, {table.num_kept} kept" for table in tables))
    warnings = keys_without_rewards(tables, arguments)
    for warning in warnings:
        log.warning("%s", warning)
    return StageResult(outputs=outputs | beside, metrics=metrics_of(tables), warnings=warnings)


if __name__ == "__main__":
    run_stage("curate", ARGUMENTS, main)
