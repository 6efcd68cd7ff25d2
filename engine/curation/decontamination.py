"""Decontamination: drops training rows that contain a prompt of the evaluation set. Needs no torch.

Prompts are compared by their first user message, normalised (case, width, punctuation and white space are ignored).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from data_schemas.rows import Conversation, Document, Dropped, Message, PreferencePair, Prompt, group_of
from data_schemas.text import normalise
from engine.curation.dropped_rows import keep_or_drop

NUM_KEY_WORDS = 4  # first words of a prompt by which it is looked up
IN_LATER_TURN = Dropped("evaluation_prompt_in_later_turn")
IN_DOCUMENT = Dropped("evaluation_prompt_in_document")
DialogType = TypeVar("DialogType", Conversation, PreferencePair, Prompt)


def without_later_prompts(
    rows: Iterable[DialogType], groups: Collection[str]
) -> tuple[list[DialogType], list[tuple[Dropped, DialogType]]]:
    """Keeps the dialogs in which no user turn after the first is an evaluation prompt. `groups` are those prompts'
    groups; dialogs that begin with one are on the evaluation side of the split already."""
    return keep_or_drop(rows, lambda row: IN_LATER_TURN if asks_later(_messages_of(row), groups) else row)


def without_documents_that_contain(
    documents: Sequence[Document], prompts: Iterable[Prompt]
) -> tuple[list[Document], list[tuple[Dropped, Document]]]:
    """Keeps the documents that contain the first user message of none of the prompts."""
    leaks = iter(contains_any(documents, prompts))
    return keep_or_drop(documents, lambda document: IN_DOCUMENT if next(leaks) else document)


def asks_later(messages: Sequence[Message], groups: Collection[str]) -> bool:
    """Whether a user turn after the first is the first user message of a dialog of `groups`."""
    users = [message for message in messages if message.role == "user"]
    return any(group_of([message]) in groups for message in users[1:])


def contains_any(documents: Iterable[Document], prompts: Iterable[Prompt]) -> list[bool]:
    """For each document, whether it contains the first user message of any prompt as a sequence of complete words."""
    texts = {normalise(message.content) for prompt in prompts for message in _first_user_message(prompt)}
    # Looked up by their first words: at most positions of a document no prompt begins, elsewhere only a few do.
    by_start: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for words in filter(None, map(str.split, texts)):
        by_start[tuple(words[:NUM_KEY_WORDS])].append(words)
    first_words = {start[0] for start in by_start}
    num_key_words = sorted({len(start) for start in by_start})

    def contains(document: Document) -> bool:
        words = normalise(document.text).split()
        return any(
            words[position : position + len(prompt)] == prompt
            for position, word in enumerate(words)
            if word in first_words
            for length in num_key_words
            for prompt in by_start.get(tuple(words[position : position + length]), ())
        )

    return [contains(document) for document in documents]


def _messages_of(row: Conversation | PreferencePair | Prompt) -> list[Message]:
    """The messages of a row that its answers follow; all messages of a conversation."""
    return row.messages if isinstance(row, Conversation) else row.prompt


def _first_user_message(prompt: Prompt) -> list[Message]:
    return [message for message in prompt.prompt if message.role == "user"][:1]
