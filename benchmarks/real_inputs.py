"""What benchmarks.real is given: texts, a line each, and clips with their transcripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_gemma.errors import PromptError

PROMPTS = Path(__file__).with_name("real_prompts.txt")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")
LISTS = (".tsv", ".jsonl")
PUNCTUATION = str.maketrans("", "", '.,;:!?¡¿"“”„«»()[]…')


@dataclass(frozen=True)
class Clip:
    """A recording and what is said in it."""

    path: Path
    text: str


def read_texts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not blank: a prompt each.

    Raises:
        PromptError: the file cannot be read, or has none.
    """
    lines = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if not lines:
        raise PromptError(f"{path} holds no text: expected a prompt in each line")
    return lines


def read_clips(path: Path) -> tuple[Clip, ...]:
    """The clips of a folder, in the order of their names, or of a list.

    A folder holds sounds with their transcripts beside them (`a.wav`, `a.txt`), or one list. A list is a .tsv
    file with lines of a path, a tab and the transcript, or a .jsonl file with lines such as
    {"file": "a.wav", "text": "what is said"}; paths start at the list's folder.

    Raises:
        PromptError: there are none, a transcript is missing or empty, or a file is missing.
    """
    if not path.exists():
        raise PromptError(f"{path} does not exist: expected a folder of clips, or a .tsv or .jsonl list")
    if path.is_file():
        found = tuple(_listed(path))
    else:
        lists = [entry for entry in sorted(path.iterdir()) if entry.suffix in LISTS]
        if len(lists) > 1:
            raise PromptError(f"{path} holds {lists[0].name} and {lists[1].name}: name the list to take")
        found = tuple(_listed(lists[0]) if lists else _beside(path))
    if not found:
        raise PromptError(
            f"{path} holds no clips: expected sounds ({', '.join(SOUNDS)}) with .txt beside them"
        )
    for clip in found:
        if not clip.path.is_file():
            raise PromptError(f"{path} lists {clip.path.name}, which is not there: expected a sound file")
        if not spoken(clip.text):
            raise PromptError(f"the transcript of {clip.path.name} in {path} is empty: expected what is said")
    return found


def spoken(text: str) -> str:
    """A text without case and punctuation, words apart by one space."""
    return " ".join(text.casefold().translate(PUNCTUATION).split())


def _beside(folder: Path) -> Iterator[Clip]:
    for sound in sorted(folder.iterdir()):
        if sound.suffix.lower() not in SOUNDS:
            continue
        transcript = sound.with_suffix(".txt")
        if not transcript.is_file():
            raise PromptError(f"{sound} has no transcript: expected {transcript.name} beside it")
        yield Clip(sound, _text(transcript).strip())


def _listed(path: Path) -> Iterator[Clip]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            if path.suffix == ".jsonl":
                entry = json.loads(line)
                name, text = entry["file"], entry["text"]
            else:
                name, text = line.split("\t")
            yield Clip(path.parent / name, text.strip())
        except (ValueError, KeyError, TypeError, AttributeError):
            wanted = '{"file": …, "text": …}' if path.suffix == ".jsonl" else "a path, a tab and a transcript"
            raise PromptError(f"line {number} of {path} cannot be used: expected {wanted}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PromptError(f"{path} cannot be read ({why}): expected a text file") from None
