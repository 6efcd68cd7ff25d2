"""Scores answers with a reward model: those of `generate`, rows with a prompt and its answer, or preference pairs.

alignloop score REWARD_MODEL_DIR answers.jsonl -o scored.jsonl
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

from commands.program import imports, options_of, parser_for, run
from data_schemas.answers import read_answers
from data_schemas.errors import DataError
from data_schemas.files import digest
from data_schemas.rows import Candidates, Conversation, Message, PreferencePair, Prompt, Row
from data_schemas.text import printable
from data_schemas.unexpected import guarded
from engine.runtime.output_file import check_output, write_output
from engine.runtime.stage import Stage

IDENTITY = ("generation_batch_size", "dtype", "use_cpu")


def main() -> int:
    parser = parser_for("score", __doc__)
    parser.add_argument("reward_model", help="a reward model's folder")
    parser.add_argument("answers", help="a file of answers or of preference pairs")
    parser.add_argument("-o", "--output", required=True, help="the file to write")
    arguments = parser.parse_args()
    return run(lambda console: score(arguments, console), output=Path(arguments.output))


def score(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the rows with scores. Raises UserError for a wrong option, file or model; StageError where the model
    scores all answers equally."""
    options, loading = options_of("score", arguments)
    output, path = Path(arguments.output), arguments.reward_model
    check_output(output)
    rows = read_answers(arguments.answers)
    answers = [answer for row in rows for answer in answers_of(row)]
    if not answers:
        raise DataError(f"{arguments.answers} has no answer; expected at least one")
    with imports():
        from engine.judging.scoring import RewardModelScorer
        from engine.judging.shared_scoring import ScoringSettings
        from engine.models.loading import check_is_reward_model, identity_of, load_tokenizer, name_of

    check_is_reward_model(path)
    load_tokenizer(path)
    console.print(Text(printable(f"scoring {len(answers):,} answers by {name_of(path)}")), soft_wrap=True)
    identity = {"REWARD_MODEL": identity_of(path), "ANSWERS": digest([row.to_json() for row in rows])}

    def scored(stage: Stage) -> Sequence[Row]:
        scores = iter(RewardModelScorer(stage, path, ScoringSettings.of(loading)).score_turns("scores", answers))
        return [with_scores(row, [next(scores) for _ in answers_of(row)]) for row in rows]

    written = write_output("score", output, identity | {name: options[name] for name in IDENTITY}, scored)
    print(printable(f"{output}: {len(answers)} answers scored"))
    for line in summary(written):
        print(line)


def answers_of(row: Row) -> list[tuple[Prompt, Sequence[Message]]]:
    """The prompt with each answer of a row, as the turns that answer it; an empty answer has none."""
    match row:
        case Candidates():
            prompt = Prompt(prompt=row.prompt, tools=row.tools)
            texts = [candidate.text for candidate in row.candidates]
            return [(prompt, [Message(role="assistant", content=text)] if text.strip() else []) for text in texts]
        case PreferencePair():
            prompt = Prompt(prompt=row.prompt, tools=row.tools)
            return [(prompt, row.chosen), (prompt, row.rejected)]
        case Conversation():
            last = max(place for place, turn in enumerate(row.messages) if turn.role in ("user", "tool"))
            # A weight of 0 says that a turn is not trained, not that it is no answer.
            turns = [turn.model_copy(update={"trained": True}) for turn in row.messages[last + 1 :]]
            return [(Prompt(prompt=row.messages[: last + 1], tools=row.tools), turns)]
    raise AssertionError(type(row))


def with_scores(row: Row, scores: Sequence[float]) -> Row:
    """The row with the scores of its answers."""
    match row:
        case Candidates():
            pairs = zip(row.candidates, scores, strict=True)
            candidates = [candidate.model_copy(update={"score": value}) for candidate, value in pairs]
            spread = statistics.pstdev(scores) if scores else None
            return row.model_copy(update={"candidates": candidates, "spread": spread})
        case PreferencePair():
            return row.model_copy(update={"chosen_score": scores[0], "rejected_score": scores[1]})
        case Conversation():
            return row.model_copy(update={"score": scores[0]})
    raise AssertionError(type(row))


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """What is printed of scored rows of one kind, line by line."""
    scores = [value for row in rows for value in scores_of(row)]
    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    yield f"mean {mean:.3f}, standard deviation {spread:.3f}, from {min(scores):.3f} to {max(scores):.3f}"
    candidates = sorted((scores_of(row) for row in rows if isinstance(row, Candidates)), key=len)
    for num_answers, groups in groupby(candidates, key=len):
        if num_answers > 1:
            best = [max(group) for group in groups]
            yield f"best of {num_answers}: mean {statistics.fmean(best):.3f} over {len(best)} prompts"
    if pairs := [scores_of(row) for row in rows if isinstance(row, PreferencePair)]:
        margins = [chosen - rejected for chosen, rejected in pairs]
        accuracy = sum(margin > 0 for margin in margins) / len(margins)
        yield f"accuracy {accuracy:.3f}, mean margin {statistics.fmean(margins):.3f} over {len(margins)} pairs"


def scores_of(row: Row) -> list[float]:
    """The scores of a row's answers, in order."""
    match row:
        case Candidates():
            return [candidate.score or 0.0 for candidate in row.candidates]
        case PreferencePair():
            return [row.chosen_score or 0.0, row.rejected_score or 0.0]
        case Conversation():
            return [row.score or 0.0]
    raise AssertionError(type(row))


if __name__ == "__main__":
    sys.exit(guarded(main))
