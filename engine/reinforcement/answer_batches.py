"""Answers as the tensors that TRL's losses read, and as one packed row in which the answers share their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.packing.shared_rows import SharedRows
from engine.training.host import Batch

# Shapes: N = answers of the batch, P = tokens of the longest prompt, C = tokens of the longest answer.


@dataclass(frozen=True)
class TokenAnswer:
    """One answer in tokens."""

    prompt: int  # its number: answers with the same one share the prompt's tokens
    prompt_ids: list[int]
    ids: list[int]
    is_masked: bool = False  # no loss sees it


def answer_batch(answers: Sequence[TokenAnswer], *, pad_token_id: int) -> Batch:
    """TRL's tensors: `prompt_ids` and `prompt_mask`, [N, P], padded on the left; `completion_ids` and
    `completion_mask`, [N, C], padded on the right. Also the packed row, P + K x C tokens for the K answers to a prompt.
    """
    num_rows = len(answers)
    longest_prompt, longest_answer = (max(len(ids) for ids in some) for some in zip(*map(_parts, answers), strict=True))
    prompt_ids_NP = torch.full((num_rows, longest_prompt), pad_token_id)
    prompt_mask_NP = torch.zeros(num_rows, longest_prompt, dtype=torch.long)
    completion_ids_NC = torch.full((num_rows, longest_answer), pad_token_id)
    completion_mask_NC = torch.zeros(num_rows, longest_answer, dtype=torch.long)
    for row, answer in enumerate(answers):
        start, end = longest_prompt - len(answer.prompt_ids), len(answer.ids)
        prompt_ids_NP[row, start:] = torch.tensor(answer.prompt_ids)
        prompt_mask_NP[row, start:] = 1
        completion_ids_NC[row, :end] = torch.tensor(answer.ids)
        completion_mask_NC[row, :end] = int(not answer.is_masked)
    return {
        "prompt_ids": prompt_ids_NP,
        "prompt_mask": prompt_mask_NP,
        "completion_ids": completion_ids_NC,
        "completion_mask": completion_mask_NC,
        **_packed(answers, longest_prompt, longest_answer).as_inputs(),
    }


def _parts(answer: TokenAnswer) -> tuple[list[int], list[int]]:
    return answer.prompt_ids, answer.ids


def _packed(answers: Sequence[TokenAnswer], longest_prompt: int, longest_answer: int) -> SharedRows:
    """The packed row, with predictors laid out as TRL's padded rows: every answer begins in the same column."""
    rows = SharedRows.of([answer.prompt_ids + answer.ids for answer in answers], [answer.prompt for answer in answers])
    predictors_NT = torch.zeros(len(answers), longest_prompt + longest_answer - 1, dtype=torch.long)
    for row, answer in enumerate(answers):
        start, length = longest_prompt - len(answer.prompt_ids), len(answer.prompt_ids) + len(answer.ids) - 1
        predictors_NT[row, start : start + length] = rows.predictors_NT[row, :length]
    return replace(rows, predictors_NT=predictors_NT)
