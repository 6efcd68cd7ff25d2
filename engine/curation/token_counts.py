"""How many tokens a row has when a model is trained on it: after the chat template."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from data_schemas.errors import ConfigError
from data_schemas.rows import Message
from engine.curation.content import Kind, RawRow
from engine.tokens.rendering import render


def token_counter(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> Callable[[RawRow], int]:
    """A function from a stored row of a kind to its number of tokens: of a conversation after the template, of a prompt
    with the generation prompt, of a preference row all answers, each with its prompt; of a document with its end token.

    Raises ConfigError where rows other than documents are counted and the tokenizer has no chat template. The function
    raises ConfigError where the template refuses a row.
    """

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def rendered(messages: Sequence[RawRow], row: RawRow, *, generation_prompt: bool = False) -> int:
        typed = [Message.model_validate(message) for message in messages]
        return count(render(tokenizer, typed, tools=row.get("tools"), generation_prompt=generation_prompt))

    def of_pair(row: RawRow) -> int:
        answers = [row["chosen"], *(row.get("between") or []), row["rejected"]]
        return sum(rendered([*row["prompt"], *answer], row) for answer in answers)

    if kind != "documents" and not tokenizer.chat_template:
        raise ConfigError(
            f"tokenizer: {tokenizer.name_or_path} has no chat template, which the tokens of {kind} depend on; give the "
            "model that prepare_base wrote"
        )
    counters: dict[Kind, Callable[[RawRow], int]] = {
        "documents": lambda row: count(str(row["text"])) + 1,
        "instructions": lambda row: rendered(row["messages"], row),
        "prompts": lambda row: rendered(row["prompt"], row, generation_prompt=True),
        "preferences": of_pair,
    }
    return counters[kind]
