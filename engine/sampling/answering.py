"""What the stages share that let policies answer the prompts of a round: `annotate` and `rejection_sampling`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from data_schemas.rows import Message, Prompt
from engine.models.policy_tokenizer import load_policy_tokenizer
from engine.runtime.arguments import GenerationArguments
from engine.runtime.keys import key_field, required_field
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, Policy, SamplingSettings
from engine.sampling.sampler import sample_in_turn
from engine.tokens.template import encode_answer


@dataclass(kw_only=True)
class AnsweringArguments(GenerationArguments):
    """Who answers which prompts. The keys of the draw are each stage's own: their place in --help differs."""

    prompts: list[str] = required_field("files of prompts", role="rows")
    validation_prompts: list[str] | None = key_field(None, "held-out prompts: their rows are eval rows", role="rows")
    policies: list[str] = required_field("one or more policies that answer, in turn", role="model")
    other_policies: list[str] | None = key_field(
        None, "more models that answer, after those: folders, or names of endpoints", role="model"
    )
    policy_names: list[str] | None = key_field(None, "their names, for the rows", role="runtime")


def answer_round(
    stage: Stage,
    arguments: AnsweringArguments,
    prompts: Sequence[tuple[Prompt, float | None]],
    *,
    num_answers: int,
    round: int,
) -> list[list[Answer]]:
    """`num_answers` answers to each (prompt, temperature), by prompt, with the noise of this stage and round."""
    names = arguments.policy_names or arguments.policies
    policies = [Policy(path, names[place]) for place, path in enumerate(arguments.policies)]
    policies += [Policy.of(name, arguments.endpoints) for name in arguments.other_policies or []]
    settings = SamplingSettings.of(arguments, purpose=f"{stage.name}/{round}")
    answers = sample_in_turn(stage, policies, prompts, settings, num_answers=num_answers)
    if not any(policy.endpoint for policy in policies):
        return answers
    tokenizer = load_policy_tokenizer(arguments.policies[0])
    return [[_with_tokens(tokenizer, answer) for answer in group] for group in answers]


def _with_tokens(tokenizer: PreTrainedTokenizerBase, answer: Answer) -> Answer:
    """An endpoint's answer with the tokens that it has in our model's template; one that was cut off has no end."""
    if answer.ids or not answer.text.strip():
        return answer
    turn = [Message(role="assistant", content=answer.text)]
    _, ids = encode_answer(tokenizer, answer.prompt.prompt, turn, tools=answer.prompt.tools)
    return replace(answer, ids=ids if answer.ended else ids[:-1])
