"""Decontamination: drops training rows that contain a prompt of the evaluation set. Needs no torch.

Prompts are compared by their first user message, normalised (case, width, punctuation and white space are ignored).
A short one ("Continue.") says nothing of its dialog, so only a complete first turn that equals it counts, which the
split finds; see `data_schemas.text.is_distinctive`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from data_schemas.formats import shorten
from data_schemas.rows import Conversation, Document, Dropped, Message, PreferencePair, Prompt
from data_schemas.text import is_distinctive, normalise
from engine.curation.dropped_rows import keep_or_drop
from engine.curation.grouping import DialogType, messages_of

NUM_KEY_WORDS = 4  # first words of a prompt by which it is looked up
NUM_CAUSES = 3  # evaluation prompts that a warning names
NUM_CHARACTERS = 61  # of each
IN_LATER_TURN = Dropped("evaluation_prompt_in_later_turn")
IN_DOCUMENT = Dropped("evaluation_prompt_in_document")


def without_later_prompts(
    rows: Iterable[DialogType], prompts: Iterable[Prompt]
) -> tuple[list[DialogType], list[tuple[Dropped, DialogType]]]:
    """Keeps the dialogs in which no user turn after the first is the first user message of one of the prompts. Dialogs
    that begin with one are on the evaluation side of the split already."""
    texts = _distinctive_texts(prompts)
    return keep_or_drop(rows, lambda row: IN_LATER_TURN if asked_later(messages_of(row), texts) else row)


def without_documents_that_contain(
    documents: Sequence[Document], prompts: Iterable[Prompt]
) -> tuple[list[Document], list[tuple[Dropped, Document]]]:
    """Keeps the documents that contain the first user message of none of the prompts."""
    leaks = iter(contained(documents, prompts))
    return keep_or_drop(documents, lambda document: IN_DOCUMENT if next(leaks) else document)


def most_frequent_causes(
    prompts: Sequence[Prompt], *, dialogs: Iterable[Conversation | PreferencePair], documents: Sequence[Document]
) -> str:
    """The evaluation prompts for which most of these dropped rows were dropped, each with the number of rows."""
    texts = _distinctive_texts(prompts)
    found = [asked_later(messages_of(row), texts) for row in dialogs] + contained(documents, prompts)
    original = {normalise(message.content): message.content for row in prompts for message in _first_user_message(row)}
    causes = Counter(text for text in found if text).most_common(NUM_CAUSES)
    return ", ".join(
        f"{shorten(' '.join(original[text].split()), NUM_CHARACTERS)!r} ({count})" for text, count in causes
    )


def asked_later(messages: Sequence[Message], texts: Iterable[str]) -> str:
    """The first of the normalised texts that a user turn after the first equals; empty where there is none. Give a set,
    for speed."""
    users = [message for message in messages if message.role == "user"]
    asked = (normalise(message.content) for message in users[1:])
    return next((text for text in asked if text in texts), "")


def contained(documents: Iterable[Document], prompts: Iterable[Prompt]) -> list[str]:
    """For each document, the normalised first user message of a prompt that it contains as a sequence of complete
    words; empty where there is none."""
    # Looked up by their first words: at most positions of a document no prompt begins, elsewhere only a few do.
    by_start: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for words in map(str.split, _distinctive_texts(prompts)):
        by_start[tuple(words[:NUM_KEY_WORDS])].append(words)
    first_words = {start[0] for start in by_start}
    num_key_words = sorted({len(start) for start in by_start})

    def find(document: Document) -> str:
        words = normalise(document.text).split()
        found = (
            " ".join(prompt)
            for position, word in enumerate(words)
            if word in first_words
            for length in num_key_words
            for prompt in by_start.get(tuple(words[position : position + length]), ())
            if words[position : position + len(prompt)] == prompt
        )
        return next(found, "")

    return [find(document) for document in documents]


def _distinctive_texts(prompts: Iterable[Prompt]) -> set[str]:
    """The normalised first user messages that are long enough that a text which contains one repeats it."""
    texts = {normalise(message.content) for prompt in prompts for message in _first_user_message(prompt)}
    return {text for text in texts if is_distinctive(text)}


def _first_user_message(prompt: Prompt) -> list[Message]:
    return [message for message in prompt.prompt if message.role == "user"][:1]
