"""Variants run side by side, each on its own devices."""

import json
import signal
import time

import pytest

from pipeline.launch import command_line
from pipeline.recipe.sections import Launch
from tests.patience import PATIENCE
from tests.processes import alive

CORES = command_line.available_cores()
TWO = ("--set", "by_round.0.sft.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}]", "--set", "rounds=0")
SIDE_BY_SIDE = (*TWO, "--set", f"launch.devices={CORES[:2]}")
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="two steps side by side need two cores")


@two_cores
def test_an_average_of_rounds_waits_for_the_average_of_variants_that_it_reads(world):
    variants = ("--set", "by_round.1.dpo.variants=[{beta: 0.1}, {beta: 0.2}]", "--set", "average_with_best=0.5")
    code, _, err = world.call("run", "toy.yaml", *variants, "--set", f"launch.devices={CORES[:2]}")
    assert code == 0, err
    launched = world.launched()
    assert launched.index("round-1.average") == launched.index("round-1.dpo") + 1
    assert world.config("round-1.average")["models"][1] == str(world.folder("round-1.dpo") / "model")


@two_cores
def test_variants_run_side_by_side_each_on_its_own_devices(world):
    meet = {"round-0.sft.1": "meet round-0.sft.2", "round-0.sft.2": "meet round-0.sft.1"}
    code, out, err = world.call("run", "toy.yaml", *SIDE_BY_SIDE, TOY=json.dumps(meet))
    assert code == 0, err
    assert set(world.launched()[2:4]) == {"round-0.sft.1", "round-0.sft.2"}
    here = [json.loads((world.folder(f"round-0.sft.{n}") / "here.json").read_text()) for n in (1, 2)]
    assert [(place["cores"], place["threads"]) for place in here] == [([CORES[0]], "1"), ([CORES[1]], "1")]
    average = json.loads((world.folder("round-0.sft") / "here.json").read_text())
    assert average["cores"] == CORES[:2]  # the only step that runs has all cores
    assert world.config("round-0.sft")["models"] == [str(world.folder(f"round-0.sft.{n}") / "model") for n in (1, 2)]
    assert world.summary()["rounds"][0]["sft_eval_loss"] == 1.25  # the average's loss, not a variant's
    # Without a terminal, each step has a line at its start and one at its end, under one number.
    lines = [line.split()[:3] for line in out.splitlines() if "round-0.sft." in line]
    assert sorted(lines) == [
        ["[3/6]", "round-0.sft.1", "ran"],
        ["[3/6]", "round-0.sft.1", "running"],
        ["[4/6]", "round-0.sft.2", "ran"],
        ["[4/6]", "round-0.sft.2", "running"],
    ]
    assert [line[2] for line in lines[:2]] == ["running", "running"]

    assert world.call("run", "toy.yaml", *TWO)[0] == 0  # how a step is run is not part of its identity
    assert world.launched() == []


def test_without_devices_variants_run_one_after_the_other(world):
    code, out, _ = world.call("run", "toy.yaml", *TWO)
    assert code == 0
    assert world.launched() == [
        "prepare_data",
        "prepare_base",
        "round-0.sft.1",
        "round-0.sft.2",
        "round-0.sft",
        "round-0.evaluate_policy",
    ]
    lines = [line.split()[1:3] for line in out.splitlines() if "round-0.sft." in line]
    assert lines == [[f"round-0.sft.{n}", state] for n in (1, 2) for state in ("running", "ran")]


@two_cores
def test_a_failed_variant_lets_the_other_finish_and_is_then_reported(world):
    three = ("--set", "by_round.0.sft.variants=[{learning_rate: 1e-5}, {learning_rate: 2e-5}, {learning_rate: 3e-5}]")
    behaviour = {"round-0.sft.1": "config", "round-0.sft.2": "meet round-0.sft.1"}
    process = world.start("run", "toy.yaml", *SIDE_BY_SIDE, *three, TOY=json.dumps(behaviour))
    deadline = time.monotonic() + 120
    while not (world.run_folder / "summary.json").exists() or world.states().get("round-0.sft.1") != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world.states()["round-0.sft.2"] == "running"
    assert world.summary()["state"] == "running"
    (world.folder("round-0.sft.1") / "here").touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.startswith("error: round-0.sft.1 failed: beta=9 is too much")
    assert "round-0.sft.3" not in world.launched()  # no step starts whose result could not be used
    assert world.states()["round-0.sft.1"] == "failed"
    assert world.states()["round-0.sft.2"] == "ran"
    assert world.summary()["state"] == "failed"
    assert any(line.split()[1:3] == ["round-0.sft.1", "failed"] for line in out.splitlines())

    assert world.call("run", "toy.yaml", *SIDE_BY_SIDE, *three)[0] == 0
    assert set(world.launched()[:2]) == {"round-0.sft.1", "round-0.sft.3"}
    assert world.states()["round-0.sft.2"] == "reused"


@two_cores
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_stages_that_run_side_by_side(world, number):
    behaviour = {"round-0.sft.1": "stubborn", "round-0.sft.2": "hang"}
    process = world.start("run", "toy.yaml", *SIDE_BY_SIDE, TOY=json.dumps(behaviour))
    pids = world.hanging(stages=2)
    assert len(pids) == 4 and all(map(alive, pids))
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert not any(map(alive, pids))
    assert world.summary()["state"] == "interrupted"
    assert (world.states()["round-0.sft.1"], world.states()["round-0.sft.2"]) == ("interrupted",) * 2


@two_cores
def test_verbose_prefixes_each_line_with_its_step(world):
    meet = {"round-0.sft.1": "meet round-0.sft.2", "round-0.sft.2": "meet round-0.sft.1"}
    out = world.call("run", "toy.yaml", "-v", *SIDE_BY_SIDE, TOY=json.dumps(meet))[1]
    assert "round-0.sft.1 | hello from round-0.sft.1\n" in out
    assert "\nhello from prepare_data\n" in out


@pytest.mark.parametrize(
    ("launch", "num_steps", "expected"),
    [
        ({}, 3, [None]),
        ({"device": "gpu", "devices": [0, 1, 2, 3], "num_processes": 2}, 3, [(0, 1), (2, 3)]),
        ({"device": "gpu", "devices": [4, 5, 6], "num_processes": 2}, 3, [(4, 5)]),
        ({"device": "gpu", "devices": [4, 5, 6]}, 2, [(4,), (5,)]),
        ({"device": "cpu", "devices": [0, 1, 2, 3]}, 2, [(0, 1), (2, 3)]),
        ({"device": "cpu", "devices": [0, 1, 2, 3]}, 1, [(0, 1, 2, 3)]),
    ],
)
def test_devices_are_assigned_to_as_many_steps_as_fit(launch, num_steps, expected):
    assert [slot.devices for slot in command_line.slots(Launch(**launch), num_steps)] == expected
