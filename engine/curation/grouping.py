"""Groups of a run's dialogs: what is in one group is on one side of the split.

A group is all dialogs with the same first user message. Where that is the same in every dialog ("Summarise the text."),
the system message holds what differs, and it counts too. Needs no torch.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from data_schemas.formats import shorten
from data_schemas.rows import Conversation, Message, PreferencePair, Prompt, group_of

Dialog = Conversation | PreferencePair | Prompt
DialogType = TypeVar("DialogType", Conversation, PreferencePair, Prompt)
LARGE_SHARE = 0.5  # of all dialogs in one group, from which on a warning names it
NUM_CHARACTERS = 61  # of a first message in a warning


def systems_tell_apart(dialogs: Sequence[Dialog]) -> bool:
    """Whether all dialogs have the same first user message, and different system messages."""
    if len({dialog.group_id for dialog in dialogs}) != 1:
        return False
    return len({group_of(messages_of(dialog), with_system=True) for dialog in dialogs}) > 1


def with_system_groups(dialogs: Sequence[DialogType]) -> list[DialogType]:
    """The dialogs with groups in which the system message counts."""
    return [
        dialog.model_copy(update={"group_id": group_of(messages_of(dialog), with_system=True)}) for dialog in dialogs
    ]


def describe_large_group(dialogs: Sequence[Dialog]) -> str:
    """A line about the group that holds more than LARGE_SHARE of several dialogs; empty where there is none."""
    if not dialogs:
        return ""
    ((group, size),) = Counter(dialog.group_id for dialog in dialogs).most_common(1)
    if size == 1 or size <= LARGE_SHARE * len(dialogs):
        return ""
    messages = messages_of(next(dialog for dialog in dialogs if dialog.group_id == group))
    text = " ".join(next(message.content for message in messages if message.role == "user").split())
    number = f"all {size}" if size == len(dialogs) else f"{size} of {len(dialogs)}"
    shown = shorten(text, NUM_CHARACTERS)
    return f"{number} dialogs have the same first user message ({shown!r}), so they are on one side of the split"


def messages_of(dialog: Dialog) -> list[Message]:
    """The messages of a row that its answers follow; all messages of a conversation."""
    return dialog.messages if isinstance(dialog, Conversation) else dialog.prompt
