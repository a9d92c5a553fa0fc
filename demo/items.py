"""What all of the demo's tasks share: a held-out item, and the rule that holds out.

Nothing here or in the tasks' files imports torch: the scoring is used beside the runtime.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

Message = dict[
    str, Any
]  # role, and content: a text, or parts such as {"type": "audio", "audio": float32 [N]}


@dataclass(frozen=True, eq=False)
class Item:
    """One question: the task's name, the prompt's messages, the right answer, the key of the split.

    `reference` is what was said, for tasks that transcribe; `target` the language to translate into.
    """

    task: str
    messages: tuple[Message, ...]
    answer: str
    key: str
    reference: str = ""
    target: str = ""


def is_held_out(key: str) -> bool:
    """True for the tenth of all keys that training never sees."""
    return hashlib.blake2b(key.encode(), digest_size=4).digest()[0] % 10 == 0
