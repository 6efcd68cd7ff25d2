"""Scores and log-probs of answers, in batches of whole prompts whose answers share the prompt's tokens."""

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from engine.packing.shared_rows import SharedRows, supports_shared_rows
from engine.runtime import out_of_memory
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.tokens.template import IGNORED

# Shapes: N = answers in a batch, T = tokens of the longest.
PromptAndAnswer = tuple[list[int], list[int]]  # of the prompt, of the answer
GROUP_TOKENS = 4096
log = logging.getLogger(__name__)


def group_by_prompt(rows: Sequence[PromptAndAnswer], *, batch_size: int) -> list[list[list[int]]]:
    """Batches of groups of row numbers, a group being answers to one prompt.

    Each batch has about as many tokens, a group's prompt counted once, as `batch_size` answers have on average; groups
    of like length stand together. More than GROUP_TOKENS are several groups: what sees what is a square of them.
    """
    groups: list[list[int]] = []
    sizes: list[int] = []
    last: dict[tuple[int, ...], int] = {}  # group of a prompt
    for number, (prompt, answer) in enumerate(rows):
        group = last.get(tuple(prompt))
        if group is None or sizes[group] + len(answer) > GROUP_TOKENS:
            group = last[tuple(prompt)] = len(groups)
            groups.append([])
            sizes.append(len(prompt))
        groups[group].append(number)
        sizes[group] += len(answer)
    limit = batch_size * sum(sizes) / max(1, len(rows))
    batches: list[list[list[int]]] = []
    room = 0.0
    for group in sorted(range(len(groups)), key=lambda group: (sizes[group], group)):
        if not batches or sizes[group] > room:
            batches.append([])
            room = limit
        batches[-1].append(groups[group])
        room -= sizes[group]
    return batches


def in_groups(
    stage: Stage,
    name: str,
    rows: Sequence[PromptAndAnswer],
    score: Callable[[Sequence[Sequence[PromptAndAnswer]]], list[float]],
    *,
    batch_size: int,
    content: Sequence[Any],
) -> list[float]:
    """What `score` says of each row, in order, called on batches of groups, each of which is done once."""
    batches = group_by_prompt(rows, batch_size=batch_size)
    order = [number for batch in batches for group in batch for number in group]

    def work(batches: Sequence[list[list[int]]]) -> list[list[float]]:
        return [score([[rows[number] for number in group] for group in batch]) for batch in batches]

    lengths = [[len(group) for group in batch] for batch in batches]
    in_order = (rows[number] for number in order)
    with out_of_memory.explain_out_of_memory("generation_batch_size", batch_size, hint=out_of_memory.IDENTITY):
        found = in_batches(stage, name, batches, work, size=1, content=(*content, "groups", lengths, *in_order))
    scores = dict(zip(order, itertools.chain.from_iterable(found), strict=True))
    return [scores[number] for number in range(len(rows))]


class SharedScorer:
    """A model that scores whole prompts; where it does not go with shared rows, the rows are padded."""

    def __init__(self, model: PreTrainedModel, *, is_reward_model: bool) -> None:
        self.model, self.is_reward_model = model, is_reward_model

    @cached_property
    def shares_rows(self) -> bool:
        """Found out at the first batch that is not done yet."""
        if not self.is_reward_model:
            add_fused_lm_head(self.model)
        precision = str(self.model.dtype).removeprefix("torch.")
        goes = supports_shared_rows(
            self.model, self.model.device, precision=precision, is_reward_model=self.is_reward_model
        )
        if not goes:
            log.warning("this model does not support packed rows; its rows are padded, which is slower")
        return goes

    def rewards(self, groups: Sequence[Sequence[PromptAndAnswer]]) -> list[float]:
        """A reward model's score at the last token of each row, group by group."""
        rows = [row for group in groups for row in group]
        with torch.no_grad():
            if not self.shares_rows:
                ids_NT, mask_NT = self._padded(rows)
                output: Any = self.model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False)
                return output.logits[:, 0].float().tolist()
            return self._shared(groups).last_scores(self.model, use_cache=False).float().tolist()

    def log_prob_sums(self, groups: Sequence[Sequence[PromptAndAnswer]]) -> list[float]:
        """Sum of log p(answer token) of each row, in nats, at temperature 1."""
        rows = [row for group in groups for row in group]
        with torch.no_grad():
            ids_NT, mask_NT = self._padded(rows)
            starts_N = torch.tensor([len(prompt) for prompt, _ in rows], device=ids_NT.device)
            answers_NT = mask_NT.bool() & (torch.arange(ids_NT.size(1), device=ids_NT.device) >= starts_N[:, None])
            if not self.shares_rows:
                logits_NTV = self.model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).logits  # pyright: ignore[reportCallIssue]
                log_probs_NTV = torch.log_softmax(logits_NTV[:, :-1].float(), dim=-1)
                token_NT = log_probs_NTV.gather(2, ids_NT[:, 1:, None]).squeeze(2)
            else:
                labels_NT = ids_NT.masked_fill(~answers_NT, IGNORED)
                shared = self._shared(groups)
                token_NT = shared.log_probs(self.model, labels_NT, fused_lm_head=True, use_cache=False)["log_probs"]
            return (token_NT.float() * answers_NT[:, 1:]).sum(1).tolist()

    def _shared(self, groups: Sequence[Sequence[PromptAndAnswer]]) -> SharedRows:
        sequences = [prompt + answer for group in groups for prompt, answer in group]
        numbers = [number for number, group in enumerate(groups) for _ in group]
        return SharedRows.of(sequences, numbers).to(self.model.device)

    def _padded(self, rows: Sequence[PromptAndAnswer]) -> tuple[torch.Tensor, torch.Tensor]:
        pad: Any = self.model.config.get_text_config().pad_token_id
        ids = [torch.tensor(prompt + answer) for prompt, answer in rows]
        ids_NT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0 if pad is None else pad)
        lengths_N = torch.tensor([len(one) for one in ids])
        mask_NT = (torch.arange(ids_NT.size(1)) < lengths_N[:, None]).long()
        return ids_NT.to(self.model.device), mask_NT.to(self.model.device)
