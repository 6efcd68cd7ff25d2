"""`alignloop rewardbench`: rows of both forms are read, scored and summed up."""

import json

from data_schemas.reading import read_rows
from data_schemas.reward_bench import BenchmarkRow, read_benchmark
from engine.judging.scoring import RewardModelScorer
from engine.judging.shared_scoring import ScoringSettings
from engine.runtime.arguments import GenerationArguments
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from tests.commands.programs import call
from tests.pipeline.report.page.run_folders import write_run
from tests.toy_rows import write_jsonl

FIRST = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "", "chosen_model": "a", "subset": "donotanswer", "id": 3}
SECOND = {"prompt": "Name a sound.", "chosen": ["Woof."], "rejected": ["No.", "Red.", ""], "subset": "Math", "id": "7"}
TIES = [
    {"prompt": "A colour?", "chosen": ["Red.", "Blue."], "rejected": ["Dog."], "subset": "Ties", "id": "tied:0"},
    {"prompt": "Its colour?", "chosen": ["Red."], "rejected": ["Dog."], "subset": "Ties", "id": "ref:0"},
]


def test_both_forms_are_read_from_json_lines_and_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_jsonl(tmp_path / "1.jsonl", [FIRST, FIRST | {"prompt": [{"role": "user", "content": "Ho?"}]}])
    version, rows = read_benchmark(str(tmp_path / "1.jsonl"))
    assert (version, [row.prompt[0].content for row in rows]) == (1, ["Hi?", "Ho?"])
    assert (rows[0].chosen, rows[0].rejected, rows[0].subset, rows[0].id) == (["Hello."], [""], "donotanswer", "3")
    pq.write_table(pa.Table.from_pylist([SECOND, *TIES]), tmp_path / "2.parquet")
    version, rows = read_benchmark(str(tmp_path / "2.parquet"))
    assert (version, [len(row.rejected) for row in rows]) == (2, [3, 1, 1])
    assert rows[1].is_of_ties and rows[1].chosen == ["Red.", "Blue."]


def test_the_table_is_that_of_the_scores_of_the_scorer_of_the_stages(tiny_reward_model, tmp_path, capsys):
    write_jsonl(tmp_path / "rows.jsonl", [SECOND, *TIES])
    evaluation = write_run(tmp_path / "run", answers=2) / "round-1.evaluate_policy-0123abcd"
    words = (tmp_path / "rows.jsonl", "-o", tmp_path / "scored.jsonl", "--evaluation", evaluation)
    assert call("rewardbench", tiny_reward_model, *words) == 0
    scored = read_rows(tmp_path / "scored.jsonl", BenchmarkRow)
    stage = Stage("test", tmp_path, {}, Tracker(tmp_path, active=False), is_main=True)
    settings = ScoringSettings.of(GenerationArguments(use_cpu=True))
    from commands.rewardbench import answers_of

    answers = [answer for row in scored for answer in answers_of(row)]
    expected = RewardModelScorer(stage, str(tiny_reward_model), settings).score_turns("expected", answers)
    given = [score for row in scored for score in [*(row.chosen_scores or []), *(row.rejected_scores or [])]]
    assert given == expected and [len(row.chosen_scores or []) for row in scored] == [1, 2, 1]
    assert min(given) == given[3]  # the empty answer
    chosen, *rejected = given[:4]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path}/scored.jsonl: 3 rows scored"
    assert out[4].startswith(f"| Math | 1 | {float(chosen > max(rejected)):.3f} | ") and out[5].startswith(
        "| Ties | 2 |"
    )
    assert out[6].startswith("best of 2 answers of round-1.dpo to 3 prompts, by the judge's mean: ")


def test_an_unknown_form_is_one_line_and_nothing_is_written(tiny_reward_model, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    assert call("rewardbench", tiny_reward_model, tmp_path / "pairs.jsonl", "-o", tmp_path / "s.jsonl") == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "pairs.jsonl:1: subset: found nothing, expected the columns of RewardBench" in err[0]
    assert not (tmp_path / "s.jsonl").exists()
