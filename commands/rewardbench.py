"""Scores a reward model on a preference file in the form of RewardBench 1 or 2.

alignloop rewardbench REWARD_MODEL_DIR reward-bench-2.parquet -o scored.jsonl

The rows are written with the scores of their answers, and the table of subsets and sections is printed. Of a run, it
also prints best-of-K: what the loop's own evaluation says of the answers that the same reward model chooses.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from commands.program import imports, options_of, parser_for, run
from data_schemas.files import digest
from data_schemas.reward_bench import BenchmarkRow, read_benchmark
from data_schemas.rows import Message, Prompt
from data_schemas.text import printable
from data_schemas.unexpected import guarded
from engine.runtime.output_file import check_output, write_output
from engine.runtime.stage import Stage

IDENTITY = ("generation_batch_size", "dtype", "use_cpu")
SEED = 0  # of the bootstrap


def main() -> int:
    parser = parser_for("rewardbench", __doc__)
    parser.add_argument("reward_model", help="a reward model's folder")
    parser.add_argument("rows", help="a file, a folder or a hub name in the form of RewardBench 1 or 2")
    parser.add_argument("-o", "--output", required=True, help="the file to write: the rows with the scores")
    parser.add_argument("--evaluation", help="the folder of an evaluation for which the reward model was the proxy")
    arguments = parser.parse_args()
    return run(lambda console: rewardbench(arguments, console), output=Path(arguments.output))


def rewardbench(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the scored rows and prints the table. Raises UserError for a wrong option, file or model; StageError where
    the model scores all answers equally."""
    options, loading = options_of("rewardbench", arguments)
    output, path = Path(arguments.output), arguments.reward_model
    check_output(output)
    version, rows = read_benchmark(arguments.rows)
    with imports():
        from engine.judging.best_of_k import read_best_of_k
        from engine.judging.scoring import RewardModelScorer
        from engine.judging.shared_scoring import ScoringSettings
        from engine.models.loading import check_is_reward_model, identity_of, load_tokenizer, name_of
        from engine.tasks.reward_bench import score_benchmark

    best = read_best_of_k(Path(arguments.evaluation)) if arguments.evaluation else None
    check_is_reward_model(path)
    load_tokenizer(path)
    answers = [answer for row in rows for answer in answers_of(row)]
    doing = f"scoring {len(answers)} answers of {len(rows)} rows of RewardBench {version} by {name_of(path)}"
    console.print(Text(printable(doing)), soft_wrap=True)
    identity = {"REWARD_MODEL": identity_of(path), "ROWS": digest([row.to_json() for row in rows])}

    def scored(stage: Stage) -> Sequence[BenchmarkRow]:
        scorer = RewardModelScorer(stage, path, ScoringSettings.of(loading))
        scores = iter(scorer.score_turns("scores", answers))
        return [with_scores(row, [next(scores) for _ in answers_of(row)]) for row in rows]

    written = write_output("rewardbench", output, identity | {name: options[name] for name in IDENTITY}, scored)
    print(printable(f"{output}: {len(rows)} rows scored"))
    for line in score_benchmark(version, written, seed=SEED).table():
        print(printable(line))
    if best is not None:
        print(printable(best.sentence()))


def answers_of(row: BenchmarkRow) -> list[tuple[Prompt, list[Message]]]:
    """The prompt with each answer of a row, the chosen ones first; an empty answer has no turn."""
    prompt = Prompt(prompt=row.prompt)
    texts = [*row.chosen, *row.rejected]
    return [(prompt, [Message(role="assistant", content=text)] if text.strip() else []) for text in texts]


def with_scores(row: BenchmarkRow, scores: Sequence[float]) -> BenchmarkRow:
    """The row with the scores of its answers, in the order of `answers_of`."""
    count = len(row.chosen)
    return row.model_copy(update={"chosen_scores": list(scores[:count]), "rejected_scores": list(scores[count:])})


if __name__ == "__main__":
    sys.exit(guarded(main))
