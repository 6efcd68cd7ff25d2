"""Keeps prompts of the evaluation set out of the training rows."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from data_schemas.rows import Document, Message, Prompt, group_of
from data_schemas.text import normalise


def asks_later(messages: Sequence[Message], groups: Collection[str]) -> bool:
    """Whether a user turn after the first asks what a dialog of `groups` asks first."""
    users = [message for message in messages if message.role == "user"]
    return any(group_of([message]) in groups for message in users[1:])


NUM_KEY_WORDS = 4


def contains_any(documents: Iterable[Document], prompts: Iterable[Prompt]) -> list[bool]:
    """For each document, whether the first user message of any prompt is in it: normalised, as whole words."""
    texts = {normalise(message.content) for prompt in prompts for message in _first_user_message(prompt)}
    # By their first words: at most places of a document nothing begins, and where something does, few do.
    by_start: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for words in filter(None, map(str.split, texts)):
        by_start[tuple(words[:NUM_KEY_WORDS])].append(words)
    first_words = {start[0] for start in by_start}
    num_key_words = sorted({len(start) for start in by_start})

    def contains(document: Document) -> bool:
        words = normalise(document.text).split()
        return any(
            words[position : position + len(wanted)] == wanted
            for position, word in enumerate(words)
            if word in first_words
            for length in num_key_words
            for wanted in by_start.get(tuple(words[position : position + length]), ())
        )

    return [contains(document) for document in documents]


def _first_user_message(prompt: Prompt) -> list[Message]:
    return [message for message in prompt.prompt if message.role == "user"][:1]
