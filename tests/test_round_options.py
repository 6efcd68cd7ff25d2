"""The options of rounds that older batches, variants and policies of earlier rounds take part in, run together."""

import json

import pytest
import torch

from data_schemas.reading import read_prompts, read_rows
from data_schemas.rows import Candidates
from tests.loop_recipes import Place
from tests.stage_runs import weights_of

OPTIONS = (
    "rounds=2",
    "average_with_best=0.25",
    "dpo_batches=2",
    "dpo_batch_decay=0.5",
    "reward_model.variants=[{seed: 1}, {seed: 2}]",
    "reward_model.level_margins=[3, 2, 1, 0]",
    "rejection_sampling.vote=worst",
    "rejection_sampling.prompt_order=hardest_first",
    "annotate.prompt_order=hardest_first",
)


@pytest.mark.long
def test_a_loop_with_all_of_them_runs_and_each_of_them_acts(tmp_path):
    place = Place(tmp_path)
    code, out, err = place.run(*OPTIONS, name="options")
    assert code == 0, f"{out[-3000:]}\n{err[-3000:]}"
    metrics = {step["name"]: step["metrics"] for step in place.summary(name="options")["steps"]}
    rounds = place.summary(name="options")["rounds"]
    assert [row["policy"] for row in rounds] == ["round-0.sft", "round-1.average", "round-2.average"]
    assert rounds[1]["dpo_reward_accuracy"] == metrics["round-1.dpo"]["eval_rewards/accuracies"]
    # The round's policy lies a quarter of the way back to the best one before.
    first, trained, average = (
        weights_of(place.folder(step, name="options") / "model")
        for step in ("round-0.sft", "round-1.dpo", "round-1.average")
    )
    for name, weight in average.items():
        assert torch.allclose(weight, 0.25 * first[name] + 0.75 * trained[name], atol=1e-6)
    assert any(not torch.equal(first[name], trained[name]) for name in first)
    # Scores of several reward models are in their standard deviations.
    groups = read_rows(place.folder("round-1.rejection_sampling", name="options") / "candidates.jsonl", Candidates)
    scores = torch.tensor([candidate.score for group in groups for candidate in group.candidates])
    assert -1.0 < float(scores.mean()) < 0.0 and float(scores.abs().max()) < 6
    # Round 2 starts with the prompts that were hard in round 1, in spite of the next ones of the random order.
    spreads = {group.group_id: group.spread or 0.0 for group in groups}
    mean = sum(spreads.values()) / len(spreads)
    held_out = {
        row.group_id
        for row in read_prompts(place.config("round-2.annotate", name="options")["validation_prompts"]).rows
    }
    hard = {name for name, spread in spreads.items() if spread > mean} - held_out
    later = read_rows(place.folder("round-2.rejection_sampling", name="options") / "candidates.jsonl", Candidates)
    assert hard and hard <= {group.group_id for group in later}
    assert metrics["round-2.rejection_sampling"]["prompts_of_known_difficulty"] == len(hard)
    assert place.config("round-2.dpo", name="options")["train_data_shares"] == [0.5, 1.0]
    code, out, err = place.run(*OPTIONS, name="options")
    assert code == 0 and set(place.states(name="options").values()) == {"reused"}, out


@pytest.mark.long
def test_a_reward_model_of_its_own_size_and_tokenizer(tmp_path):
    place = Place(tmp_path)
    larger = place.words("pretrain.architecture.hidden_size=48", "pretrain.vocab_size=280", name="larger")
    code, out, err = place.call("run", *larger, "--until", "pretrain")
    assert code == 0, f"{out[-3000:]}\n{err[-3000:]}"
    base = f"reward_model_from=runs/larger/{place.folder('pretrain', name='larger').name}/model"
    code, out, err = place.run("rounds=1", base)
    assert code == 0, f"{out[-3000:]}\n{err[-3000:]}"
    reward_model, policy = (place.folder(f"round-1.{stage}") / "model" for stage in ("reward_model", "dpo"))
    widths = [json.loads((folder / "config.json").read_text())["hidden_size"] for folder in (reward_model, policy)]
    assert widths == [48, 32]
    tokens = [
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] for folder in (reward_model, policy)
    ]
    assert tokens[0] != tokens[1]
    assert place.summary()["rounds"][1]["proxy_mean"] is not None
    code, out, err = place.call("plan", *place.words("rounds=2", base), "--cost")
    assert code == 0 and "are not known" not in out, f"{out}\n{err}"
