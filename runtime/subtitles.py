"""Segments with text as SubRip (.srt) and WebVTT (.vtt), cue by cue, so that a long job writes as it goes.

A text becomes cues of at most two lines of 42 characters, which share the time of its segment in
proportion to their lengths. Segments without text are left out. Cues never overlap, never run backwards,
and last a millisecond at least.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Protocol

LINE = 42  # characters
LINES = 2


class Spoken(Protocol):
    """What a cue is made of."""

    @property
    def start(self) -> float: ...  # seconds

    @property
    def end(self) -> float: ...  # seconds

    @property
    def text(self) -> str: ...


def to_srt(segments: Iterable[Spoken]) -> Iterator[str]:
    """The pieces of a .srt file, each as soon as its segment is there; joined they are the file.

    Raises:
        ValueError: a time is not a finite number.
    """
    for number, (start, end, lines) in enumerate(_cues(segments), 1):
        text = re.sub("-{2,}>", "->", "\n".join(lines))  # players take it for a line of times
        yield f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n{text}\n\n"


def to_vtt(segments: Iterable[Spoken]) -> Iterator[str]:
    """The pieces of a .vtt file: its header, then as `to_srt`.

    Raises:
        ValueError: a time is not a finite number.
    """
    cues = _cues(segments)
    first = list(islice(cues, 1))  # before the header: what cannot be read has none
    yield "WEBVTT\n\n"
    for start, end, lines in chain(first, cues):
        text = "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{_time(start, '.')} --> {_time(end, '.')}\n{text}\n\n"


def _cues(segments: Iterable[Spoken]) -> Iterator[tuple[int, int, list[str]]]:
    """Start and end in milliseconds, and lines."""
    free = 0  # milliseconds, where the cue before ends
    for segment in segments:
        lines = textwrap.wrap(_clean(segment.text), LINE, break_on_hyphens=False)
        if not lines:
            continue
        if not (math.isfinite(segment.start) and math.isfinite(segment.end)):
            raise ValueError(f"a segment is from {segment.start} to {segment.end} s: expected finite numbers")
        start = max(free, round(segment.start * 1000))
        span = max(1, round(segment.end * 1000) - start)
        groups = [lines[at : at + LINES] for at in range(0, len(lines), LINES)]
        if len(groups) > span:  # no time to share
            groups = [lines]
        total, said = sum(map(len, lines)), 0
        free = start
        for group in groups:
            said += sum(map(len, group))
            begin, free = free, max(free + 1, start + span * said // total)
            yield begin, free, group


def _clean(text: str) -> str:
    """One line of valid Unicode: control characters and all kinds of white space become single spaces."""
    kinds = {"Cc": " ", "Cs": "\ufffd"}  # control characters; surrogates, which no file can hold
    return " ".join("".join(kinds.get(unicodedata.category(c), c) for c in text).split())


def _time(milliseconds: int, point: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{milliseconds:03}"
