"""Every key of every section with values that it cannot have: the recipe is refused in one line, before any launch.

The inputs are generated from the table of keys: a value of each wrong type, a number beyond each limit, one that is not
finite, an empty value, a huge one. A value that a key may have all the same is in LEGAL, by a rule with its reason.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from data_schemas.errors import UserError
from data_schemas.stage_keys import INPUT_ROLES, StageKey, stages
from pipeline.launch.checks import check_recipe
from pipeline.plan import make_plan
from pipeline.recipe.names import all_sections, stage_of, stages_of_a_round
from pipeline.recipe.schema import load_recipe
from tests.pipeline.fake_stages import build_inputs

NAN, INFINITE = float("nan"), float("inf")
HUGE_TEXT = "x" * 5_000
WRONG_TYPES = {"text": "wrong type", "list": [{}], "mapping": {"a": 1}, "boolean": True, "number": 1.5, "null": None}
UNUSED = ("pretrain", "judge")  # sections that the plan of the recipe below has no step of
HUGE = {"int": 10**30, "float": 1e300}


def values_of(key: StageKey) -> Iterator[tuple[str, object]]:
    """(what is wrong, value) for a key."""
    yield from WRONG_TYPES.items()
    number = next((kind for kind in HUGE if kind in key.type), None)
    if number:
        numbers: dict[str, object] = {"nan": NAN, "infinite": INFINITE, "huge": HUGE[number], "very huge": 10**400}
        if key.limits is not None:
            limits = key.limits
            step = 1 if number == "int" else 0.001
            numbers |= {"below the minimum": limits.minimum - step} if limits.minimum is not None else {}
            numbers |= {"at the lower bound": limits.above} if limits.above is not None else {}
            numbers |= {"over the maximum": limits.maximum + step} if limits.maximum is not None else {}
            numbers |= {"at the upper bound": limits.below} if limits.below is not None else {}
            numbers |= {"a part of a step": 2.5} if limits.whole_from_1 else {}
        for what, value in numbers.items():
            yield what, [value] if key.is_list else value
    yield "empty text", ""
    yield "empty list", []
    if "str" in key.type:
        yield "huge text", [HUGE_TEXT] if key.is_list else HUGE_TEXT
        yield "null character", ["a\0b"] if key.is_list else "a\0b"


def is_legal(key: StageKey, what: str, value: object) -> str:
    """The reason why the value is allowed; empty where it has to be refused."""
    kinds = key.type.split(" | ")
    is_free_text = ("str" in kinds or "list[str]" in kinds) and not key.choices
    if "any" in kinds:
        return "a library's key without a type"
    if what == "null" and "null" in kinds:
        return "nothing is one of its values"
    if what == "boolean" and "bool" in kinds:
        return "a boolean is one of its values"
    if what == "mapping" and "dict" in kinds:
        return "a mapping's content is the library's"
    if what in ("text", "number", "huge text") and is_free_text and key.role not in ("rows", "model", "function"):
        return "free text, which a library or the model's files give a meaning"
    if what == "number" and "float" in kinds and (key.limits is None or key.limits.holds(1.5)):
        return "within its limits"
    if what in ("empty text", "empty list") and (key.may_be_empty or key.default in ("", [])):
        return "empty has a meaning"
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    build_inputs(folder)
    return folder


def refusal(folder: Path, content: dict) -> str:
    """The error of a recipe with this content; empty where it is accepted. Anything but a UserError is raised."""
    recipe = folder / "generated.yaml"
    recipe.write_text(to_yaml(content))
    try:
        loaded = load_recipe(recipe)
        check_recipe(loaded, make_plan(loaded))
    except UserError as error:
        return str(error)
    return ""


def to_yaml(content: object) -> str:
    """JSON, which is YAML but for its infinities; a tenth of the time of yaml.dump."""
    return json.dumps(content).replace("NaN", ".nan").replace("Infinity", ".inf")


def test_every_generated_value_is_refused_in_one_line_or_legal_for_a_reason(folder, monkeypatch):
    monkeypatch.chdir(folder)
    whole = yaml.safe_load((folder / "toy.yaml").read_text())
    whole |= {"round_stages": stages_of_a_round(), "rounds": 1, "evaluate_tasks": {"gsm8k": "chats.jsonl"}}
    whole |= {"paraphrase": {"paraphrase_llm": "base"}}
    assert refusal(folder, whole) == ""
    (folder / "texts.txt").write_text("A text.\n")
    pretrained = whole | {"data": whole["data"] | {"documents": "texts.txt"}}
    tried, legal, wrong = 0, 0, []
    done: set[tuple[str, str]] = set()  # keys that sections share are tried once
    for section in sorted(all_sections(), key=lambda name: name in UNUSED):
        for name, key in stages()[stage_of(section)].keys.items():
            if (description := (name, key.model_dump_json())) in done or (
                section in UNUSED and key.role in INPUT_ROLES
            ):
                continue
            done.add(description)
            for what, value in values_of(key):
                tried += 1
                around = pretrained if section == "pretrain" else whole
                found = refusal(folder, around | {section: {**whole.get(section, {}), name: value}})
                if is_legal(key, what, value):
                    legal += 1
                elif not found:
                    wrong.append(f"{section}.{name}: {what} is accepted")
                if found and ("\n" in found or len(found) > 900 or name not in found):
                    wrong.append(f"{section}.{name}: {what}: {found[:300]}")
    print(f"{tried} values: {tried - legal - len(wrong)} refused, {legal} legal, {len(wrong)} wrong")
    assert tried > 2000
    assert not wrong, "\n".join(wrong)


BAD_SETTINGS = [
    ("name", ["", "x" * 201, "a b", "[bold]", "a/b", "..", False, 3, None, "a\0", "ä"]),
    ("rounds", [-1, 1001, 1_000_000, 10**30, NAN, INFINITE, 1.5, True, "many", [], None]),
    ("base_model", ["gone", "x" * 300, "y/" * 3000, "a\0b", [], {}, True, 3, ""]),
    ("seed", [-1, 2**32, NAN, "x", None, True, []]),
    ("human_share", [-0.1, 1.1, NAN, INFINITE, "x", None, True]),
    ("dpo_batches", [0, 1001, 1.5, NAN, None, True]),
    ("round_stages", ["dpo", ["dppo"], ["dpo", "sft"], 3, None, {}]),
    ("first_sft", ["maybe", 3, None, []]),
    ("dpo_batch_decay", [0, -0.5, 1.5, NAN, None, "x", True]),
    ("average_with_best", [-0.1, 1, 1.5, NAN, None, "x", True]),
    ("sft_batches", [0, 1001, 1.5, NAN, None, True]),
    ("reward_model_from", ["worst", True, None, 3, ""]),
    ("sft_from", ["worst", True, None, 3, ""]),
    ("launch", ["ddp", [], 3, None, {"profil": "ddp"}]),
    ("defaults", ["x", [], 3, {"betta": 1}, {"seed": -1}, {"seed": NAN}]),
    (
        "round_stages_from",
        [[], "x", 3, {0: ["dpo"]}, {"x": ["dpo"]}, {1: "dpo"}, {1: ["dppo"]}, {1: ["dpo", "sft"]}, {1: 3}],
    ),
    ("by_round", [[], "x", {9: {}}, {-1: {}}, {"x": {}}, {1: {"dppo": {}}}, {1: {"dpo": {"beta": 0}}}, {1: 3}]),
    ("sft", [[], "x", 3, {"variants": []}, {"variants": [3]}, {"variants": [{"seed": -1}]}, {"average": 3}]),
    ("no", [1]),
]
BAD_LAUNCH = [
    ("profile", ["zero4", None, 3, True]),
    ("num_processes", [0, -1, 10**9, 1.5, NAN, True, "2", None]),
    ("num_machines", [0, 10**9, 1.5, None]),
    ("main_process_port", [0, 70_000, -1, 1.5, "x"]),
    ("devices", [[], [-1], [0, 0], ["x"], 3, [True]]),
    ("grace_seconds", [-1, NAN, INFINITE, 1e9, "x", None]),
    ("gpu", [1, [], {}]),
    ("price_per_gpu_hour", [-1, NAN, INFINITE, 1e9, "x"]),
    ("device", ["tpu", None, 3]),
    ("wrapper", [3, "'open", []]),
    ("warm", ["yes", 1, None]),
]


def test_bad_settings_are_refused_in_one_line(folder, monkeypatch):
    monkeypatch.chdir(folder)
    whole = yaml.safe_load((folder / "toy.yaml").read_text())
    wrong = []
    tried = [({name: value}, name) for name, values in BAD_SETTINGS for value in values]
    tried += [({"launch": {"device": "cpu", name: value}}, name) for name, values in BAD_LAUNCH for value in values]
    for content, name in tried:
        found = refusal(folder, whole | content)
        if not found or "\n" in found or len(found) > 900 or name not in found:
            wrong.append(f"{str(content)[:100]}: {found[:300] or 'is accepted'}")
    assert len(tried) > 100
    assert not wrong, "\n".join(wrong)
