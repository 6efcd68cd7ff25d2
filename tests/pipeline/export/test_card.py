"""The model card of an export: front matter for the hub, lineage, data, results, settings; and no path of the user."""

from pathlib import Path

import yaml

from data_schemas.files import digest_text
from pipeline.export.card import UNKNOWN, Card
from pipeline.export.folder import find_model
from pipeline.state.lineage import lineage_of
from tests.pipeline.export.toy_run import PAIRS, write_run


def card_of(run: Path, step: str | None = None, *, license: str = UNKNOWN) -> tuple[dict, dict[str, str]]:
    """The front matter, and the text below each heading."""
    exported = find_model(run, step)
    text = Card(exported, lineage_of(run, exported.folder), "acme/mine", license).text()
    assert "/home/ann" not in text
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), {part.partition("\n")[0]: part for part in body.split("\n## ")}


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    write_run(tmp_path)
    assert card_of(tmp_path, license="apache-2.0")[0] == {
        "license": "apache-2.0",
        "base_model": "acme/base",
        "datasets": ["acme/chats"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignloop", "sft", "dpo"],
    }


def test_a_license_that_is_not_given_is_said_to_be_unknown(tmp_path):
    write_run(tmp_path)
    front, sections = card_of(tmp_path)
    assert front["license"] == "unknown"
    assert "The license is unknown: none was given at the export." in sections["License"]
    assert "`mit`" in card_of(tmp_path, license="mit")[1]["License"]


def test_the_lineage_names_every_step_with_its_fingerprint_and_what_is_gone(tmp_path):
    folders = write_run(tmp_path, base="ef" * 32)
    front, sections = card_of(tmp_path)
    assert "base_model" not in front  # a local folder has no name on the hub
    lines = sections["Lineage"].splitlines()[2:]
    order = ["prepare_base", "prepare_data", "round-0.sft", "round-1.dpo"]
    assert [line.split("`")[3] for line in lines[:4]] == [folders[name].name for name in order]
    fingerprint = lines[3].split("`")[5]
    assert len(fingerprint) == 64 and folders["round-1.dpo"].name.endswith(f"-{fingerprint[:8]}")
    assert lines[4:6] == [
        f"- base model `model_name_or_path`: SHA-256 of its files `{'ef' * 32}`",
        f"- a step that is no longer in the run: fingerprint `{'cd' * 32}`",
    ]


def test_the_data_have_their_hash_and_number_of_rows(tmp_path):
    write_run(tmp_path)
    rows = [line.strip("| ").split(" | ") for line in card_of(tmp_path)[1]["Data"].splitlines()[4:] if line]
    assert rows == [
        ["`pairs\\|x.jsonl`", "`from outside the run`", "-", f"`{PAIRS}`"],
        ["`acme/chats`", "`from outside the run`", "-", "-"],
        ["`instructions.train.jsonl`", "`prepare_data`", "3", f"`{digest_text(chr(10).join(['{}'] * 3) + chr(10))}`"],
    ]  # prompts.train is read by no step of the lineage, and rejected rows are not trained on


def test_results_have_intervals_and_the_settings_of_their_sampling(tmp_path):
    write_run(tmp_path)
    sections = card_of(tmp_path)[1]
    assert "| wins vs first     | 0.800 [0.70, 0.90] |" in sections["Results"]
    assert (
        "| judge | `gold` |\n| prompts | `30` |\n| temperature | `0.9` |\n| top_p | `1.0` |" in sections["Evaluation"]
    )
    recipe = yaml.safe_load(sections["Recipe"].split("```")[1].removeprefix("yaml"))
    assert recipe == {
        "prepare_data": {"seed": 3},
        "prepare_base": {"chat_template": "x.jinja"},
        "round-0.sft": {"learning_rate": 0.5},
        "round-1.dpo": {"beta": 0.2},
    }
    assert "| torch | `2.13.0` |" in sections["Versions"]


def test_a_merged_adapter_is_named_as_one(tmp_path):
    write_run(tmp_path, keys={"use_peft": True, "lora_r": 8})
    head = next(iter(card_of(tmp_path, "round-0.sft")[1].values()))
    assert "trained as a LoRA adapter (rank 8) and merged into its base" in head
    assert "LoRA" not in next(iter(card_of(tmp_path)[1].values()))


def test_an_identity_that_is_not_the_records_ends_the_lineage(tmp_path):
    folders = write_run(tmp_path)
    identity = folders["round-0.sft"] / "fingerprint.json"
    identity.write_text(identity.read_text().replace('"sft"', '"dpo"'))
    lines = card_of(tmp_path)[1]["Lineage"].splitlines()[2:]
    assert [line.split("`")[1] for line in lines[:2]] == ["round-0.sft", "round-1.dpo"]
