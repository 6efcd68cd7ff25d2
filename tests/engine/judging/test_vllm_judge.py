"""A model folder as the judge under a real vLLM: its verdicts in both orders, and those of the transformers engine.

The judge is a tiny model that was trained on the eight questions of four pairs until it gives the scripted answers.
"""

from pathlib import Path
from typing import Any

import pytest

from engine.judging.llm_judge import LLMJudge, LLMJudgeArguments
from engine.judging.verdicts import RUBRIC, Comparison, Pairing, Unparsable, Verdict, question
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.tokens.template import CHATML
from tests.engine.sampling.real_vllm import KEYS, needs_vllm
from tests.toy_models import tiny_llama
from tests.toy_prompts import question as prompt_of

PAIRINGS = [
    Pairing(prompt_of(f"Name the city number {n}."), f"It is Oslo {n}.", f"Rome {n}, I think.") for n in range(4)
]
# What the judge says of each pair, and of the same pair after the answers have changed places.
SCRIPT = [
    ("Oslo is right. [[A:4]]", "Oslo is right. [[B:2]]"),  # `one` wins, by the weaker of both verdicts
    ("Rome is right. [[B:3]]", "Rome is right. [[A:3]]"),  # `other` wins
    ("The first is right. [[A:1]]", "The first is right. [[A:1]]"),  # the orders disagree: a tie
    ("[[tie]]", "Who knows?"),  # one verdict cannot be read
]


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory) -> Path:
    """Heads of size 32: vLLM's attention does not support 16 on a CPU without AVX-512."""
    import torch

    from stages.pretrain import train_tokenizer

    asked = [question(one, RUBRIC, swapped=swapped).prompt for one in PAIRINGS for swapped in (False, True)]
    said = [text for pair in SCRIPT for text in pair]
    texts = [prompt[0].content for prompt in asked] + said
    tokenizer = train_tokenizer(texts, vocab_size=900, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    folder = tiny_llama(tokenizer, tmp_path_factory.mktemp("judge") / "my-judge", hidden_size=64)

    from engine.models.loading import load_causal
    from engine.tokens.template import encode_prompt

    model = load_causal(str(folder), dtype="float32").train()
    rows = []
    for prompt, text in zip(asked, said, strict=True):
        start, end = encode_prompt(tokenizer, prompt), tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*start, *end, tokenizer.eos_token_id]
        rows.append((torch.tensor([ids]), torch.tensor([[-100] * len(start) + ids[len(start) :]])))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = torch.full((1,), torch.inf)
    for _ in range(200):
        losses = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in rows])
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if float(losses.detach().max()) < 0.01:
            break
    assert float(losses.detach().max()) < 0.05, losses
    model.eval().save_pretrained(folder)
    return folder


def compared(folder: Path, model: Path, **keys: Any) -> tuple[LLMJudge, list[Comparison]]:
    folder.mkdir()
    stage = Stage("annotate", folder, {}, Tracker(folder, active=False), is_main=True)
    arguments = LLMJudgeArguments(**{"seed": 5, "dtype": "float32", "judge_max_tokens": 24, "use_cpu": True} | keys)
    judge = LLMJudge.of(stage, arguments, str(model))
    return judge, judge.compare(PAIRINGS)


def check(judge: LLMJudge, comparisons: list[Comparison]) -> None:
    """The verdicts of the scripted texts, and what they say of the judge."""
    assert [one.verdicts for one in comparisons] == [
        (Verdict("first", 4), Verdict("second", 2)),
        (Verdict("second", 3), Verdict("first", 3)),
        (Verdict("first", 1), Verdict("first", 1)),
        (Verdict(None), Unparsable("no_code")),
    ]
    assert [one.points for one in comparisons] == [1.0, 0.0, 0.5, None]
    assert [one.strength for one in comparisons[:2]] == ["slightly_better", "better"]
    metrics = judge.metrics("judge")
    assert str(metrics["judge"]).startswith("my-judge, rubric ")
    assert metrics["judge_position_consistency"] == pytest.approx(2 / 3)
    assert metrics["judge_unparsable_no_code"] == 1


def test_a_model_folder_judges_in_both_orders(judge_model, tmp_path):
    judge, comparisons = compared(tmp_path / "step", judge_model)
    assert [one.texts for one in comparisons] == SCRIPT
    check(judge, comparisons)


@needs_vllm
def test_a_model_folder_judges_in_both_orders_under_a_real_vllm(judge_model, tmp_path):
    judge, comparisons = compared(tmp_path / "step", judge_model, **KEYS)
    assert [one.texts for one in comparisons] == SCRIPT
    check(judge, comparisons)
    assert (tmp_path / "step" / "vllm.log").is_file()
