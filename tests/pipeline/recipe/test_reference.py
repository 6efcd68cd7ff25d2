"""docs/recipe.md and docs/stage-keys.md: every key, as the tables have it now."""

from data_schemas.stage_keys import INPUT_ROLES, PIPELINE_KEYS, REPLACED_KEYS, stages
from pipeline.recipe import stage_reference
from pipeline.recipe.reference import PAGE, SET_BY_PLAN, reference_page


def test_the_pages_are_what_make_keys_writes():
    assert PAGE.read_text(encoding="utf-8") == reference_page()
    assert stage_reference.PAGE.read_text(encoding="utf-8") == stage_reference.stage_page()


def test_the_page_of_the_stages_names_every_key_of_each_and_explains_the_inputs():
    parts = {part.split("`")[1]: part for part in stage_reference.stage_page().split("\n## ")[1:]}
    assert list(parts) == list(stages())
    for name, stage in stages().items():
        keys = set(stage.keys) - {*PIPELINE_KEYS, *REPLACED_KEYS, "output_dir"}
        assert {key for key in keys if f"`{key}`" not in parts[name]} == set()
        inputs = {key for key in keys if stage.keys[key].role in INPUT_ROLES}
        assert {line.split("`")[1] for line in parts[name].splitlines() if line.startswith("| `")} == inputs
        assert stage.example in parts[name]


def test_every_key_that_a_recipe_may_have_is_on_the_page_with_a_meaning():
    rows = [line for line in reference_page().splitlines() if line.startswith("| `")]
    named = {row.split("`")[1] for row in rows}
    keys = {(name, key.own) for stage in stages().values() for name, key in stage.keys.items()}
    expected = {name for name, own in keys if name not in SET_BY_PLAN and (own or name not in REPLACED_KEYS)}
    assert len(expected) > 200 and expected <= named
    assert {"rounds", "launch", "human_share", "num_processes"} <= named
    own = rows[: next(number for number, row in enumerate(rows) if row.startswith("| `accelerator_config`"))]
    assert len(own) > 80 and all(row.rstrip(" |").rpartition("| ")[2] for row in own)
