"""The rows that a step will read: those that exist, and an assumption about those that do not."""

from data_schemas.cost_request import RowLengths, RowSample
from pipeline.planner.rows import RowsOfRun, heaviest_micro_batch, tokens_of
from pipeline.recipe.sections import Launch
from pipeline.steps import Output, Step


class FakeRun:
    def __init__(self, *steps: Step) -> None:
        self.steps = steps


def annotate(number: int, prompts: int) -> Step:
    inputs = {"prompts": [Output("prepare_data", "prompts.train")]}
    keys = {"num_prompts": prompts, "num_answers": 3, "max_new_tokens": 9, "keep_rankings": True}
    return Step(f"round-{number}.annotate", "annotate", number, "annotate", keys, inputs, Launch())


def lengths(count: int, *samples: RowSample) -> RowLengths:
    return {"count": count, "samples": list(samples), "problem": ""}


PROMPT: RowSample = {"shared": 0, "branches": [5], "trained": 0}
DIALOG: RowSample = {"shared": 0, "branches": [20], "trained": 12}
PAIR: RowSample = {"shared": 5, "branches": [4, 2], "trained": 6}
DATA = {
    "prepare_data/prompts.train": lengths(100, PROMPT),
    "prepare_data/instructions.train": lengths(50, DIALOG),
}


def test_rows_that_do_not_exist_have_as_many_answers_as_asked_for_and_as_long_as_those_of_the_data():
    rows = RowsOfRun(FakeRun(annotate(1, 40)), DATA).of([Output("round-1.annotate", "pairs.train")])  # pyright: ignore
    assert (rows.count, rows.is_assumed) == (40, True)
    # answers of the data have 12 tokens, and max_new_tokens is 9
    assert {(row["shared"], *row["branches"]) for row in rows.samples} == {(5, 9, 9, 9)}


def test_prompts_that_will_be_paraphrased_are_counted_with_their_paraphrases():
    inputs = {"prompts": [Output("prepare_data", "prompts.train")]}
    keys = {"num_paraphrases": 2, "back_translations": ["German"]}
    step = Step("paraphrase", "paraphrase", None, "paraphrase", keys, inputs, Launch())  # pyright: ignore
    rows = RowsOfRun(FakeRun(step), DATA).of([Output("paraphrase", "prompts.train")])  # pyright: ignore
    assert (rows.count, rows.is_assumed) == (400, True)


def test_rows_of_a_later_round_are_as_many_for_each_prompt_as_those_of_an_earlier_one():
    known = DATA | {"round-1.annotate/pairs.train": lengths(10, PAIR)}
    run = FakeRun(annotate(1, 40), annotate(2, 80))
    rows = RowsOfRun(run, known).of([Output("round-2.annotate", "pairs.train")])  # pyright: ignore
    assert (rows.count, rows.is_assumed) == (20, True)
    assert list(rows.samples) == [PAIR]


def test_rows_that_exist_are_counted_and_shares_of_them_kept():
    rows = RowsOfRun(FakeRun(), DATA)  # pyright: ignore
    both = rows.of(
        [Output("prepare_data", "instructions.train"), Output("prepare_data", "instructions.train")], [1, 0.5]
    )
    assert (both.count, both.is_assumed) == (75, False)


def test_the_heaviest_micro_batch_has_the_longest_rows_and_no_more_than_drawn():
    short: RowSample = {"shared": 0, "branches": [1], "trained": 1}
    long: RowSample = {"shared": 100, "branches": [50, 50], "trained": 100}
    batch = heaviest_micro_batch([short, long], size=2, batches=1000)
    assert [tokens_of(row) for row in batch] == [200, 200]
    assert heaviest_micro_batch([], size=2, batches=3) == []
