"""Scores and log-probs of answers, in batches of prompts whose answers share the prompt's tokens."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from engine.packing.shared_rows import SharedRows
from engine.packing.support import PADDED, supports_shared_rows
from engine.runtime import notices, out_of_memory
from engine.runtime.arguments import GenerationArguments
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.runtime.world import device_of
from engine.tokens.template import IGNORED

# Shapes: N = answers in a batch, T = tokens of the longest prompt with its answer, V = vocabulary.
PromptAndAnswer = tuple[list[int], list[int]]  # tokens of the prompt, tokens of the answer
GROUP_TOKENS = 4096  # the mask of a group is the square of its tokens
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringSettings:
    """How models that score answers are loaded and run."""

    device: torch.device
    dtype: str  # name of a torch dtype, or "auto": as the model was saved
    batch_size: int  # answers

    @classmethod
    def of(cls, arguments: GenerationArguments) -> Self:
        return cls(device_of(arguments.use_cpu), arguments.dtype, arguments.generation_batch_size)


def group_by_prompt(rows: Sequence[PromptAndAnswer], *, batch_size: int) -> list[list[list[int]]]:
    """Batches of groups of row numbers; a group is answers to one prompt.

    Each batch has about as many tokens, a group's prompt counted once, as `batch_size` answers have on average; groups
    of similar length are in one batch. Answers to one prompt beyond GROUP_TOKENS form further groups.
    """
    groups: list[list[int]] = []
    sizes: list[int] = []
    last: dict[tuple[int, ...], int] = {}  # the last group of a prompt
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
    content: Sequence[object],
    doing: str = "scoring",
) -> list[float]:
    """The score of each row, in order. `score` is called on batches of groups, whose results the journal keeps.

    `content` is everything besides the rows that determines the scores, as JSON values. Raises StageError where the
    device's memory is full.
    """
    batches = group_by_prompt(rows, batch_size=batch_size)
    order = [number for batch in batches for group in batch for number in group]

    def score_batches(batches: Sequence[list[list[int]]]) -> list[list[float]]:
        return [score([[rows[number] for number in group] for group in batch]) for batch in batches]

    lengths = [[len(group) for group in batch] for batch in batches]
    in_order = (rows[number] for number in order)
    with out_of_memory.explain_out_of_memory("generation_batch_size", batch_size, hint=out_of_memory.IDENTITY):
        by_batch = in_batches(
            stage,
            name,
            batches,
            score_batches,
            size=1,
            content=(*content, "groups", lengths, *in_order),
            doing=doing,
            unit="answers",
            num_units=lambda batch: sum(map(len, batch)),
        )
    scores = dict(zip(order, itertools.chain.from_iterable(by_batch), strict=True))
    return [scores[number] for number in range(len(rows))]


class SharedScorer:
    """A model that scores all answers to a prompt in one row, or padded rows where it does not support shared ones."""

    def __init__(self, model: PreTrainedModel, *, is_reward_model: bool) -> None:
        self.model, self.is_reward_model = model, is_reward_model
        self._has_warned = False

    @cached_property
    def shares_rows(self) -> bool:
        """Whether the model supports shared rows: tried once, at the first batch that the journal does not have."""
        if not self.is_reward_model:
            add_fused_lm_head(self.model)
        return supports_shared_rows(self.model, self.model.device, is_reward_model=self.is_reward_model)

    def _warn_of_padding(self, groups: Sequence[Sequence[PromptAndAnswer]], padded_NT: torch.Tensor) -> None:
        """Once, at the first batch of padded rows."""
        if not self._has_warned:
            self._has_warned = True
            notices.warn(log, PADDED, self._shared(groups).times_as_many_tokens(padded_NT))

    def rewards(self, groups: Sequence[Sequence[PromptAndAnswer]]) -> list[float]:
        """A reward model's score at the last token of each row, [N], group by group."""
        rows = [row for group in groups for row in group]
        with torch.no_grad():
            if not self.shares_rows:
                ids_NT, mask_NT = self._padded(rows)
                self._warn_of_padding(groups, ids_NT)
                output = self.model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False)  # pyright: ignore[reportCallIssue]
                return output.logits[:, 0].float().tolist()
            return self._shared(groups).last_scores(self.model, use_cache=False).float().tolist()

    def log_prob_sums(self, groups: Sequence[Sequence[PromptAndAnswer]]) -> list[float]:
        """Sum of log p(answer token) of each row, in nats, at temperature 1; [N], group by group."""
        rows = [row for group in groups for row in group]
        with torch.no_grad():
            ids_NT, mask_NT = self._padded(rows)
            starts_N = torch.tensor([len(prompt) for prompt, _ in rows], device=ids_NT.device)
            answers_NT = mask_NT.bool() & (torch.arange(ids_NT.size(1), device=ids_NT.device) >= starts_N[:, None])
            if not self.shares_rows:
                self._warn_of_padding(groups, ids_NT)
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
        """Token ids and mask, [N, T], padded on the right."""
        pad: int | None = self.model.config.get_text_config().pad_token_id
        ids = [torch.tensor(prompt + answer) for prompt, answer in rows]
        ids_NT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0 if pad is None else pad)
        lengths_N = torch.tensor([len(row) for row in ids])
        mask_NT = (torch.arange(ids_NT.size(1)) < lengths_N[:, None]).long()
        return ids_NT.to(self.model.device), mask_NT.to(self.model.device)
