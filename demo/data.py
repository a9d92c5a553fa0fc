"""All held-out questions and their scoring, by the name of the task.

    sums, commands               text alone (demo/text.py)
    transcription, translation   clips by voices and of sentences that training never heard (demo/hearing.py)
    pictures                     drawn shapes in combinations that training never saw (demo/pictures.py)

Nothing here imports torch: it is used beside the runtime.
"""

from __future__ import annotations

from demo.hearing import held_out_clips, is_right_translation
from demo.items import Item, Message, is_held_out
from demo.pictures import held_out_pictures
from demo.text import TASKS, held_out_items, is_right_call, train_examples

MEDIA_TASKS = ("transcription", "translation", "pictures")

__all__ = ["MEDIA_TASKS", "TASKS", "Item", "Message", "held_out", "is_held_out", "is_right", "train_examples"]


def held_out(task: str, n: int, *, seed: int = 0, noise_db: float | None = None) -> list[Item]:
    """`n` different questions of a task that training never sees.

    Media are arrays in the parts of the messages: float32 [samples] mono at 16 kHz, uint8 [height, width, 3].
    `noise_db` is the signal-to-noise ratio of clips, None for clean ones.
    """
    if task in ("transcription", "translation"):
        return held_out_clips(task, n, seed=seed, noise_db=noise_db)
    if task == "pictures":
        return held_out_pictures(n, seed=seed)
    return held_out_items(task, n, seed=seed)


def is_right(item: Item, answer: str) -> bool:
    """Whether a model's answer is right: the same text or number, or JSON equal to the expected call.

    Of a translation only what follows the marker counts.
    """
    if item.task == "commands":
        return is_right_call(item, answer)
    if item.task == "translation":
        return is_right_translation(item, answer)
    return answer.strip() == item.answer
