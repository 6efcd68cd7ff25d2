"""DPO's two terms, alone and in the trainer."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, ModelConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from data_schemas.rows import Message, PreferencePair
from engine.models.loading import load_causal
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.training.dpo import DPOLoopTrainer, PreferenceCollator
from engine.training.dpo_loss import chosen_nll
from stages import dpo
from tests.stage_runs import metrics_of, run_here, weights_of


def test_nll_is_normalised_by_each_answers_length_or_by_the_batchs_tokens():
    # Two pairs: the chosen answers have 2 and 1 tokens, the rejected ones do not count.
    log_probs = torch.tensor([[-9.0, -1.0, -3.0], [-9.0, -9.0, -5.0], [-7.0, -7.0, -7.0], [-7.0, -7.0, -7.0]])
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    # (1 + 3) / 2 = 2 for the first, 5 for the second: 3.5 in the mean. By tokens, 1.5 an answer, it is 9 / 3 = 3.
    assert float(chosen_nll(log_probs, mask, torch.tensor([2.0, 1.0]))) == 3.5
    assert float(chosen_nll(log_probs, mask, torch.tensor([1.5, 1.5]))) == 3.0


def test_at_the_start_the_loss_is_log_2_plus_the_weighted_nll(tiny_model, rows, tmp_path):
    """Policy and reference are the same: every margin is 0."""
    run_here(
        "dpo",
        tmp_path / "dpo",
        model_name_or_path=tiny_model,
        train_data=[rows / "pairs.jsonl"],
        eval_data=[rows / "pairs_eval.jsonl"],
        max_steps=1,
        loss_weights=[1.0, 0.5],
    )
    start = {key: value for (step, key), value in metrics_of(tmp_path / "dpo").items() if step == 0}
    assert start["eval_rewards/margins"] == 0
    assert start["eval_loss"] == pytest.approx(math.log(2) + 0.5 * start["eval_nll"], abs=1e-6)


def test_without_the_sft_term_the_loss_is_that_of_trl(tiny_model, rows, tmp_path):
    run_here(
        "dpo",
        tmp_path / "dpo",
        model_name_or_path=tiny_model,
        train_data=[rows / "pairs.jsonl"],
        eval_data=[rows / "pairs_eval.jsonl"],
        max_steps=1,
        loss_type=["sigmoid"],
        loss_weights=[1.0],
    )
    values = metrics_of(tmp_path / "dpo")
    assert values[0, "eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (0, "eval_nll") not in values


ANSWERS = [("Paris.", "I do not know that."), ("Rome is it, of course!", "Oslo."), ("Lima", "No")]


@pytest.fixture(scope="module")
def table(tokenizer):
    """Three pairs in tokens, with both masks."""
    arguments = dpo.DPOArguments(train_data=[])
    encode, _ = dpo.encoder(tokenizer, arguments)
    prompt = [Message(role="user", content="Capital of France?")]
    rows = [
        PreferencePair(
            prompt=prompt,
            chosen=[Message(role="assistant", content=chosen)],
            rejected=[Message(role="assistant", content=rejected)],
        )
        for chosen, rejected in ANSWERS
    ]
    return Dataset.from_list([encode(row)[0].columns() for row in rows])


def trainer_of(tiny_model, tied_model, table, tokenizer, folder, *, nll_per="answer", **keys: Any) -> DPOLoopTrainer:
    training = DPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], **keys)
    arguments = dpo.DPOArguments(train_data=[], reference_model=str(tied_model), nll_per=nll_per)
    model = ModelConfig(model_name_or_path=str(tiny_model))
    stage = Stage("dpo", folder, {}, Tracker(folder, active=False), is_main=True)
    trainer = dpo.make_trainer(stage, arguments, training, model, tokenizer, table, table)
    trainer.attach_reference_log_probs("train", "eval")
    return trainer


def loss_of(trainer: DPOLoopTrainer, table) -> float:
    trainer.model.eval()
    trainer._mean_nll_tokens = sum(map(sum, table["chosen_trained"])) / len(table)
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))))


def log_probs(model, row: dict[str, Any], side: str) -> torch.Tensor:
    """log p of every token of an answer, [T], from a single unpadded row."""
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    token = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
    return token[-len(row[f"{side}_ids"]) :]


def by_hand(policy, reference, table, *, kind: str, beta: float, nll_weight: float, nll_per: str) -> float:
    """The preference term of Rafailov et al. (eq. 7), IPO (eq. 17) or Tülu 3 on content tokens only, plus the NLL."""
    terms, nlls, lengths = [], [], []
    for row in table:
        ratios, sizes = [], []
        for side in ("chosen", "rejected"):
            content = torch.tensor(row[f"{side}_content"])
            ratios.append((log_probs(policy, row, side) - log_probs(reference, row, side))[content].sum())
            sizes.append(int(content.sum()))
        if kind != "sigmoid":  # the other two are per token
            ratios = [ratio / size for ratio, size in zip(ratios, sizes, strict=True)]
        margin = ratios[0] - ratios[1]
        terms.append((margin - 1 / (2 * beta)) ** 2 if kind == "ipo" else -torch.log(torch.sigmoid(beta * margin)))
        trained = torch.tensor(row["chosen_trained"])
        nlls.append(-log_probs(policy, row, "chosen")[trained].sum())
        lengths.append(int(trained.sum()))
    nll = sum(nlls) / sum(lengths)
    if nll_per == "answer":
        nll = sum(nll / length for nll, length in zip(nlls, lengths, strict=True)) / len(nlls)
    return float(sum(terms) / len(terms) + nll_weight * nll)


@pytest.mark.parametrize("nll_per", ["answer", "batch"])
@pytest.mark.parametrize(("kind", "beta"), [("sigmoid", 0.1), ("ipo", 0.1), ("sigmoid_norm", 5.0)])
def test_the_loss_is_that_of_a_plain_implementation(
    kind, beta, nll_per, tiny_model, tied_model, table, tokenizer, tmp_path
):
    trainer = trainer_of(
        tiny_model,
        tied_model,
        table,
        tokenizer,
        tmp_path,
        nll_per=nll_per,
        beta=beta,
        loss_type=[kind, "sft"],
        loss_weights=[1.0, 0.2],
    )
    policy, reference = load_causal(str(tiny_model)).eval(), load_causal(str(tied_model)).eval()
    wanted = by_hand(policy, reference, table, kind=kind, beta=beta, nll_weight=0.2, nll_per=nll_per)
    assert loss_of(trainer, table) == pytest.approx(wanted, rel=1e-6)


def test_masks_of_an_answer(table, tokenizer):
    row = table[0]
    shown = [tokenizer.decode([token]) for token in row["chosen_ids"]]
    assert "".join(shown) == "Paris.<|im_end|>"
    assert row["chosen_content"] == [True] * (len(shown) - 1) + [False]
    assert row["chosen_trained"] == [True] * len(shown)


LOSS_TYPES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
]


class OnlyContent(DataCollatorForPreference):
    """TRL's batch with the content as its only mask."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = PreferenceCollator(self.pad_token_id).torch_call(examples)
        del batch["nll_mask"]
        return batch


class Trls(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_every_loss_of_trl_sees_only_the_content(kind, tiny_model, tied_model, table, tokenizer, tmp_path):
    keys = {"loss_type": [kind], "label_smoothing": 0.1 if kind in ("exo_pair", "robust") else 0.0, "beta": 0.3}
    ours = trainer_of(tiny_model, tied_model, table, tokenizer, tmp_path, **keys)
    training = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], remove_unused_columns=False, **keys
    )
    theirs = Trls(
        load_causal(str(tiny_model)),
        ref_model=load_causal(str(tied_model)),
        args=training,
        data_collator=OnlyContent(tokenizer.pad_token_id),
        train_dataset=table,
        processing_class=tokenizer,
    )
    theirs.model.eval()
    with torch.no_grad():
        wanted = float(theirs.compute_loss(theirs.model, theirs.data_collator(list(table))))
    # sppo_hard squares a log-prob, whose last bit is 4e-6: without AVX-512 long and padded rows differ in one.
    assert loss_of(ours, table) == pytest.approx(wanted, rel=5e-6 if kind == "sppo_hard" else 1e-6)
    both = trainer_of(
        tiny_model,
        tied_model,
        table,
        tokenizer,
        tmp_path,
        **keys | {"loss_type": [kind, "sft"], "loss_weights": [1.0, 0.2]},
    )
    assert loss_of(both, table) > wanted + 1e-3


@pytest.mark.parametrize("nll_per", ["answer", "batch"])
def test_the_micro_batch_changes_no_weight(nll_per, tiny_model, rows, tmp_path):
    """8 pairs a step as 1 x 8, 2 x 4 and 4 x 2: the same gradients."""
    weights = []
    for micro in (8, 4, 2):
        folder = tmp_path / str(micro)
        run_here(
            "dpo",
            folder,
            model_name_or_path=tiny_model,
            train_data=[rows / "pairs.jsonl"],
            nll_per=nll_per,
            eval_data=[rows / "pairs_eval.jsonl"],
            max_steps=2,
            global_batch_size=8,
            eval_steps=2,
            per_device_train_batch_size=micro,
        )
        weights.append(weights_of(folder / "model"))
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            assert torch.allclose(tensor, other[name], atol=1e-5), name


def test_without_the_mask_the_preference_term_sees_every_trained_token(tokenizer):
    arguments = dpo.DPOArguments(train_data=[], mask_formatting=False)
    encode, _ = dpo.encoder(tokenizer, arguments)
    answers = {side: [Message(role="assistant", content=side)] for side in ("chosen", "rejected")}
    (row,) = encode(PreferencePair(prompt=[Message(role="user", content="?")], **answers))
    assert row.chosen_content == row.chosen_trained == [True] * len(row.chosen_ids)
