"""Time of one policy-gradient update: the stage `rl` on rows that share prompts, and TRL's GRPO on padded rows.

    python -m benchmarks.speed.rl_update --base_model DIR --prompt_tokens 128 --answer_tokens 64

Both trainers get the same weights, answers and rewards, in one micro-batch in float32, and run the loss and its
gradients in turn. The first pair of calls is not timed. Prints one line of JSON: the medians in seconds, their ratio,
and the relative difference of the two losses, which shows that they compute the same.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, ModelConfig, RLOOConfig, RLOOTrainer

from data_schemas.rows import Prompt
from engine.models.loading import load_causal, load_tokenizer
from engine.reinforcement.arguments import PolicyGradientConfig, RLArguments
from engine.reinforcement.rewards import Rewards
from engine.reinforcement.rollouts import flat
from engine.reinforcement.trainer import PolicyGradientTrainer
from engine.runtime.stage import Stage
from engine.runtime.tracking import Tracker
from engine.sampling.answers import Answer
from engine.tokens.template import encode_prompt
from stages import rl

COMMON: dict[str, Any] = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": []}
Answers = list[list[Answer]]  # [P][K]


def draw(tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace) -> Answers:
    """Answers of random tokens, up to `answer_tokens` each, to prompts of at least `prompt_tokens` tokens."""
    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    prompts: list[Prompt] = []
    for number in range(arguments.prompts):
        text = f"Question {number}:"
        while True:
            prompt = Prompt.model_validate({"prompt": [{"role": "user", "content": text}]})
            if len(encode_prompt(tokenizer, prompt.prompt)) >= arguments.prompt_tokens:
                break
            text += f" word {whole(0, 99)}"
        prompts.append(prompt)
    size = len(tokenizer)
    return [
        [
            Answer(
                prompt=prompt,
                k=k,
                text=f"{place}/{k}",
                ids=[whole(10, size - 1) for _ in range(whole(arguments.answer_tokens // 2, arguments.answer_tokens))],
                ended=True,
            )
            for k in range(arguments.answers)
        ]
        for place, prompt in enumerate(prompts)
    ]


def our_trainer(
    base: str,
    folder: Path,
    answers: Answers,
    rewards: Mapping[str, float],
    *,
    limit: int,
    micro_batch: int,
    arguments: Mapping[str, Any],
    **training: Any,
) -> PolicyGradientTrainer:
    """The stage's trainer, whose first window has these answers in one step; `rewards` are by the answer's text.

    `limit` is the longest answer in tokens; `arguments` are keys of the stage, `training` those of TRL's config.
    """
    prompts, count, group = [one[0].prompt for one in answers], sum(map(len, answers)), len(answers[0])
    values = RLArguments(
        train_data=[],
        reward_functions=["none:none"],
        global_batch_size=count,
        num_generations=group,
        max_completion_length=limit,
        **arguments,
    )
    config = PolicyGradientConfig(
        output_dir=str(folder / "checkpoints"),
        num_generations=group,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=count // micro_batch,
        temperature=values.temperature,
        loss_type="dapo" if values.loss_type == "bnpo" else values.loss_type,
        scale_rewards=values.scale_rewards,
        importance_sampling_level=values.importance_sampling_level,
        **COMMON | training,
    )
    stage = Stage("rl", folder, {}, Tracker(folder, active=False), is_main=True)
    model = ModelConfig(model_name_or_path=base)
    made = rl.make_trainer(stage, values, config, model, load_tokenizer(base), prompts, prompts)
    made.rewards = Rewards({"planted": lambda name, given: [rewards[answer.text] for answer in given]}, [1.0])
    by_prompt = {one[0].prompt.prompt_id: one for one in answers}

    def sample(prompts: Sequence[Prompt], *, num_answers: int, purpose: str) -> Answers:
        return [by_prompt[prompt.prompt_id] for prompt in prompts]

    made.policy_sampler.sample = sample  # pyright: ignore[reportAttributeAccessIssue]
    made.current_gradient_accumulation_steps = count // micro_batch
    made.model.train()
    return made


def trls_trainer(
    base: str,
    folder: Path,
    answers: Sequence[Answer],
    rewards: Mapping[str, float],
    *,
    group: int,
    is_rloo: bool = False,
    **training: Any,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """TRL's own trainer, and what it computes from the same answers, in this order, in one batch."""
    tokenizer = load_tokenizer(base)
    kind, config_kind = (RLOOTrainer, RLOOConfig) if is_rloo else (GRPOTrainer, GRPOConfig)
    made: Any = kind(
        load_causal(base, dtype="float32"),
        reward_funcs=lambda completions, **_: [rewards[text] for text in completions],
        args=config_kind(
            output_dir=str(folder / "trl"),
            num_generations=group,
            per_device_train_batch_size=len(answers),
            **COMMON | training,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * len(answers)}),
        processing_class=tokenizer,
    )
    prompt_ids = [encode_prompt(tokenizer, answer.prompt.prompt) for answer in answers]
    texts, ids = [answer.text for answer in answers], [answer.ids for answer in answers]
    of_rloo = (prompt_ids, ids, texts)
    made._generate = lambda prompts: of_rloo if is_rloo else (prompt_ids, ids, None, texts, None, {}, None, None)
    made.eos_token_ids = [answer.ids[-1] for answer in answers if answer.ended]
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made, made._generate_and_score_completions([{"prompt": text} for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True, help="the folder of a small causal model with a chat template")
    parser.add_argument("--prompts", type=int, default=4, help="prompts in the update")
    parser.add_argument("--answers", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--prompt_tokens", type=int, default=128, help="least length of a prompt")
    parser.add_argument("--answer_tokens", type=int, default=64, help="largest length of an answer")
    parser.add_argument("--repeats", type=int, default=5, help="timed updates of each side")
    arguments = parser.parse_args()
    base, limit = arguments.base_model, arguments.answer_tokens
    answers = draw(load_tokenizer(base), arguments)
    rewards = {answer.text: float(sum(answer.ids) % 97) for answer in flat(answers)}
    count, training = arguments.prompts * arguments.answers, {"max_completion_length": limit}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mine = our_trainer(
            base, folder, answers, rewards, limit=limit, micro_batch=count, arguments={"beta": 0.0}, **training
        )
        mine._begin(0)
        order = [answer for number in mine.schedule.prompts_of(0) for answer in answers[number]]
        theirs, batch = trls_trainer(base, folder, order, rewards, group=arguments.answers, **training)
        (shared,) = mine._batches.values()
        sides = {"ours": (mine, shared), "TRL": (theirs, batch)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        losses: dict[str, float] = {}
        for _ in range(arguments.repeats + 1):
            for name, (trainer, inputs) in sides.items():
                trainer.model.zero_grad()
                started = time.perf_counter()
                loss = trainer._compute_loss(trainer.model, inputs)
                loss.backward()
                seconds[name].append(time.perf_counter() - started)
                losses[name] = float(loss.detach())
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    shape = {
        "prompt_tokens": [len(mine.tokens_of(group[0].prompt)) for group in answers],
        "mean_answer_tokens": statistics.mean(len(answer.ids) for answer in order),
        "answers": len(order),
    }
    difference = abs(losses["ours"] - losses["TRL"]) / max(abs(losses["TRL"]), 1e-6)
    print(
        json.dumps({**shape, "seconds": medians, "ratio": medians["TRL"] / medians["ours"], "difference": difference})
    )


if __name__ == "__main__":
    main()
