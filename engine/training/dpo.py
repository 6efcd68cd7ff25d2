"""What DPO adds to TRL's trainer: two token masks, an NLL term that does not depend on the micro-batch, exact means.

Llama 3 (arXiv 2407.21783, 4.1.4) masks header and termination tokens in the preference term, since answers otherwise
repeat their tail or end abruptly; its NLL term is there for formatting and keeps them. TRL has one mask for both terms.
Its `sft` loss is a mean over the chosen tokens of each micro-batch, so 8x1 and 2x4 rows give different gradients; here
it is normalised by each answer's length (Pang et al., arXiv 2404.19733, eq. 4), or by the tokens of the global batch.

The reference's log-probs are columns of the rows (reference.py). Only a reference that changes while the policy is
trained (`sync_ref_model`) is run in every step.

Every TRL `loss_type` sees only the preference mask: in its log-probs, its lengths (`ipo`, `sigmoid_norm`), its metrics.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from engine.packing.shared_rows import SharedRows
from engine.packing.trainer_mixin import SharedRowsMixin
from engine.tokens.token_rows import TokenPair
from engine.training.dpo_loss import MaskedPolicy, chosen_nll, judge_margins, nll_lengths
from engine.training.host import Batch
from engine.training.reference import PrecomputedReference

# Shapes: B = pairs in the batch, T = tokens; tensors of the batch hold the chosen rows, then the rejected, [2B, T].

Rows = TypeVar("Rows")


@dataclass
class PreferenceCollator(DataCollatorForPreference):
    """TRL's batch with `completion_mask`, the tokens of the preference term, and `nll_mask`, those of the NLL term,
    [2B, T] each. With `share_prompts` also the shared row that the models are run on (packing/shared_rows.py).

    Rows hold, beside TRL's `prompt_ids`, `chosen_ids` and `rejected_ids`, both masks of each answer as lists:
    `chosen_content`, `chosen_trained`, `rejected_content`, `rejected_trained`.
    """

    share_prompts: bool = False

    def torch_call(self, examples: list[dict[str, list[int]]]) -> Batch:
        batch: Batch = super().torch_call(examples)
        if self.share_prompts:
            sequences = [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected") for row in examples]
            batch |= SharedRows.of(sequences, [*range(len(examples))] * 2).as_inputs()
        for name, kind in (("completion_mask", "content"), ("nll_mask", "trained")):
            mask_2BT = torch.zeros_like(batch["input_ids"])
            for half, side in enumerate(("chosen", "rejected")):
                for row, example in enumerate(examples):
                    start, flags = len(example["prompt_ids"]), example[f"{side}_{kind}"]
                    mask_2BT[half * len(examples) + row, start : start + len(flags)] = torch.tensor(flags).long()
            batch[name] = mask_2BT
        return batch


class DPOLoopTrainer(PrecomputedReference, SharedRowsMixin, DPOTrainer):
    """DPO with two masks. `nll_per` is what the NLL of an answer is divided by: the length of the answer, or the mean
    length in the global batch."""

    token_row_type = TokenPair
    accuracy_metric = "eval_rewards/accuracies"

    def __init__(self, *args, nll_per: Literal["answer", "batch"] = "answer", **kwargs) -> None:
        self.nll_per = nll_per
        self._mean_nll_tokens = 0.0  # trained tokens of a chosen answer, mean over the global batch
        with _without_weight_hash():
            super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: Rows, *args: object, **kwargs: object) -> Rows:
        """Returns the rows unchanged. The cache of TRL's own method depends on the order of the rows and on every key;
        `engine.training.reference` replaces it."""
        return dataset

    def _prepare_dataset(self, dataset: Rows, *args: object, **kwargs: object) -> Rows:
        """Rows are tokenized already, as prompt_ids, chosen_ids and rejected_ids; TRL's own method expects text."""
        return dataset

    def batch_weights(self, inputs: Batch) -> dict[str, float]:
        chosen_mask_BT, rejected_mask_BT = inputs["completion_mask"][:, 1:].chunk(2)
        chosen, rejected = float(chosen_mask_BT.sum()), float(rejected_mask_BT.sum())
        return {
            "": len(chosen_mask_BT),
            "entropy": chosen + rejected,
            "logits/chosen": chosen,
            "logits/rejected": rejected,
            "mean_token_accuracy": chosen,
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.nll_per == "batch":
            lengths = [length for batch in samples for length in nll_lengths(batch["nll_mask"])]
            tokens, rows = self._sum_over_processes([float(sum(lengths)), float(len(lengths))])
            self._mean_nll_tokens = tokens / max(1.0, rows)
        return samples, num_items

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        before = self._mean_nll_tokens
        if self.nll_per == "batch":  # in an evaluation the batch is all of its rows
            assert isinstance(dataloader.dataset, Dataset)
            lengths = [sum(flags) for flags in dataloader.dataset["chosen_trained"]]
            self._mean_nll_tokens = sum(lengths) / len(lengths)
        try:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._mean_nll_tokens = before

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference's sums of log p over the preference mask of the chosen and the rejected answers, [B] each."""
        inputs = {name: value for name, value in inputs.items() if name != "nll_mask"}
        with self.accelerator.autocast():  # `on_shared_rows` tests the model in the precision of training
            called = cast(torch.nn.Module, self.on_shared_rows(model, inputs))
            # TRL switches the policy's adapters off unless there is a reference model. Without a continued adapter the
            # policy would be the adapter's base.
            before = self.ref_model
            self.ref_model = called if self.continued_adapter else before
            try:
                return super().compute_ref_log_probs(called, inputs)
            finally:
                self.ref_model = before

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        """The weighted sum of TRL's losses and the NLL term, a scalar. With the default `loss_type` it is the mean,
        over pairs of a prompt x with a chosen answer w and a rejected answer l, of

            -log sigmoid(beta * (log pi(w|x)/ref(w|x) - log pi(l|x)/ref(l|x))) + weight * -log pi(w|x) / length

        The first term is DPO's (arXiv 2305.18290, eq. 7), with log-probs summed over `completion_mask`. The second is
        the NLL term (arXiv 2404.19733, eq. 4), summed over `nll_mask` and divided as `nll_per` says. Logs TRL's
        metrics, with reward accuracies in which ties count one half, the share of ties, and the NLL.
        """
        inputs = dict(inputs)
        has_reference = self._add_reference(inputs)
        nll_mask_2BT, preference_mask_2BT = inputs.pop("nll_mask"), inputs["completion_mask"]
        policy = MaskedPolicy(
            self.on_shared_rows(model, inputs), preference_mask_2BT=preference_mask_2BT, nll_mask_2BT=nll_mask_2BT
        )
        with self._trl_loss_without_sft():
            loss: torch.Tensor = super()._compute_loss(policy, inputs, False)
        logged = self._metrics["train" if self.model.training else "eval"]
        if not has_reference:
            for name in [name for name in logged if name.startswith("rewards/")]:
                del logged[name]
        elif self.ld_alpha is None:  # else TRL's sums are of weighted tokens
            reference_2B = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
            right_B, ties_B = judge_margins(torch.stack([policy.sums_2B, reference_2B]))
            logged["rewards/accuracies"][-1] = float(self.gather_for_metrics(right_B).mean())
            logged["rewards/ties"].append(float(self.gather_for_metrics(ties_B).mean()))
        if "sft" in self.loss_types:
            nll = self._nll(policy.log_probs_2BT, nll_mask_2BT)
            logged["nll"].append(nll.item())
            both = zip(self.loss_types, self.loss_weights, strict=True)
            loss = loss + sum(weight for name, weight in both if name == "sft") * nll
        return loss

    def _add_reference(self, inputs: Batch) -> bool:
        """Adds the reference's log-probs to a batch that lacks them; zeros if no loss has a reference, then False."""
        has_reference = "ref_chosen_logps" in inputs or self.ref_model is not None
        if "ref_chosen_logps" not in inputs:
            assert self.reference is None, "attach_reference_log_probs() comes first"
            zeros_B = torch.zeros(len(inputs["input_ids"]) // 2, device=inputs["input_ids"].device)
            sums = (zeros_B, zeros_B)
            if self.ref_model is not None:
                sums = self.compute_ref_log_probs(cast(torch.nn.Module, self.ref_model), inputs)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = sums
        return has_reference

    def _nll(self, log_probs_2BT: torch.Tensor, nll_mask_2BT: torch.Tensor) -> torch.Tensor:
        """The NLL term of the chosen answers, before its weight, a scalar."""
        mask_BT = nll_mask_2BT[:, 1:].chunk(2)[0]
        lengths_B = mask_BT.sum(1).clamp(min=1)
        if self.nll_per == "batch":
            lengths_B = torch.full_like(lengths_B, self._mean_nll_tokens, dtype=torch.float32)
        return chosen_nll(log_probs_2BT[:, -mask_BT.size(1) :], mask_BT, lengths_B)

    @contextlib.contextmanager
    def _trl_loss_without_sft(self) -> Iterator[None]:
        """Inside, TRL's loss is without its `sft` term and reads the reference's log-probs from the batch."""
        types, weights, precomputed = self.loss_types, self.loss_weights, self.precompute_ref_logps
        kept = [(name, weight) for name, weight in zip(types, weights, strict=True) if name != "sft"]
        try:
            self.precompute_ref_logps = True
            self.loss_types, self.loss_weights = [name for name, _ in kept], [weight for _, weight in kept]
            yield
        finally:
            self.loss_types, self.loss_weights, self.precompute_ref_logps = types, weights, precomputed


@contextlib.contextmanager
def _without_weight_hash() -> Iterator[None]:
    """Inside, TRL's trainer does not hash all weights, which it does for a cache that is not used here."""
    hash_module = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = hash_module
