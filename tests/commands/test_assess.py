"""`alignloop assess`: candidates beside each other, with their cost, and one sentence of verdict."""

import json

import pytest
import yaml

from data_schemas.reading import read_rows
from data_schemas.rows import Candidates
from engine.tasks.candidates import Measures
from engine.tasks.grades import Interval
from engine.tasks.verdict import Assessed, answers_to_pay_off, rows, text_table, verdict
from tests.commands.programs import call
from tests.engine.endpoints.scripted_server import Say, ScriptedServer
from tests.engine.judging.scripted_judges import by_length, judge

EVEN, AHEAD, BEHIND = Interval(0.5, 0.4, 0.6), Interval(0.7, 0.6, 0.8), Interval(0.3, 0.2, 0.4)


def candidate(
    name: str, wins: Interval | None, money: float | None, *, cost: float | None = None, served=False
) -> Assessed:
    return Assessed(name, served, cost, None, wins, 100.0, Measures(0.5, 0.1, money))


def test_a_training_pays_off_by_the_difference_of_the_costs():
    prompted, trained = candidate("prompted", EVEN, 0.003), candidate("tuned", AHEAD, 0.001, cost=40)
    assert answers_to_pay_off(trained, prompted) == pytest.approx(20_000)  # 40 / (0.003 - 0.001)
    assert answers_to_pay_off(candidate("tuned", AHEAD, 0.003, cost=40), prompted) == float("inf")
    assert answers_to_pay_off(candidate("tuned", AHEAD, None, cost=40), prompted) is None
    assert [row[-2:] for row in rows([prompted, trained])] == [("3.00", "-"), ("1.00", "20,000")]
    table = text_table([("a", "1")], ("name", "n")).splitlines()
    assert table == ["| name | n |", "| ---- | - |", "| a    | 1 |"]


@pytest.mark.parametrize(
    ("wins", "money", "sentence"),
    [
        (AHEAD, 0.001, "Training is worth it: tuned wins 70% [60%, 80%] against few-shot, the best candidate without"),
        (AHEAD, 0.001, "its lower cost pays for the training after 20,000 answers."),
        (AHEAD, 0.009, "its answers cost no less, so the cost of training is not won back."),
        (EVEN, None, "No gain of training is shown: tuned wins 50% [40%, 60%] against few-shot"),
        (BEHIND, None, "Training is not worth it: tuned wins 30% [20%, 40%]"),
    ],
)
def test_the_verdict_compares_training_with_the_best_candidate_without_it(wins, money, sentence):
    candidates = [
        candidate("base", EVEN, 0.003),
        candidate("few-shot", AHEAD, 0.003),
        candidate("tuned", AHEAD, money, cost=40),
    ]
    assert sentence in verdict(candidates, lambda one, other: wins)


def test_without_a_trained_candidate_the_verdict_is_about_the_room_for_it():
    own = [candidate("base", None, None), candidate("prompted", AHEAD, None)]
    assert [row[2] for row in rows(own)] == ["baseline", "0.700 [0.60, 0.80]"]
    worse = verdict([own[0], candidate("prompted", BEHIND, None)], lambda one, other: BEHIND)
    assert worse.startswith(
        "This does not show whether training helps: no candidate wins more often than base, the base"
    )
    large = candidate("large", AHEAD, None, served=True)
    assert verdict([*own, large], lambda one, other: AHEAD).startswith("There is room for training: large wins 70%")
    assert "against prompted, the best model of your own" in verdict([*own, large], lambda one, other: EVEN)
    assert verdict([*own, large], lambda one, other: EVEN).startswith("Prompting may be enough")
    assert verdict(own, lambda one, other: EVEN).startswith("This does not show whether training helps: prompted")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.00"), (0.0012, "1.20"), (0.00009, "0.09"), (0.0000012, "0.0012"), (12.345, "12,345.00")],
)
def test_money_of_a_thousand_answers_is_shown_with_two_decimals_or_two_digits(value, shown):
    (row,) = rows([candidate("base", None, value)])
    assert row[5] == shown


def write(path, content) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def test_models_with_prompts_and_examples_are_compared_by_a_task(tiny_model, tied_model, tmp_path, capsys):
    row = {"prompt": "Say hi.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    other = {"prompt": "Say no.", "instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    (tmp_path / "ifeval.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    dialog = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]}
    (tmp_path / "dialogs.jsonl").write_text(json.dumps(dialog) + "\n")
    content = {
        "instructions": "ifeval.jsonl",
        "judge": {"task": "ifeval"},
        "candidates": {
            "base": {"model": str(tiny_model)},
            "system": {"model": str(tiny_model), "system": "Be brief."},
            "few-shot": {"model": str(tiny_model), "examples": "dialogs.jsonl", "num_examples": 1},
            "tuned": {"model": str(tied_model), "training_cost": 1.0},
        },
        "gpu_hour_price": 3600.0,
    }
    write(tmp_path / "assess.yaml", content)
    words = (tmp_path / "assess.yaml", "-o", tmp_path / "a.jsonl", "--max_new_tokens=6")
    assert call("assess", *words) == 0
    title, head, _, *cells = capsys.readouterr().out.splitlines()
    assert title == "2 instructions, wins against base, judged by the checks of ifeval"
    assert head.split(" | ")[0].strip("| ") == "candidate"
    names = [line.split("|")[1].strip() for line in cells[:4]]
    assert names == list(content["candidates"])
    assert "| baseline " in cells[0] and "tuned wins" in cells[4]
    first, second = read_rows(tmp_path / "a.jsonl", Candidates)
    assert [answer.policy for answer in first.candidates] == names
    assert [message.content for message in second.prompt] == ["Say no."]  # without system prompt and examples
    assert float(cells[0].split("|")[6]) > 0  # the time of an answer in seconds, at 1 for each
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl",
        "assess.yaml",
        "dialogs.jsonl",
        "ifeval.jsonl",
    ]


def test_an_endpoint_is_compared_by_a_judge_behind_another(tiny_model, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n')

    def script(request):
        if "Compare two answers" in request["messages"][-1]["content"]:
            return judge(by_length)(request)
        return Say("A long and careful answer to the question. " * 5, usage=(1_000, 500))

    with ScriptedServer(script) as server:
        content = {
            "instructions": "prompts.jsonl",
            "judge": {"llm": "judge"},
            "candidates": {"own": {"model": str(tiny_model)}, "large": {"endpoint": "large"}},
            "endpoints": {
                "large": server.endpoint(model="large", price={"input": 2.0, "output": 10.0}),
                "judge": server.endpoint(model="judge"),
            },
        }
        write(tmp_path / "assess.yaml", content)
        assert call("assess", tmp_path / "assess.yaml", "-o", tmp_path / "a.jsonl", "--max_new_tokens=6") == 0
        asked = [request for request in server.requests if request["model"] == "large"]
    out = capsys.readouterr().out
    assert len(asked) == 2  # each instruction is paid for once, the timed ones too
    large = next(line for line in out.splitlines() if line.startswith("| large"))
    assert [cell.strip() for cell in large.split("|")][6] == "7.00"  # 1,000 times (1000 * 2 + 500 * 10) / 1e6
    assert "There is room for training: large wins 100% [100%, 100%] against own" in out
