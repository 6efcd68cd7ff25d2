"""`alignloop compare`: two runs or policies side by side."""

import json

import pytest

from data_schemas.errors import ConfigError
from pipeline.report import comparing, terminal
from pipeline.report.page.compare_page import is_comparison, write_comparison
from pipeline.report.page.writing import write_page
from tests.pipeline.report.page.run_folders import SCORES, write_run


def edit(folder, **changes):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def printed(comparison, capsys) -> str:
    comparing.show(terminal.make_console(), comparison)
    return capsys.readouterr().out


def test_two_policies_of_a_run_by_hand(tmp_path, capsys):
    run = write_run(tmp_path / "toy")
    compared = comparing.compare((run, run), ("round-0.sft", "round-1.evaluate_policy"))
    difference = compared.difference
    assert difference is not None and compared.labels == ("round-0.sft", "round-1.dpo")
    # Scores 0, 0.5 and 0.25 became 1, 0.5 and 0.
    assert SCORES == {"round-0.sft": [0.0, 0.5, 0.25], "round-1.dpo": [1.0, 0.5, 0.0]}
    assert difference.mean == pytest.approx(0.25) and difference.wins == pytest.approx(0.5)
    assert (difference.better, difference.worse, difference.num_prompts) == (1, 1, 3)
    assert difference.low == pytest.approx(-0.25) and difference.high == pytest.approx(1.0)
    out = printed(compared, capsys)
    assert "1 prompts are judged better, 1 worse and 1 the same" in out and "which may be chance" in out
    assert out.index("+1.00  Name a colour.") < out.index("-0.25  Name a city.")


def test_damaged_answers_are_named(tmp_path, capsys):
    run = write_run(tmp_path / "toy")
    [file] = run.glob("round-1.evaluate_policy*/answers.jsonl")
    assert comparing.damage(comparing.compare((run, run))) == []
    file.write_text("{x")
    compared = comparing.compare((run, run), ("round-0.sft", "round-1.dpo"))
    assert compared.why_not == "the answers of round-1.dpo are damaged"
    [problem] = comparing.damage(compared)
    assert problem.startswith(f"{file}: answers.jsonl could not be read to its end (JSONDecodeError")
    _, [of_page] = write_page(run)
    assert of_page.startswith("round-1.dpo: answers.jsonl could not be read to its end (JSONDecodeError")


def test_only_a_page_of_compare_is_recognised_as_one(tmp_path):
    run = write_run(tmp_path / "toy")
    write_comparison(comparing.compare((run, run)), tmp_path / "compare.html")
    page, _ = write_page(run)
    assert is_comparison(tmp_path / "compare.html") and not is_comparison(page)


def test_the_recipes_of_two_runs_are_compared_by_key(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    for run, beta in zip(runs, (0.1, 0.2), strict=True):
        recipe = {"file": "toy.yaml", "content": {"dpo": {"beta": beta}, "rounds": 1}, "changes": []}
        edit(run, recipe=recipe | {"shows_samples": True})
    compared = comparing.compare(runs)
    assert compared.recipe == ["dpo.beta: 0.1 -> 0.2"]
    out = printed(compared, capsys)
    assert "dpo.beta: 0.1 -> 0.2" in out and "a: round-1.dpo" in out and "b: round-1.dpo" in out


def test_scores_of_two_judges_are_not_compared(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    rounds = json.loads((runs[1] / "summary.json").read_text())["rounds"]
    edit(runs[1], rounds=[row | {"judge": "other:judge"} for row in rounds])
    compared = comparing.compare(runs)
    assert compared.difference is None
    assert "not compared: the scores are of two judges, toy:gold and other:judge" in printed(compared, capsys)


def test_runs_without_a_judged_policy_are_compared_by_loss(tmp_path, capsys):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        steps = [
            step for step in json.loads((run / "summary.json").read_text())["steps"] if "evaluate" not in step["name"]
        ]
        edit(run, rounds=[], best_policy=None, steps=steps)
    out = printed(comparing.compare(runs), capsys)
    assert "held-out loss of round-1.dpo" in out and "0.500" in out and "has evaluated no policy" in out


def test_without_samples_neither_terminal_nor_page_has_an_answer(tmp_path, capsys):
    runs = [write_run(tmp_path / name, shows_samples=name == "a") for name in ("a", "b")]
    compared = comparing.compare(runs, ("round-0.sft", "round-1.dpo"))
    write_comparison(compared, tmp_path / "compare.html")
    for text in (printed(compared, capsys), (tmp_path / "compare.html").read_text()):
        assert "says" not in text and "Name a colour" not in text


def test_the_page_has_the_difference_and_the_answers(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", texts={"round-1.dpo": ["<b>\x1b[1m</b>"] * 3})]
    write_comparison(comparing.compare(runs), tmp_path / "compare.html")
    content = (tmp_path / "compare.html").read_text()
    assert "b: round-1.dpo against a: round-1.dpo" in content and "over 3 prompts" in content
    assert "&lt;b&gt;\\x1b[1m&lt;/b&gt;" in content and "\x1b" not in content


def test_a_policy_that_was_not_evaluated_is_refused_with_those_that_were(tmp_path):
    run = write_run(tmp_path / "toy")
    with pytest.raises(ConfigError, match=r"'round-1.dop'; expected one of round-0.sft, round-1.dpo"):
        comparing.compare((run, run), ("round-0.sft", "round-1.dop"))
    edit(run, steps=[], rounds=[], best_policy=None)
    with pytest.raises(ConfigError, match="has evaluated no policy; leave the step out"):
        comparing.compare((run, run), ("round-0.sft", "round-1.dpo"))


def test_the_answers_that_are_shown_are_those_that_differ(tmp_path, capsys):
    """The second prompt has other means, by its second answers; the first answers, which are shown, are equal."""
    run = write_run(tmp_path / "toy")
    for policy, second in (("round-0", 0.0), ("round-1", 1.0)):
        path = run / f"{policy}.evaluate_policy-0123abcd" / "answers.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1]["candidates"].append(rows[1]["candidates"][0] | {"k": 1, "score": second})
        path.write_text("\n".join(map(json.dumps, rows)))
    out = printed(comparing.compare((run, run), ("round-0.sft", "round-1.dpo")), capsys)
    assert "+1.00  Name a colour." in out and "-0.25  Name a city." in out and "Name a sound." not in out
