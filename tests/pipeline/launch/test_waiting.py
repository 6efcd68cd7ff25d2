"""A step that waits for people: the run stops without having failed, says for what, and goes on with their files."""

import pytest

from pipeline.launch.failures import StepWaits
from tests.data_schemas.test_people import label, lines_of
from tests.pipeline.toy_house import STEPS_OF_ONE_ROUND

WAITS = '{"round-1.annotate": "wait"}'


def test_a_run_waits_with_its_own_exit_code_and_goes_on_when_the_files_are_there(world):
    code, out, err = world.run(TOY=WAITS)
    folder = f"runs/toy/{world.folder('round-1.annotate').name}/people"
    assert (code, err) == (3, "")
    assert out.splitlines()[-5:-1] == [
        "round-1.annotate waits for people: 0 of 3 comparisons are done",
        f"  ana: 0 of 2, page: {folder}/ana.html",
        f"  ben: 0 of 1, page: {folder}/ben.html",
        f"  put the files that the pages save into {folder}",
    ]
    assert out.splitlines()[-1].endswith(" run toy.yaml --set rounds=1") and out.splitlines()[-1].startswith("then: ")
    assert world.summary()["state"] == world.states()["round-1.annotate"] == "waiting"
    assert world.states()["round-1.dpo"] == "pending"

    people = world.folder("round-1.annotate") / "people"
    (people / "ana.labels.jsonl").write_text("".join(lines_of([label("r1")], run="toy")))
    code, out, err = world.call("status", "runs/toy")
    assert (code, err) == (0, "")
    assert out.startswith("toy: waiting: people compare answers; run the recipe again when they have sent their files")
    assert "round-1.annotate waits for people: 1 of 3 comparisons are done\n  ana: 1 of 2, page: " in out
    (people / "ben.labels.jsonl").write_text("".join(lines_of([label("r1")], run="toy", person="ben"))[:-5])
    assert "  problem: " in (out := world.call("status", "runs/toy")[1])
    assert "ben.labels.jsonl was cut off on its way; let 'ben' save and send it again" in out
    assert "| waiting " in world.call("list")[1]

    world.launched()
    code, out, err = world.run(TOY=WAITS)
    assert code == 0, err
    place = STEPS_OF_ONE_ROUND.index("round-1.annotate")
    assert world.launched() == STEPS_OF_ONE_ROUND[place:]
    assert (people / "ana.labels.jsonl").exists() and (people / "batch.json").exists()
    assert "waits for people" not in world.call("status", "runs/toy")[1]


def test_from_python_a_run_that_waits_raises(world, monkeypatch, capsys):
    import alignloop
    from pipeline.launch import command_line, warm

    monkeypatch.chdir(world.work)
    monkeypatch.setattr(command_line, "ROOT", world.command.parent)
    monkeypatch.setattr(warm, "preloaded_modules", list)
    monkeypatch.setenv("TOY", WAITS)
    with pytest.raises(alignloop.WaitingForPeople, match=r"round-1\.annotate: waiting for people") as raised:
        alignloop.run(alignloop.load_recipe("toy.yaml", {"rounds": 1}), preflight=False)
    assert isinstance(raised.value, StepWaits)
    assert "put the files that the pages save into" in capsys.readouterr().out
