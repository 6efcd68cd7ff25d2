"""A stage is a program: started by hand it makes the same folder as the pipeline does."""

import json
from pathlib import Path

import pytest
from loop_recipes import python_by_hand

from data_schemas.artifact import Artifact
from pipeline.launching import ROOT

pytest_plugins = ("loop_fixtures",)


@pytest.mark.parametrize("launcher", [(), ("-m", "accelerate.commands.launch", "--cpu")], ids=["python", "accelerate"])
def test_sft_by_hand_makes_the_folder_that_the_pipeline_made(place, tmp_path, launcher):
    made = place.folder("round-0.sft")
    if launcher:  # never the user's own default profile, which may ask for anything
        launcher = (*launcher, "--config_file", str(ROOT / "configs" / "accelerate" / "single.yaml"))
    words = (*launcher, f"{ROOT}/stages/sft.py", "--config", str(made / "config.yaml"), "--output_dir", "by-hand")
    done = python_by_hand(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "by-hand"
    for file in ("model/model.safetensors", "model/tokenizer.json", "model/config.json", "metrics.jsonl"):
        assert (folder / file).read_bytes() == (made / file).read_bytes(), file
    mine, pipelines = Artifact.read(folder), Artifact.read(made)
    assert mine is not None and pipelines is not None
    changing = {"seconds"}
    assert mine.model_dump(exclude=changing) == pipelines.model_dump(exclude=changing)
    assert _names(folder) == _names(made) - {
        "config.yaml",  # the runner writes it, and what the fingerprint was made of, and catches the console
        "console.txt",
        "fingerprint.json",
    }


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_folder_and_a_misspelt_key_are_refused_by_hand_too(place, tmp_path):
    made = place.folder("prepare_data")
    config = ("--config", str(made / "config.yaml"))
    again = python_by_hand(f"{ROOT}/stages/prepare_data.py", *config, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith(f"error: {made} holds a finished stage (artifact.json); choose")
    misspelt = python_by_hand(f"{ROOT}/stages/prepare_data.py", *config, "--evaluation_shar", "0.1", cwd=tmp_path)
    assert misspelt.returncode == 2
    assert "unknown key 'evaluation_shar' of stage prepare_data; did you mean 'evaluation_share'?" in misspelt.stderr


def test_a_folder_of_another_unfinished_stage_is_refused(place, tmp_path):
    (tmp_path / "begun").mkdir()
    before = {"stage": "prepare_data", "keys": {"seed": 1}, "inputs": {}}
    (tmp_path / "begun" / "identity.json").write_text(json.dumps(before))
    config = ("--config", str(place.folder("prepare_data") / "config.yaml"))
    done = python_by_hand(f"{ROOT}/stages/prepare_data.py", *config, "--output_dir", "begun", cwd=tmp_path)
    assert done.returncode == 2
    assert "begun holds an unfinished prepare_data with other keys (" in done.stderr
    assert "choose another output_dir, or move it away" in done.stderr
