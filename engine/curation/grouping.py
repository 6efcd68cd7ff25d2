"""Groups of a run's dialogs: what is in one group is on one side of the split.

A group is all dialogs with the same first user message. Where that is the same in every dialog ("Summarise the text."),
the system message holds what differs, and it counts too. Needs no torch.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from data_schemas.formats import shorten
from data_schemas.rows import Conversation, Message, PreferencePair, Prompt, group_of

Dialog = Conversation | PreferencePair | Prompt
DialogType = TypeVar("DialogType", Conversation, PreferencePair, Prompt)
LARGE_SHARE = 0.5  # of all dialogs in one group, from which on a warning names it
NUM_CHARACTERS = 61  # of a first message in a warning


def systems_tell_apart(dialogs: Iterable[Dialog]) -> bool:
    """Whether all dialogs have the same first user message, and different system messages."""
    groups: set[str] = set()
    with_systems: set[str] = set()
    for dialog in dialogs:
        groups.add(dialog.group_id)
        if len(groups) > 1:
            return False
        if len(with_systems) < 2:
            with_systems.add(group_of(messages_of(dialog), with_system=True))
    return len(with_systems) > 1


def with_system_group(dialog: DialogType) -> DialogType:
    """The dialog with a group in which the system message counts."""
    return dialog.model_copy(update={"group_id": group_of(messages_of(dialog), with_system=True)})


def describe_large_group(groups: Iterable[str], dialogs: Callable[[], Iterable[Dialog]]) -> str:
    """A line about the group that holds more than LARGE_SHARE of several dialogs; empty where there is none.

    `groups` has that of each dialog; `dialogs` reads them, where one of the group is needed.
    """
    hashes = np.fromiter(map(hash, groups), dtype=np.int64)
    values, sizes = np.unique(hashes, return_counts=True)
    if len(hashes) < 2 or sizes.max() <= LARGE_SHARE * len(hashes):
        return ""
    group, size = int(values[sizes.argmax()]), int(sizes.max())
    messages = messages_of(next(dialog for dialog in dialogs() if hash(dialog.group_id) == group))
    text = " ".join(next(message.content for message in messages if message.role == "user").split())
    number = f"all {size}" if size == len(hashes) else f"{size} of {len(hashes)}"
    shown = shorten(text, NUM_CHARACTERS)
    return f"{number} dialogs have the same first user message ({shown!r}), so they are on one side of the split"


def messages_of(dialog: Dialog) -> list[Message]:
    """The messages of a row that its answers follow; all messages of a conversation."""
    return dialog.messages if isinstance(dialog, Conversation) else dialog.prompt
